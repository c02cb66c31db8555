"""Save and load adapters as PEFT directories: adapter_config.json and adapter_model.safetensors.

PEFT loads with strict=False and silently ignores keys with a wrong prefix. Here every key is
checked.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open

from jax_unlearn.models.arrays import on_device
from jax_unlearn.models.lora import LoraAdapter, LoraPair, checked_adapter
from jax_unlearn.runtime.arguments import path_argument
from jax_unlearn.runtime.atomic_files import fresh_directory
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.text_files import read_json
from jax_unlearn.runtime.version import VERSION
from porting.adaptable_linears import model_type_of_base, place_of_base
from porting.families import linear_of_live_path
from porting.peft_config import CONFIG, base_name, lora_config
from porting.safetensors_bytes import to_bytes
from porting.weight_digests import digest_of_base

WEIGHTS = "adapter_model.safetensors"
# Metadata of that file besides PEFT's: our version, SHA-256 of the base's tensors that the adapter
# changes, and the seed of the run.
FACTS = ("jax_unlearn", "base_sha256", "seed")
ROOT = "base_model.model."
# PEFT's names of a pair's parts.
PARTS = {"a": "lora_A.weight", "b": "lora_B.weight", "bias": "lora_B.bias"}

# Fields of PEFT's LoraConfig that change the meaning of the tensors, with the supported values.
# PEFT's other initialisations also change the base weights.
PLAIN: dict[str, tuple[object, ...]] = {
    "alpha_pattern": ({}, None),
    "bias": ("none",),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
    "layer_replication": (None,),
    "lora_bias": (False, None, True),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "use_rslora": (False, None),
}


def save_peft(
    adapter: LoraAdapter,
    out_dir: str | Path,
    *,
    base_model_name_or_path: str | Path,
    overwrite: bool = False,
    model_type: str | None = None,
    base_model: str | None = None,
    seed: int | None = None,
) -> None:
    """Write an adapter that `PeftModel.from_pretrained` loads.

    Args:
        adapter: pairs of a [r, D_in] and b [E, r], by the canonical names of `qwen3_vl` or CLIP.
            Either all pairs have a bias or none has, since PEFT's `lora_bias` is a single switch.
            If the Linear itself has no bias, PEFT runs the adapter with a warning, and cannot merge
            it.
        out_dir: the PEFT directory to create.
        base_model_name_or_path: the checkpoint that the adapter belongs to. The family and the
            structure of the Mergers are read from a local one.
        overwrite: replace an existing `out_dir`.
        model_type: family of a base that is not a local checkpoint; by default `clip` for an
            adapter of CLIP's projections, and otherwise `qwen3_vl`.
        base_model: the name of the base in the adapter's config; by default the repository of a
            snapshot in a Hugging Face cache, or the directory's own name (`base_name`).
        seed: seed of the run, for the file's metadata.

    Raises:
        UserError: the adapter does not fit the model, `out_dir` exists, or the base checkpoint is
            of an unsupported family.
    """
    adapter = checked_adapter("adapter", adapter)
    base = path_argument("base_model_name_or_path", base_model_name_or_path)
    path_argument("out_dir", out_dir)
    model_type = model_type_of_base(adapter, base, model_type)
    place, faults = place_of_base(adapter, base, model_type)
    if faults := faults + _mixed_faults(adapter):
        raise UserError(f"the adapter cannot be saved: {'; '.join(faults)}")
    paths = {place.live_path(name): pair for name, pair in adapter.pairs.items()}
    tensors = {
        f"{ROOT}{path}.{PARTS[part]}": _float32(getattr(pair, part))
        for path, pair in paths.items()
        for part in _parts(pair)
    }
    name = (base_model, None) if base_model else base_name(base_model_name_or_path)
    config = lora_config(adapter, sorted(paths), model_type, name)
    facts = {"jax_unlearn": VERSION}
    if base_sha256 := digest_of_base(adapter, base):
        facts["base_sha256"] = base_sha256
    if seed is not None:
        facts["seed"] = str(seed)
    with fresh_directory(out_dir, overwrite) as fresh:
        (fresh / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        (fresh / WEIGHTS).write_bytes(to_bytes(tensors, facts | {"format": "pt"}))


def _parts(pair: LoraPair) -> list[str]:
    return [part for part in PARTS if getattr(pair, part) is not None]


def _mixed_faults(adapter: LoraAdapter) -> list[str]:
    without = [name for name, pair in adapter.pairs.items() if pair.bias is None]
    if len(without) in (0, len(adapter.pairs)):
        return []
    cure = "lora_bias is for all Linears or none, give zeros"
    return [f"{name} has no bias and others have: {cure}" for name in without]


def _float32(tensor: Any) -> Float32[np.ndarray, "..."]:
    return np.ascontiguousarray(tensor, dtype=np.float32)


def read_facts(adapter_dir: str | Path) -> dict[str, str]:
    """What an adapter's file says of its making: `jax_unlearn`, `base_sha256`, `seed`.

    Adapters of earlier versions, and of others, say nothing of it.
    """
    with safe_open(Path(adapter_dir) / WEIGHTS, framework="numpy") as file:
        metadata = file.metadata() or {}
    return {name: metadata[name] for name in FACTS if name in metadata}


def name_base(adapter_dir: Path, base_model: str | None = None) -> None:
    """Change the name of the base in an adapter's config.

    Args:
        adapter_dir: the adapter.
        base_model: the new name; by default an absolute path, as earlier versions wrote it, is
            replaced as `save_peft` does.
    """
    path = adapter_dir / CONFIG
    config, earlier = read_json(path), base_of(adapter_dir)
    if base_model is None and not Path(earlier).is_absolute():
        return
    name = (base_model, None) if base_model else base_name(earlier)
    config |= {"base_model_name_or_path": name[0], "revision": name[1]}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def base_of(adapter_dir: Path) -> str:
    """The name of the base in an adapter's config.

    Raises:
        UserError: it names none.
    """
    path = adapter_dir / CONFIG
    found = _read_config(adapter_dir).get("base_model_name_or_path")
    if not isinstance(found, str):
        raise UserError(f"{path}: names no base model; set base_model_name_or_path")
    return found


def remove_bias(adapter_dir: Path) -> None:
    """Remove PEFT's `lora_bias` from an adapter directory: a different adapter."""
    config, path = read_json(adapter_dir / CONFIG), adapter_dir / WEIGHTS
    del config["lora_bias"]
    with safe_open(path, framework="numpy") as file:
        keys = [key for key in file.keys() if not key.endswith(PARTS["bias"])]  # noqa: SIM118
        tensors, metadata = {key: file.get_tensor(key) for key in keys}, file.metadata()
    path.write_bytes(to_bytes(tensors, metadata or {"format": "pt"}))
    (adapter_dir / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def load_peft(adapter_dir: str | Path) -> LoraAdapter:
    """Load an adapter from a PEFT directory of any family; the exact inverse of `save_peft`.

    Raises:
        UserError: there is no such directory, it is not a plain LoRA (with or without `lora_bias`),
            or tensors are missing, unknown, of a wrong shape or not float32, or do not belong to
            Mergers or CLIP projections; names all faults.
    """
    directory = path_argument("adapter_dir", adapter_dir)
    config = _read_config(directory)
    rank, alpha = config["r"], float(config["lora_alpha"])
    parts = ("a", "b", "bias") if config.get("lora_bias") else ("a", "b")
    path = directory / WEIGHTS
    if not path.is_file():
        cure = "save the adapter as safetensors (a pickled adapter_model.bin is not opened)"
        raise UserError(f"{path}: no such file; {cure}")
    try:
        with safe_open(path, framework="numpy") as file:
            pairs = _read_pairs(path, file, rank, parts)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}); copy the file again") from error
    return LoraAdapter(pairs, alpha=alpha, rank=rank)


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; give the folder that holds {CONFIG}")
    if not path.is_file():
        raise UserError(f"{path}: no such file; {directory} is not a PEFT adapter")
    try:
        config: dict[str, Any] = read_json(path)
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error})") from error
    if faults := list(_config_faults(config)):
        raise UserError(f"{path}: {'; '.join(faults)}")
    return config


