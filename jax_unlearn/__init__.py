"""Make a vision-language model forget something it sees, by a low-rank change of its Merger.

Names are imported at first use, since JAX and the solvers take a second.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jax_unlearn.models.lora import LoraAdapter, LoraPair
    from jax_unlearn.objective.linear import LinearProblem, linear_problem
    from jax_unlearn.objective.merger import (
        MergerProblem,
        MergerTokens,
        merger_problem,
        merger_tokens,
    )
    from jax_unlearn.runs.api import Answers, Run, unlearn
    from jax_unlearn.runtime.errors import UserError
    from jax_unlearn.solvers.adam.loop import train
    from jax_unlearn.solvers.closed_form.solve import solve
    from jax_unlearn.solvers.config import SolverConfig
    from jax_unlearn.solvers.config import SolverConfig as TrainConfig
    from jax_unlearn.solvers.result import Result

    __version__: str

# The module that defines each public name.
HOMES = {
    "jax_unlearn.models.lora": ("LoraAdapter", "LoraPair"),
    "jax_unlearn.objective.linear": ("LinearProblem", "linear_problem"),
    "jax_unlearn.objective.merger": (
        "MergerProblem",
        "MergerTokens",
        "merger_problem",
        "merger_tokens",
    ),
    "jax_unlearn.runs.api": ("Answers", "Run", "unlearn"),
    "jax_unlearn.runtime.errors": ("UserError",),
    "jax_unlearn.solvers.adam.loop": ("train",),
    "jax_unlearn.solvers.closed_form.solve": ("solve",),
    "jax_unlearn.solvers.config": ("SolverConfig",),
    "jax_unlearn.solvers.result": ("Result",),
}
HOME_OF = {name: module for module, names in HOMES.items() for name in names}

__all__ = [
    "Answers",
    "LinearProblem",
    "LoraAdapter",
    "LoraPair",
    "MergerProblem",
    "MergerTokens",
    "Result",
    "Run",
    "SolverConfig",
    "TrainConfig",
    "UserError",
    "__version__",
    "linear_problem",
    "merger_problem",
    "merger_tokens",
    "solve",
    "train",
    "unlearn",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        name, module = "VERSION", "jax_unlearn.runtime.version"
        return getattr(import_module(module), name)
    # SolverConfig's former name, kept importable.
    defined = "SolverConfig" if name == "TrainConfig" else name
    if defined not in HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(HOME_OF[defined]), defined)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
