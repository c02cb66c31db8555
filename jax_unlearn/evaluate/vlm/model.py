"""Ask the whole vision-language model about images, with Hugging Face's Qwen3-VL in PyTorch.

torch is imported inside the functions, because the rest of the package does not need it.
"""

import importlib
import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from jax_unlearn.data.images import ImageFile, read_image
from jax_unlearn.data.preprocess import Preprocessor, limited, read_preprocessor
from jax_unlearn.data.processor_config import processor_file, read_object
from jax_unlearn.evaluate.vlm.placement import choose_device, choose_dtype, stored_parameters
from jax_unlearn.evaluate.vlm.reasoning import OPEN, opens_reasoning
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.hub import local_checkpoint

# Do not download files, and do not run code from a checkpoint.
LOCAL = {"local_files_only": True, "trust_remote_code": False}
# A whole Qwen3-Omni; what it says is written by its part `thinker`.
OMNI = "qwen3_omni_moe"

Grid = tuple[int, int, int]  # frames, rows and columns of patches
Patches = np.ndarray  # [t * h * w, channels * temporal_patch * patch * patch]

SMALL_MODEL = 20_000_000  # parameters
# Tokens of a batch: those of the prompts with their images, and those that may be written.
BATCH_TOKENS = 16384
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
        base = _base(self.model)
        return base.thinker if base.config.model_type == OMNI else self.model

    @property
    def new_tokens(self) -> int:
        """The default number of tokens of an answer; more if the template opens reasoning."""
        return REASONING_TOKENS if opens_reasoning(_text(self, "")) else NEW_TOKENS

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
        with warnings.catch_warnings():
            # Of PEFT's own use of transformers, which no user can change.
            warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
            model = peft.PeftModel.from_pretrained(model, str(adapter))
    preprocessor = read_preprocessor(folder)
    if max_pixels is not None:
        preprocessor = limited(preprocessor, max_pixels, processor_file(folder))
    return VLM(model.eval(), tokenizer, preprocessor)


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


def ask(
    vlm: VLM,
    images: Sequence[Image.Image | ImageFile],
    question: str,
    batch_size: int | None = None,
    max_new_tokens: int = NEW_TOKENS,
    *,
    batch_tokens: int = BATCH_TOKENS,
    advance: Callable[[int], object] | None = None,
) -> list[str]:
    """The model's greedy answers to a question about each image, in the order of the images.

    Images whose prompts are equal are asked about together. Where the chat template opens
    reasoning, a reply begins with `<think>`.

    Args:
        vlm: the model.
        images: images, or files, which are read when it is their turn.
        question: the question.
        batch_size: most images of a batch; by default their number is bounded by tokens only.
        max_new_tokens: most tokens of an answer.
        batch_tokens: most tokens of a batch with its answers; a batch has at least one image.
        advance: called with the number of images after each batch.

    Raises:
        UserError: the model's image processor cannot resize an image.
    """
    answers = [""] * len(images)
    waiting: dict[Grid, list[tuple[int, Patches]]] = {}
    opened = OPEN if opens_reasoning(_text(vlm, question)) else ""

    @cache
    def prompt_of(grid: Grid) -> list[int]:
        return _prompt(vlm, question, grid)

    def room(grid: Grid) -> int:
        """The number of images of a batch."""
        most = max(1, batch_tokens // (len(prompt_of(grid)) + max_new_tokens))
        return most if batch_size is None else min(most, batch_size)

    def answer(grid: Grid) -> None:
        batch = waiting.pop(grid)
        with _fitting_threads(vlm.model):
            patches = [patches for _, patches in batch]
            texts = _generate(vlm, prompt_of(grid), grid, patches, max_new_tokens)
        for (i, _), text in zip(batch, texts, strict=True):
            answers[i] = opened + text
        if advance is not None:
            advance(len(batch))

    for i, image in enumerate(images):
        patches, grid = _preprocess(vlm, image)
        waiting.setdefault(grid, []).append((i, patches))
        if len(waiting[grid]) >= room(grid):
            answer(grid)
        # Of images of many sizes no more wait in memory than those of one batch.
        while sum(len(prompt_of(g)) * len(batch) for g, batch in waiting.items()) > batch_tokens:
            answer(max(waiting, key=lambda g: len(prompt_of(g)) * len(waiting[g])))
    for grid in list(waiting):
        answer(grid)
    return answers


def _preprocess(vlm: VLM, image: Image.Image | ImageFile) -> tuple[Patches, Grid]:
    name = image.name if isinstance(image, ImageFile) else "an image"
    if isinstance(image, ImageFile):
        image = read_image(image.source())
    try:
        patches, grid = vlm.preprocessor(image)
    except ValueError as error:
        raise UserError(f"{name}: {error}; leave it out") from error
    t, h, w = (int(n) for n in grid[0])
    return patches, (t, h, w)


def _text(vlm: VLM, question: str) -> str:
    """The prompt of an image and a question as text."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    return str(
        vlm.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
    )


def _prompt(vlm: VLM, question: str, grid: Grid) -> list[int]:
    """Token ids of an image and the question, with a placeholder for each merged patch."""
    config = vlm.writer.config
    merged = int(np.prod(grid)) // config.vision_config.spatial_merge_size**2
    prompt: list[int] = []
    for token in vlm.tokenizer(_text(vlm, question), add_special_tokens=False)["input_ids"]:
        prompt.extend([token] * (merged if token == config.image_token_id else 1))
    return prompt


def _generate(
    vlm: VLM, prompt: list[int], grid: Grid, patches: list[Patches], max_new_tokens: int
) -> list[str]:
    """Answers to one prompt about several images of one grid, which need no padding."""
    import torch

    n, device, writer = len(patches), vlm.model.device, vlm.writer
    ids = torch.tensor([prompt], device=device).expand(n, -1).contiguous()
    given: dict[str, Any] = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.from_numpy(np.concatenate(patches)).to(device),
        "image_grid_thw": torch.tensor([grid], device=device).expand(n, -1),
    }
    if "mm_token_type_ids" in inspect.signature(_base(writer).forward).parameters:
        # 1 for image tokens, whose M-RoPE positions are rows and columns, 0 for text.
        given["mm_token_type_ids"] = (ids == writer.config.image_token_id).int()
    if writer.generation_config.eos_token_id is None:
        # That of a whole Qwen3-Omni belongs to the whole; without an end it would write on.
        given["eos_token_id"] = vlm.tokenizer.eos_token_id
    with torch.inference_mode():
        output = writer.generate(
            **given,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=_pad_token(vlm.tokenizer),
        )
    texts = vlm.tokenizer.batch_decode(output[:, len(prompt) :], skip_special_tokens=True)
    return [text.strip() for text in texts]


def _base(model: Any) -> Any:
    """The model without PEFT's wrapper, whose methods take any argument."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


@contextmanager
def _fitting_threads(model: Any) -> Iterator[None]:
    """Limit torch to one thread for a small model, whose operations are too short to parallelise.

    On a busy machine the bundled model took 14 times as long with several threads, which waited for
    each other.
    """
    import torch

    before = torch.get_num_threads()
    if sum(p.numel() for p in model.parameters()) < SMALL_MODEL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _pad_token(tokenizer: Any) -> int:
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


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
