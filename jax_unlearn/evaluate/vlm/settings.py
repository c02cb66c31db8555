"""How the Hugging Face model is asked."""

from dataclasses import dataclass
from typing import Any, Literal

from jax_unlearn.evaluate.vlm.asking import BATCH_TOKENS
from jax_unlearn.evaluate.vlm.model import VLM
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.used_if import option, used_if


@dataclass(frozen=True)
class AskSettings:
    """Settings of the Hugging Face model."""

    device: str = used_if("auto", vlm=True)
    """Device of PyTorch, such as cpu, cuda or cuda:1; auto: the accelerator if there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = used_if("auto", vlm=True)
    """Data type of the weights; auto: bfloat16 from 0.1 billion parameters on an accelerator, from
    4 billion on a CPU, and else float32."""
    max_new_tokens: int | None = used_if(None, vlm=True)
    """Most tokens of an answer; by default 32, or 2048 if the model's chat template begins its
    reasoning. Reasoning counts too, and is not read as an answer."""
    batch_tokens: int = used_if(BATCH_TOKENS, vlm=True)
    """Most tokens of a batch: those of the prompts with their images, and of the answers. Lower it
    if the memory is too small."""

    def check(self) -> None:
        """Refuse values out of range.

        Raises:
            UserError: there is one; names the option.
        """
        for name in ("max_new_tokens", "batch_tokens"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"{option(name)} {value}: must be at least 1")

    def new_tokens(self, vlm: VLM) -> int:
        """Most tokens of an answer of this model."""
        return vlm.new_tokens if self.max_new_tokens is None else self.max_new_tokens

    def used(self, vlm: VLM) -> dict[str, Any]:
        """What is used with a model, for metrics.json."""
        return {
            **vlm.placement,
            "max_pixels": vlm.preprocessor.largest,
            "max_new_tokens": self.new_tokens(vlm),
            "batch_tokens": self.batch_tokens,
        }
