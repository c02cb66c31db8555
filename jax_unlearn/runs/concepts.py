"""The input of the stand-in solver, from the features and the settings of a run."""

from jax_unlearn.features.extracted import Extracted
from jax_unlearn.objective.problem import STRENGTHS, adapted_in
from jax_unlearn.objective.stand_in import StandInRows, preserve_grams, stand_in_rows
from jax_unlearn.runs.settings.config import RunConfig
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.solvers.stand_in import preserve_weight


def concepts_of(extracted: Extracted, config: RunConfig) -> list[dict[str, StandInRows]]:
    """The rows of each adapted Linear, for each concept.

    Raises:
        UserError: the features were extracted for another target.
    """
    adapted = adapted_in(config.objective, extracted)
    if not extracted.stand_ins:
        raise UserError(
            "--target stand_in: these features have no stand-in images; extract with the same "
            "--target"
        )
    kept = preserve_grams(extracted, adapted)
    return [stand_in_rows(extracted, one, kept) for one in extracted.stand_ins]


def preserve_weight_of(config: RunConfig) -> float:
    """λ of the stand-in solver, from --strength or the weights of the loss."""
    strength = config.objective.strength
    if strength:
        return STRENGTHS[strength]
    return preserve_weight(config.solver.lambda_forget, config.solver.lambda_preserve)
