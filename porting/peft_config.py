"""What an adapter's adapter_config.json says: PEFT's LoraConfig, and the name of the base."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax_unlearn.models.lora import LoraAdapter
from porting.families import HF_CLASSES

CONFIG = "adapter_config.json"
# The version of PEFT whose fields are written, whichever is installed.
PEFT_VERSION = "0.21.0"
SNAPSHOT = re.compile(r"models--([^/]+)/snapshots/([^/]+)")


def base_name(base: str | Path) -> tuple[str, str | None]:
    """(name, revision) under which an adapter names its base.

    Of a snapshot in a Hugging Face cache, the repository and its commit; of any other directory its
    own name, since its path says nothing on another machine, and config.json's `_name_or_path` may
    be of a model that it was made from. PEFT takes the name as a folder beside which it is started.

    Args:
        base: directory of the base model, or the id of its repository, possibly with @REVISION.
    """
    path = Path(base)
    if not (path.is_dir() or path.is_absolute()):
        name, _, revision = str(base).partition("@")
        return name, revision or None
    path = path.resolve()
    if found := SNAPSHOT.search(path.as_posix()):
        return found[1].replace("--", "/"), found[2]
    return path.name, None


def lora_config(
    adapter: LoraAdapter, paths: Sequence[str], model_type: str, base: tuple[str, str | None]
) -> dict[str, Any]:
    """A LoraConfig with few fields, since older versions of PEFT warn about newer fields.

    Args:
        adapter: the adapter.
        paths: paths of its Linears in the Hugging Face model.
        model_type: the model type of the base.
        base: (name, revision) of the base.
    """
    alpha, (module, name) = adapter.alpha, HF_CLASSES[model_type]
    biased = any(pair.bias is not None for pair in adapter.pairs.values())
    # Only if needed, since the field is new in PEFT 0.14.
    extra = {"lora_bias": True} if biased else {}
    return {
        **extra,
        "alpha_pattern": {},
        # By this AutoPeftModel finds the class of the base, as there is no task type.
        "auto_mapping": {"base_model_class": name, "parent_library": module},
        "base_model_name_or_path": base[0],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        # PEFT annotates it as int, and some servers require one.
        "lora_alpha": int(alpha) if float(alpha).is_integer() else alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "peft_version": PEFT_VERSION,
        "r": adapter.rank,
        "rank_pattern": {},
        "revision": base[1],
        # Full paths, because PEFT matches suffixes and every ViT block has a `linear_fc2` too.
        "target_modules": list(paths),
        # None, because PEFT's task types (CAUSAL_LM, ...) replace the forward function.
        "task_type": None,
        "use_dora": False,
        "use_rslora": False,
    }
