"""The whole vision-language model: Hugging Face's Qwen3-VL in PyTorch.

torch is imported inside the functions, because the rest of the package does not need it.
"""

import importlib
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from jax_unlearn.data.preprocess import Preprocessor, limited, read_preprocessor
from jax_unlearn.data.processor_config import processor_file, read_object
from jax_unlearn.evaluate.vlm.placement import choose_device, choose_dtype, stored_parameters
from jax_unlearn.evaluate.vlm.prompts import conversation
from jax_unlearn.evaluate.vlm.reasoning import opens_reasoning
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.hub import local_checkpoint

# Do not download files, and do not run code from a checkpoint.
LOCAL = {"local_files_only": True, "trust_remote_code": False}
# A whole Qwen3-Omni; what it says is written by its part `thinker`.
OMNI = "qwen3_omni_moe"

# Tokens of an answer; of one after reasoning.
NEW_TOKENS, REASONING_TOKENS = 32, 2048


@dataclass(frozen=True)
class VLM:
    """A vision-language model with its tokenizer and image processor."""

    model: Any
    tokenizer: Any
    preprocessor: Preprocessor

    @property
    def writer(self) -> Any:
        """The part of the model that writes: of a whole Qwen3-Omni its thinker."""
        base = base_of(self.model)
        return base.thinker if base.config.model_type == OMNI else self.model

    @property
    def new_tokens(self) -> int:
        """The default number of tokens of an answer; more if the template opens reasoning."""
        opened = opens_reasoning(conversation(self.tokenizer, [("", None)]))
        return REASONING_TOKENS if opened else NEW_TOKENS

    @property
    def placement(self) -> dict[str, str]:
        """Device and data type of the weights, for metrics.json."""
        return {
            "device": str(self.model.device),
            "dtype": str(self.model.dtype).removeprefix("torch."),
        }

    def with_adapter(self, active: bool) -> AbstractContextManager[Any]:
        """Context in which the adapter, if there is one, is switched on or off."""
        has_adapter = hasattr(self.model, "peft_config")
        off: AbstractContextManager[Any] = (
            self.model.disable_adapter() if has_adapter and not active else nullcontext()
        )
        return off


def load_vlm(
    checkpoint_dir: str | Path,
    adapter_dir: str | Path | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    max_pixels: int | None = None,
) -> VLM:
    """Load a Qwen3-VL checkpoint, local or on the hub, with a PEFT adapter if one is given.

    Args:
        checkpoint_dir: the checkpoint.
        adapter_dir: the adapter.
        device: a device of PyTorch, or auto: the accelerator if there is one, or else the CPU.
        dtype: float32, bfloat16 or auto, which depends on the device and the size of the model.
        max_pixels: images are scaled down to at most this area; by default to that of the
            checkpoint's image processor.

    Raises:
        UserError: torch or peft is not installed, there is no such device, or a directory is
            missing or has other content.
    """
    torch, peft = need_torch()
    from transformers import AutoTokenizer

    folder = _directory(local_checkpoint(checkpoint_dir, "all"), "config.json")
    place = choose_device(device)
    kind = getattr(torch, choose_dtype(dtype, place, stored_parameters(folder)))
    try:
        model = _load(folder, kind, place)
        tokenizer = AutoTokenizer.from_pretrained(folder, **LOCAL)
    except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder}: not a vision-language checkpoint: {_first_line(error)}"
        ) from error
    if tokenizer.chat_template is None:
        tokenizer.chat_template = chat_template(folder)
    if adapter_dir is not None:
        adapter = _directory(adapter_dir, "adapter_config.json")
        with quiet_peft():
            model = peft.PeftModel.from_pretrained(model, str(adapter))
    preprocessor = read_preprocessor(folder)
    if max_pixels is not None:
        preprocessor = limited(preprocessor, max_pixels, processor_file(folder))
    return VLM(model.eval(), tokenizer, preprocessor)


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Without PEFT's warning that a property of transformers, which it reads, is to be renamed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


def _load(folder: Path, dtype: Any, device: Any) -> Any:
    """The Hugging Face model on a device; of a whole Qwen3-Omni not the parts that speak."""
    from transformers import AutoModelForImageTextToText, Qwen3OmniMoeForConditionalGeneration

    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, **LOCAL}
    if device.type != "cpu":
        # Without a copy of the weights in the host's memory.
        options["device_map"] = {"": device}
    if read_object(folder / "config.json").get("model_type") == OMNI:
        return Qwen3OmniMoeForConditionalGeneration.from_pretrained(
            folder, enable_audio_output=False, **options
        )
    return AutoModelForImageTextToText.from_pretrained(folder, **options)


def chat_template(folder: Path) -> str:
    """The template in chat_template.json, as written by processors of transformers 4.

    Raises:
        UserError: the checkpoint has no chat template.
    """
    path = folder / "chat_template.json"
    found = read_object(path).get("chat_template") if path.is_file() else None
    if not isinstance(found, str):
        raise UserError(
            f"{folder}: has no chat template (chat_template.jinja, chat_template.json or in "
            "tokenizer_config.json); copy it from the model's original directory"
        )
    return found


def base_of(model: Any) -> Any:
    """The model without PEFT's wrapper, whose methods take any argument."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def need_torch() -> tuple[ModuleType, ModuleType]:
    """Import torch and peft.

    Raises:
        UserError: one of them is not installed.
    """
    return _need("torch"), _need("peft")


def _need(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(
            f"asking the model needs {package}: pip install 'jax-unlearn[torch]'"
        ) from error


def _directory(path: str | Path, member: str) -> Path:
    folder = Path(path)
    if not (folder / member).is_file():
        raise UserError(f"{folder}: no {member} there; give the directory that contains it")
    return folder


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
