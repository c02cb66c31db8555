"""Ask the whole vision-language model about images, with Hugging Face's Qwen3-VL in PyTorch.

torch is imported inside the functions, because the rest of the package does not need it.
"""

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from jax_unlearn.data.preprocess import Preprocessor, read_preprocessor
from jax_unlearn.data.processor_config import read_object
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.hub import local_checkpoint

# Do not download files, and do not run code from a checkpoint.
LOCAL = {"local_files_only": True, "trust_remote_code": False}

Grid = tuple[int, int, int]  # frames, rows and columns of patches
Patches = np.ndarray  # [t * h * w, channels * temporal_patch * patch * patch]

SMALL_MODEL = 20_000_000  # parameters


@dataclass(frozen=True)
class VLM:
    """A Qwen3-VL in float32 with its tokenizer and image processor."""

    model: Any
    tokenizer: Any
    preprocessor: Preprocessor


def load_vlm(checkpoint_dir: str | Path, adapter_dir: str | Path | None = None) -> VLM:
    """Load a Qwen3-VL checkpoint, local or on the hub, with a PEFT adapter if one is given.

    Raises:
        UserError: torch or peft is not installed, or a directory is missing or has other content.
    """
    torch, peft = need_torch()
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    folder = _directory(local_checkpoint(checkpoint_dir, "all"), "config.json")
    try:
        model = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, **LOCAL
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, **LOCAL)
    except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder}: not a vision-language checkpoint: {_first_line(error)}"
        ) from error
    if tokenizer.chat_template is None:
        tokenizer.chat_template = chat_template(folder)
    if adapter_dir is not None:
        adapter = _directory(adapter_dir, "adapter_config.json")
        model = peft.PeftModel.from_pretrained(model, str(adapter))
    return VLM(model.eval(), tokenizer, read_preprocessor(folder))


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
    images: Sequence[Image.Image],
    question: str,
    batch_size: int = 64,
    max_new_tokens: int = 32,
) -> list[str]:
    """The model's greedy answers to ``question`` about each image, in the order of ``images``."""
    groups: dict[Grid, list[tuple[int, Patches]]] = {}
    for i, image in enumerate(images):
        patches, grid = preprocess(vlm, image)
        groups.setdefault(grid, []).append((i, patches))
    answers = [""] * len(images)
    for grid, members in groups.items():
        prompt = prompt_tokens(vlm, question, grid)
        for start in range(0, len(members), batch_size):
            batch = members[start : start + batch_size]
            with small_model_threads(vlm.model):
                texts = generate(vlm, prompt, [grid], [p for _, p in batch], max_new_tokens)
            for (i, _), text in zip(batch, texts, strict=True):
                answers[i] = text
    return answers


def preprocess(vlm: VLM, image: Image.Image) -> tuple[Patches, Grid]:
    patches, grid = vlm.preprocessor(image)
    t, h, w = (int(n) for n in grid[0])
    return patches, (t, h, w)


def prompt_tokens(vlm: VLM, question: str, grid: Grid) -> list[int]:
    """Token ids of an image and the question, with a placeholder for each merged patch."""
    return conversation_tokens(vlm, [(question, None)], [grid])


def conversation_tokens(
    vlm: VLM, turns: Sequence[tuple[str, str | None]], grids: Sequence[Grid]
) -> list[int]:
    """Token ids of a conversation up to the next answer.

    Args:
        vlm: the model.
        turns: a question about an image, and its answer or None, for each turn.
        grids: the image's grid in each turn.
    """
    messages: list[dict[str, Any]] = []
    for question, answer in turns:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        messages.append({"role": "user", "content": content})
        if answer is not None:
            said = [{"type": "text", "text": answer}]
            messages.append({"role": "assistant", "content": said})
    text = vlm.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    image = vlm.model.config.image_token_id
    block = vlm.model.config.vision_config.spatial_merge_size**2
    merged = iter([int(np.prod(grid)) // block for grid in grids])
    prompt: list[int] = []
    for token in vlm.tokenizer(text, add_special_tokens=False)["input_ids"]:
        prompt.extend([token] * (next(merged) if token == image else 1))
    return prompt


def generate(
    vlm: VLM,
    prompt: list[int],
    grids: Sequence[Grid],
    patches: Sequence[Patches],
    max_new_tokens: int,
) -> list[str]:
    """Answers to one prompt about several samples whose images have the same grids.

    Args:
        vlm: the model.
        prompt: token ids of the prompt.
        grids: the grids of a sample's images.
        patches: the patches of each sample's images, concatenated.
        max_new_tokens: largest length of an answer.
    """
    import torch

    n, device = len(patches), vlm.model.device
    ids = torch.tensor([prompt], device=device).expand(n, -1).contiguous()
    with torch.inference_mode():
        output = vlm.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            # 1 for image tokens, whose M-RoPE positions are rows and columns, 0 for text.
            mm_token_type_ids=(ids == vlm.model.config.image_token_id).int(),
            pixel_values=torch.from_numpy(np.concatenate(patches)).to(device),
            image_grid_thw=torch.tensor([*grids] * n, device=device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=_pad_token(vlm.tokenizer),
        )
    texts = vlm.tokenizer.batch_decode(output[:, len(prompt) :], skip_special_tokens=True)
    return [text.strip() for text in texts]


@contextmanager
def small_model_threads(model: Any) -> Iterator[None]:
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