def _config_faults(config: Any) -> Iterator[str]:
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        found = config.get("peft_type") if isinstance(config, dict) else config
        yield f"peft_type is {found!r}; only LORA is supported"
        return
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        yield f"r is {rank!r}, expected a positive integer"
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        yield f"lora_alpha is {alpha!r}, expected a finite number"
    for name, plain in PLAIN.items():
        if (value := config.get(name, plain[0])) not in plain:
            yield f"{name} = {value!r} is not supported"


def _read_pairs(path: Path, file: Any, rank: int, parts: Sequence[str]) -> dict[str, LoraPair]:
    """The pairs in a file, by canonical name; each must have these `parts`."""
    keys = sorted(file.keys())
    if faults := [fault for key in keys for fault in _key_faults(key, file, rank, parts)]:
        raise UserError(f"{path}: {'; '.join(faults)}")
    found: dict[str, dict[str, Any]] = {}
    for key in keys:
        name, part = _place(key)
        if part in found.setdefault(name, {}):
            faults.append(f"{key} is a second {_short(part)} of {name}")
        found[name][part] = on_device(file.get_tensor(key))
    faults += [f"{n} has no {_short(p)}" for n in found for p in parts if p not in found[n]]
    faults += [fault for name, pair in found.items() for fault in _bias_faults(name, pair)]
    if faults or not found:
        raise UserError(f"{path}: {'; '.join(faults) or 'holds no tensor'}")
    return {name: LoraPair(**pair) for name, pair in found.items()}


