"""Adapter ↔ PEFT directory: `adapter_config.json` and `adapter_model.safetensors`.

PEFT loads with strict=False, so a wrong prefix is silent there. Here every key has its place.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from jax_unlearn.errors import UserError
from jax_unlearn.files import fresh_directory
from jax_unlearn.lora import LoraAdapter, LoraPair
from porting.families import linear_of_live_path
from porting.place import place_of_base

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
ROOT = "base_model.model."
A, B = ".lora_A.weight", ".lora_B.weight"

# Fields of PEFT's LoraConfig that change what the two factors mean, with the values that do not.
# The other initialisations that PEFT knows have changed the base weights as well.
PLAIN: dict[str, tuple[object, ...]] = {
    "alpha_pattern": ({}, None),
    "bias": ("none",),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
    "layer_replication": (None,),
    "lora_bias": (False, None),
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
    model_type: str = "qwen3_vl",
) -> None:
    """Write an adapter that `PeftModel.from_pretrained` loads.

    Args:
        adapter: pairs of a [r, D_in] and b [E, r], by the names of `qwen3_vl` or of CLIP.
        out_dir: the PEFT directory to make.
        base_model_name_or_path: the checkpoint that the adapter belongs to. A local one says which
            family it is of and how its Mergers are made.
        overwrite: replace an existing `out_dir`.
        model_type: the family of a base that is not a local checkpoint, `clip` for CLIP.

    Raises:
        UserError: the adapter is not one of this model, `out_dir` exists, or the base checkpoint is
            of an unknown family.
    """
    place, faults = place_of_base(adapter, Path(base_model_name_or_path), model_type)
    if faults:
        raise UserError(f"the adapter cannot be saved: {'; '.join(faults)}")
    paths = {place.live_path(name): pair for name, pair in adapter.pairs.items()}
    tensors = {}
    for path, pair in paths.items():
        tensors[f"{ROOT}{path}{A}"] = _float32(pair.a)
        tensors[f"{ROOT}{path}{B}"] = _float32(pair.b)
    config = _config(adapter, sorted(paths), str(base_model_name_or_path))
    with fresh_directory(out_dir, overwrite) as fresh:
        (fresh / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        (fresh / WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))


def _float32(factor: Any) -> Float32[np.ndarray, "rows columns"]:
    return np.ascontiguousarray(factor, dtype=np.float32)


def _config(adapter: LoraAdapter, paths: list[str], base: str) -> dict[str, Any]:
    """The fields that every PEFT of the last years knows: newer ones would make older ones warn."""
    alpha = adapter.alpha
    return {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        # PEFT's annotation says int, and some servers believe it.
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": adapter.rank,
        "rank_pattern": {},
        "revision": None,
        # Whole paths: PEFT compares the ends, and every ViT block has a `linear_fc2` too.
        "target_modules": paths,
        # None of PEFT's tasks: CAUSAL_LM and the others wrap the forward in their own.
        "task_type": None,
        "use_dora": False,
        "use_rslora": False,
    }


def load_peft(adapter_dir: str | Path) -> LoraAdapter:
    """Read a PEFT directory of any family back: the adapter that `save_peft` wrote, bit for bit.

    Raises:
        UserError: no such directory, not a plain LoRA, or tensors that are missing, unknown,
            misshapen, not float32, or not of the Mergers or of CLIP; names every fault.
    """
    directory = Path(adapter_dir)
    rank, alpha = _read_config(directory)
    path = directory / WEIGHTS
    if not path.is_file():
        mend = "save the adapter as safetensors (a pickled adapter_model.bin is not opened)"
        raise UserError(f"{path}: no such file; {mend}")
    try:
        with safe_open(path, framework="numpy") as file:
            pairs = _read_pairs(path, file, rank)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}); copy the file again") from error
    return LoraAdapter(pairs, alpha=alpha, rank=rank)


def _read_config(directory: Path) -> tuple[int, float]:
    path = directory / CONFIG
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; give the folder that holds {CONFIG}")
    if not path.is_file():
        raise UserError(f"{path}: no such file; {directory} is not a PEFT adapter")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error})") from error
    if faults := list(_config_faults(config)):
        raise UserError(f"{path}: {'; '.join(faults)}")
    return config["r"], float(config["lora_alpha"])


def _config_faults(config: Any) -> Iterator[str]:
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        found = config.get("peft_type") if isinstance(config, dict) else config
        yield f"peft_type is {found!r}; only LORA is supported"
        return
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        yield f"r is {rank!r}, expected a positive integer"
    if type(alpha) not in (int, float):
        yield f"lora_alpha is {alpha!r}, expected a number"
    for name, plain in PLAIN.items():
        if (value := config.get(name, plain[0])) not in plain:
            yield f"{name} = {value!r} is not supported"


def _read_pairs(path: Path, file: Any, rank: int) -> dict[str, LoraPair]:
    keys = sorted(file.keys())
    if faults := [fault for key in keys for fault in _key_faults(key, file, rank)]:
        raise UserError(f"{path}: {'; '.join(faults)}")
    found: dict[str, dict[str, Any]] = {}
    faults = []
    for key in keys:
        name, factor = _place(key)
        if factor in found.setdefault(name, {}):
            faults.append(f"{key} is a second lora_{factor.upper()} of {name}")
        found[name][factor] = jnp.asarray(file.get_tensor(key))
    faults += [f"{n} has no lora_{f.upper()}" for n in found for f in "ab" if f not in found[n]]
    if faults or not found:
        raise UserError(f"{path}: {'; '.join(faults) or 'holds no tensor'}")
    return {name: LoraPair(**factors) for name, factors in found.items()}


def _key_faults(key: str, file: Any, rank: int) -> list[str]:
    name, factor = _place(key)
    if not factor:
        return [f"{key} is unknown; expected {ROOT}….lora_A.weight and ….lora_B.weight"]
    if not name:
        return [f"{key} is not of a vision Merger's linear_fc1 or linear_fc2, nor of CLIP"]
    tensor, faults = file.get_slice(key), []
    if tensor.get_dtype() != "F32":
        faults.append(f"{key} has dtype {tensor.get_dtype()}, expected F32")
    shape = list(tensor.get_shape())
    if len(shape) != 2 or shape["ab".index(factor)] != rank:
        expected = f"[{rank}, D_in]" if factor == "a" else f"[E, {rank}]"
        faults.append(f"{key} has shape {shape}, expected {expected}")
    return faults


def _place(key: str) -> tuple[str, str]:
    """(name of the Linear, `a` or `b`); the name is "" where none can be, both in other keys."""
    for ending, factor in ((A, "a"), (B, "b")):
        if key.startswith(ROOT) and key.endswith(ending):
            path = key.removeprefix(ROOT).removesuffix(ending)
            return linear_of_live_path(path) or "", factor
    return "", ""
