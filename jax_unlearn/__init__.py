"""Make a vision-language model forget something it sees, by a low-rank change of its Merger."""

from jax_unlearn.errors import UserError
from jax_unlearn.lora import LoraAdapter, LoraPair
from jax_unlearn.merger_problem import (
    MergerProblem,
    MergerTokens,
    merger_problem,
    merger_tokens,
)
from jax_unlearn.objective import LinearProblem, linear_problem
from jax_unlearn.solve import solve
from jax_unlearn.train import Result, TrainConfig, train

__all__ = [
    "LinearProblem",
    "LoraAdapter",
    "LoraPair",
    "MergerProblem",
    "MergerTokens",
    "Result",
    "TrainConfig",
    "UserError",
    "linear_problem",
    "merger_problem",
    "merger_tokens",
    "solve",
    "train",
]
