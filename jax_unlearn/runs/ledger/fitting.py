"""How the requests of a ledger's run are fitted, and what metrics.json says of each."""

from jax_unlearn.features.extracted import Extracted
from jax_unlearn.features.requests import LedgerFacts
from jax_unlearn.models.lora import LoraAdapter
from jax_unlearn.objective.targets import STAND_IN
from jax_unlearn.runs.fit_adapter import Fitting
from jax_unlearn.runs.ledger.combine import JointFit, SumOfFits
from jax_unlearn.runs.ledger.named import Probes
from jax_unlearn.runs.ledger.options import REASONS
from jax_unlearn.runs.run_directory import Metrics
from jax_unlearn.runs.settings.config import RunConfig
from jax_unlearn.runtime.errors import UserError


def check_combination(how: LedgerFacts, config: RunConfig) -> None:
    """Check that requests can be combined so with these settings.

    Args:
        how: how they are combined.
        config: the settings.

    Raises:
        UserError: they cannot.
    """
    onto = config.objective.target == STAND_IN
    if onto and how["combine"] == "joint" and not how["equal"]:
        raise UserError(
            "--combine joint: with --target stand_in no request can be moved further than the "
            "others; give --equal, or leave it out"
        )
    if config.solver.optimizer == "leace":
        raise UserError(f"--optimizer leace: cannot be used here: {REASONS['optimizer']}")


def fitting_of(extracted: Extracted) -> Fitting | None:
    """How the requests of a ledger are fitted, as its facts say; None for other features."""
    requests = extracted.requests
    if requests is None:
        return None
    how, probes = requests.ledger, Probes(extracted)
    named = None if how["equal"] else probes.named_in_training
    joint = how["combine"] == "joint"
    fit = JointFit(named) if joint else SumOfFits(how["rank_after"], named)

    def describe(adapter: LoraAdapter) -> Metrics:
        measured = probes.of_requests(adapter, fit.strengths)
        return {"ledger": {**how, "requests": measured}}

    return Fitting(fit, describe)
