"""Where a checkpoint's adaptable Linears live: in its files, and in the HF model made of them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from jax_unlearn.models.lora import LoraAdapter, LoraPair
from jax_unlearn.runtime.errors import UserError
from porting.checkpoint import Checkpoint, CheckpointError, config_path
from porting.families import ClipFamily, Family, adaptable_family_of, family_of
from porting.open_clip import open_clip_weights

AnyFamily = TypeVar("AnyFamily", bound=Family | ClipFamily)


@dataclass(frozen=True)
class AdaptableLinears(Generic[AnyFamily]):
    """The tower's place, or CLIP's.

    single_linear: each of the tower's Mergers is one Linear (`VisionConfig`).
    """

    family: AnyFamily
    key_prefix: str
    single_linear: bool = False

    def key(self, linear: str, tensor: str = "weight") -> str:
        """Key of the weight, or of the bias, of a Linear that we call `linear`.

        Raises:
            ValueError: it is none of a Merger's or of CLIP's, or this one has none of that name.
        """
        own = self.family.own_linear(linear, self.single_linear)
        return f"{self.key_prefix}{own}.{tensor}"

    def live_path(self, linear: str) -> str:
        """The Linear's path in the HF model; raises as `key` does."""
        return self.family.live + self.family.own_linear(linear, self.single_linear)

    def keys(self, adapter: LoraAdapter) -> dict[tuple[str, str], str]:
        """Key of each tensor that the adapter changes; without those that have none.

        By our name for the Linear, and `weight` or `bias`.
        """
        keys = {}
        for name, pair in adapter.pairs.items():
            for tensor in ("weight",) if pair.bias is None else ("weight", "bias"):
                try:
                    keys[name, tensor] = self.key(name, tensor)
                except ValueError:
                    continue
        return keys


def locate(checkpoint: Checkpoint, family: AnyFamily) -> AdaptableLinears[AnyFamily]:
    """Find the tower, or CLIP's projections, among the keys of a checkpoint.

    Raises:
        CheckpointError: no key belongs to them, or keys under two prefixes do.
    """
    stems = {prefix: tuple(prefix + stem for stem in family.stems) for prefix in family.keys}
    found = [p for p in family.keys if any(key.startswith(stems[p]) for key in checkpoint)]
    if not found:
        raise CheckpointError(checkpoint.directory, [family.absent])
    if len(found) > 1:
        fault = f"holds more than one vision tower ({', '.join(f'{p}…' for p in found)})"
        raise CheckpointError(checkpoint.directory, [fault])
    return AdaptableLinears(
        family, found[0], single_linear=f"{found[0]}merger.weight" in checkpoint
    )


def read_model_type(directory: Path) -> object:
    """What config.json says.

    Raises:
        UserError: it says nothing.
    """
    path = config_path(directory)
    try:
        return json.loads(path.read_text())["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: names no model_type ({error!r})") from error


def read_family(directory: Path) -> Family:
    """The family of Qwen3 towers that config.json names.

    Raises:
        UserError: it names none that we know.
    """
    return family_of(read_model_type(directory), str(directory / "config.json"))


def read_adaptable_family(directory: Path) -> Family | ClipFamily:
    """The same for all that an adapter can be of."""
    return adaptable_family_of(read_model_type(directory), str(directory / "config.json"))


def adapter_faults(
    adapter: LoraAdapter, place: AdaptableLinears[Any], checkpoint: Checkpoint | None = None
) -> list[str]:
    """What keeps an adapter from a model: no pair, a name that it lacks, a wrong rank or shape.

    The weights' shapes are those of `checkpoint`, where it is given.
    """
    faults = [] if adapter.pairs else ["it has no pair"]
    for name, pair in adapter.pairs.items():
        try:
            key = place.key(name)
        except ValueError as error:
            faults.append(str(error))
            continue
        if (ranks := {pair.a.shape[0], pair.b.shape[1]}) != {adapter.rank}:
            faults.append(f"{name} has rank {sorted(ranks)}, the adapter {adapter.rank}")
        if pair.bias is not None and pair.bias.shape != (e := pair.b.shape[:1]):
            faults.append(f"{name} has a bias of shape {list(pair.bias.shape)}, expected {list(e)}")
        if checkpoint is not None:
            faults += _weight_faults(key, name, pair, checkpoint)
    return faults


def _weight_faults(key: str, name: str, pair: LoraPair, checkpoint: Checkpoint) -> list[str]:
    if key not in checkpoint:
        return [f"{key} is missing, and the adapter changes {name}"]
    shape, adapted = checkpoint.shape(key), (pair.b.shape[0], pair.a.shape[1])
    if shape == adapted:
        return []
    return [f"{key} has shape {list(shape)}, the adapter's b @ a {list(adapted)}"]


def place_of_base(
    adapter: LoraAdapter, base: Path, model_type: str
) -> tuple[AdaptableLinears[Any], list[str]]:
    """Where an adapter's base has its Linears, and what keeps the adapter from it.

    A base without files, of which only the config is here or nothing but a name of the Hub, is
    taken to have Mergers as its family makes them.

    Args:
        model_type: the family of a base that has no config.json here.

    Raises:
        UserError: the family is not known, or the checkpoint cannot be read.
    """
    # Beside OpenCLIP's weights there may be timm's config.json, which names no model_type.
    known = (base / "config.json").is_file() and open_clip_weights(base) is None
    family = read_adaptable_family(base) if known else adaptable_family_of(model_type, str(base))
    if known and any(base.glob("*.safetensors")):
        with Checkpoint(base) as checkpoint:
            place = locate(checkpoint, family)
            return place, adapter_faults(adapter, place, checkpoint)
    place = AdaptableLinears(family, family.keys[0])
    return place, adapter_faults(adapter, place)
