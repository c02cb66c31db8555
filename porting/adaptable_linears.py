"""Locate a checkpoint's adaptable Linears, by key in its files and by path in the HF model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from jax_unlearn.models.lora import LoraAdapter, LoraPair
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.text_files import read_json
from porting.checkpoint import Checkpoint, CheckpointError, config_path, missing_files
from porting.families import PROJECTIONS, ClipFamily, Family, adaptable_family_of, family_of
from porting.open_clip import OPEN_PROJECTIONS, open_clip_weights

AnyFamily = TypeVar("AnyFamily", bound=Family | ClipFamily)


@dataclass(frozen=True)
class AdaptableLinears(Generic[AnyFamily]):
    """Names of the adaptable Linears of a tower or of CLIP, in files and in the HF model.

    family: the model family. key_prefix: prefix of the tower's keys in the files. single_linear:
    whether each Merger is a single Linear (`VisionConfig`). is_transposed: whether the files are
    OpenCLIP's, whose projections are parameters [D_in, E] without a Linear.
    """

    family: AnyFamily
    key_prefix: str
    single_linear: bool = False
    is_transposed: bool = False

    def key(self, linear: str, tensor: str = "weight") -> str:
        """Key in the files of the weight or bias of the Linear with canonical name `linear`.

        Raises:
            ValueError: it is not a Linear of a Merger or of CLIP, or this model has none of that
                name.
        """
        name = self.family.family_linear(linear, self.single_linear)
        if self.is_transposed and tensor == "weight":
            return OPEN_PROJECTIONS[name]
        return f"{self.key_prefix}{name}.{tensor}"

    def live_path(self, linear: str) -> str:
        """The Linear's path in the HF model; raises as `key` does."""
        return self.family.live + self.family.family_linear(linear, self.single_linear)

    def keys(self, adapter: LoraAdapter) -> dict[tuple[str, str], str]:
        """Key of each tensor that the adapter changes, by (canonical name, `weight` or `bias`).

        Linears that this model does not have are left out.
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
        CheckpointError: there are no such keys, or there are under two prefixes.
    """
    stems = {prefix: tuple(prefix + stem for stem in family.stems) for prefix in family.keys}
    found = [p for p in family.keys if any(key.startswith(stems[p]) for key in checkpoint)]
    if not found:
        faults = [family.absent(checkpoint), *missing_files(checkpoint.missing.values())]
        raise CheckpointError(checkpoint.directory, faults)
    if len(found) > 1:
        fault = f"holds more than one vision tower ({', '.join(f'{p}…' for p in found)})"
        raise CheckpointError(checkpoint.directory, [fault])
    return AdaptableLinears(
        family, found[0], single_linear=f"{found[0]}merger.weight" in checkpoint
    )


def open_weights(directory: str | Path) -> Checkpoint:
    """The weight files that we read: transformers', or OpenCLIP's where those are absent."""
    return Checkpoint(directory, open_clip_weights(Path(directory)))


def locate_in(checkpoint: Checkpoint) -> AdaptableLinears[Any]:
    """The adaptable Linears of an open checkpoint, of the family that its config names.

    Raises:
        UserError: the family is not supported.
        CheckpointError: the checkpoint holds no such Linears, or under two prefixes.
    """
    if open_clip_weights(checkpoint.directory) is None:
        return locate(checkpoint, read_adaptable_family(checkpoint.directory))
    family = adaptable_family_of("clip", str(checkpoint.directory))
    if not any(key in checkpoint for key in OPEN_PROJECTIONS.values()):
        sought = " or ".join(OPEN_PROJECTIONS.values())
        raise CheckpointError(checkpoint.directory, [f"holds no {sought}"])
    return AdaptableLinears(family, "", is_transposed=True)


def read_model_type(directory: Path) -> object:
    """The model_type in config.json.

    Raises:
        UserError: config.json cannot be read or has no model_type.
    """
    path = config_path(directory)
    try:
        return read_json(path)["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: names no model_type ({error!r})") from error


def read_family(directory: Path) -> Family:
    """The family of a checkpoint with a Qwen3 tower, from config.json.

    Raises:
        UserError: the model_type is missing or not supported.
    """
    return family_of(read_model_type(directory), str(directory / "config.json"))


def read_adaptable_family(directory: Path) -> Family | ClipFamily:
    """The family of a checkpoint with a Qwen3 tower or CLIP projections; see `read_family`."""
    return adaptable_family_of(read_model_type(directory), str(directory / "config.json"))


def adapter_faults(
    adapter: LoraAdapter, place: AdaptableLinears[Any], checkpoint: Checkpoint | None = None
) -> list[str]:
    """Reasons why an adapter does not fit a model: no pairs, unknown names, wrong ranks or shapes.

    Args:
        adapter: the adapter.
        place: the model's adaptable Linears.
        checkpoint: compare with the shapes of its weights, if given.
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
            faults += _weight_faults(key, name, pair, place, checkpoint)
    return faults


def _weight_faults(
    key: str, name: str, pair: LoraPair, place: AdaptableLinears[Any], checkpoint: Checkpoint
) -> list[str]:
    if key not in checkpoint:
        return [f"{key} is missing, and the adapter changes {name}"]
    shape, adapted = checkpoint.shape(key), (pair.b.shape[0], pair.a.shape[1])
    if (shape[::-1] if place.is_transposed else shape) == adapted:
        return []
    return [f"{key} has shape {list(shape)}, the adapter's b @ a {list(adapted)}"]


def model_type_of_base(adapter: LoraAdapter, base: Path, model_type: str | None) -> str:
    """The model type of an adapter's base: that of its config, `model_type`, or by the Linears.

    Raises:
        UserError: the family is not supported.
    """
    if open_clip_weights(base) is not None:
        return "clip"
    path = base / "config.json"
    if path.is_file():
        found = read_model_type(base)
        adaptable_family_of(found, str(path))
        return str(found)
    of_clip = adapter.pairs and set(adapter.pairs) <= set(PROJECTIONS)
    found = model_type or ("clip" if of_clip else "qwen3_vl")
    adaptable_family_of(found, str(base))
    return found


def place_of_base(
    adapter: LoraAdapter, base: Path, model_type: str
) -> tuple[AdaptableLinears[Any], list[str]]:
    """The adaptable Linears of an adapter's base model, and why the adapter does not fit it.

    A base without local weights, such as the name of a Hub repository, is assumed to have Mergers
    as usual in its family.

    Args:
        adapter: the adapter.
        base: directory of the base model, or its name on the Hub.
        model_type: its model type (`model_type_of_base`).

    Raises:
        UserError: the checkpoint cannot be read.
    """
    if has_weights(base):
        with open_weights(base) as checkpoint:
            place = locate_in(checkpoint)
            return place, adapter_faults(adapter, place, checkpoint)
    family = adaptable_family_of(model_type, str(base))
    place = AdaptableLinears(family, family.keys[0])
    return place, adapter_faults(adapter, place)


def has_weights(base: Path) -> bool:
    """Whether a base is a local checkpoint with weights."""
    known = open_clip_weights(base) is not None or (base / "config.json").is_file()
    return known and any(base.glob("*.safetensors"))
