"""How the requests of a ledger's run are fitted, and what metrics.json says of each."""

from jax_unlearn.features.extracted import Extracted
from jax_unlearn.features.requests import LedgerFacts
from jax_unlearn.objective.targets import STAND_IN
from jax_unlearn.runs.fit_adapter import FittedAdapter, Fitting
from jax_unlearn.runs.ledger.combine import JointFit, SumOfFits
from jax_unlearn.runs.ledger.named import Probes
from jax_unlearn.runs.ledger.options import REASONS
from jax_unlearn.runs.run_directory import Metrics
from jax_unlearn.runs.settings.config import RunConfig
from jax_unlearn.runtime.errors import UserError


def can_be_combined(how: LedgerFacts, config: RunConfig) -> bool:
    """Whether requests can be combined so: those that are moved onto stand-ins not in one fit with
    a strength for each."""
    onto = config.objective.target == STAND_IN
    return not onto or how["combine"] == "sum" or how["equal"]


def check_requests(extracted: Extracted, config: RunConfig) -> None:
    """Check that the requests of a ledger's run, if the features are of one, can be fitted with
    other settings.

    Raises:
        UserError: they cannot.
    """
    if extracted.requests is None:
        return
    assert extracted.requests.ledger is not None
    run = config.samples.statistics
    if config.objective.target == STAND_IN and not extracted.stand_ins:
        raise UserError(
            f"--target stand_in: {run} has no images to move its requests onto; begin the ledger "
            "with `ledger init --target stand_in`"
        )
    if not can_be_combined(extracted.requests.ledger, config):
        raise UserError(
            f"--target stand_in: {run} was solved with --combine joint, where no request can be "
            "moved further than the others; solve the ledger with --equal too"
        )
    if config.solver.optimizer == "leace":
        raise UserError(f"--optimizer leace: cannot be used here: {REASONS['optimizer']}")


def fitting_of(extracted: Extracted) -> Fitting | None:
    """How the requests of a ledger are fitted, as its facts say; None for other features."""
    requests = extracted.requests
    if requests is None:
        return None
    assert requests.ledger is not None
    how, probes = requests.ledger, Probes(extracted)
    named = None if how["equal"] else probes.named_in_training
    joint = how["combine"] == "joint"
    fit = JointFit(named) if joint else SumOfFits(how["rank_after"], named)

    def describe(fitted: FittedAdapter) -> Metrics:
        measured = probes.of_requests(fitted.found.result.adapter, fitted.strengths)
        return {"ledger": {**how, "requests": measured}}

    return Fitting(fit, describe)
