"""Make a vision-language model forget something it sees, by a low-rank change of its Merger."""

from jax_unlearn.models.lora import LoraAdapter, LoraPair
from jax_unlearn.objective.linear import LinearProblem, linear_problem
from jax_unlearn.objective.merger import MergerProblem, MergerTokens, merger_problem, merger_tokens
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.version import VERSION
from jax_unlearn.solvers.adam.loop import train
from jax_unlearn.solvers.closed_form.solve import solve
from jax_unlearn.solvers.config import SolverConfig
from jax_unlearn.solvers.result import Result

__version__ = VERSION
# SolverConfig's former name, kept importable.
TrainConfig = SolverConfig

__all__ = [
    "LinearProblem",
    "LoraAdapter",
    "LoraPair",
    "MergerProblem",
    "MergerTokens",
    "Result",
    "SolverConfig",
    "TrainConfig",
    "UserError",
    "__version__",
    "linear_problem",
    "merger_problem",
    "merger_tokens",
    "solve",
    "train",
]