def _short(part: str) -> str:
    return PARTS[part].removesuffix(".weight")


def _key_faults(key: str, file: Any, rank: int, parts: Sequence[str]) -> list[str]:
    name, part = _place(key)
    if not part:
        expected = ", ".join(f"{ROOT}….{PARTS[part]}" for part in parts)
        return [f"{key} is unknown; expected {expected}"]
    if part not in parts:
        return [f"{key} needs lora_bias = true in {CONFIG}, without which PEFT leaves it out"]
    if not name:
        return [f"{key} is not of a vision Merger's linear_fc1 or linear_fc2, nor of CLIP"]
    tensor, faults = file.get_slice(key), []
    if tensor.get_dtype() != "F32":
        faults.append(f"{key} has dtype {tensor.get_dtype()}, expected F32")
    shape = list(tensor.get_shape())
    if not _fits(shape, part, rank):
        expected = {"a": f"[{rank}, D_in]", "b": f"[E, {rank}]", "bias": "[E]"}[part]
        faults.append(f"{key} has shape {shape}, expected {expected}")
    return faults


def _fits(shape: list[int], part: str, rank: int) -> bool:
    if part == "bias":
        return len(shape) == 1
    return len(shape) == 2 and shape["ab".index(part)] == rank


def _bias_faults(name: str, pair: dict[str, Any]) -> list[str]:
    if not {"b", "bias"} <= pair.keys() or len(pair["bias"]) == len(pair["b"]):
        return []
    return [f"{name} has a lora_B of {len(pair['b'])} rows, and {len(pair['bias'])} biases"]


def _place(key: str) -> tuple[str, str]:
    """(canonical name of the Linear, key of `PARTS`) of a tensor.

    The name is "" if the path is unknown; both are "" if the key has another form.
    """
    for part, ending in PARTS.items():
        if key.startswith(ROOT) and key.endswith(f".{ending}"):
            path = key.removeprefix(ROOT).removesuffix(f".{ending}")
            return linear_of_live_path(path) or "", part
    return "", ""
