"""Fit the requests of a ledger: one by one against the original and added up, or jointly."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float64
from rich.console import Console

from jax_unlearn.evaluate.judges import splits
from jax_unlearn.evaluate.score import fit_probes
from jax_unlearn.features.extracted import Extracted
from jax_unlearn.models.lora import LoraAdapter, LoraPair
from jax_unlearn.objective.linear import describe
from jax_unlearn.objective.loss import loss
from jax_unlearn.objective.problem import problems
from jax_unlearn.runs.fit_adapter import FittedAdapter, fit_adapter
from jax_unlearn.runs.ledger.requests import Divided
from jax_unlearn.runs.ledger.source import only
from jax_unlearn.runs.run_directory import Metrics
from jax_unlearn.runs.settings.config import RunConfig
from jax_unlearn.runtime.snapshots import Stage
from jax_unlearn.solvers.result import Result, history_of
from jax_unlearn.solvers.until_forgotten import ForgetSearch, fall_of

Combine = Literal["sum", "joint"]
Factors = tuple[Float64[np.ndarray, "e r"], Float64[np.ndarray, "r d"]]


class SumOfFits:
    """Fits each request alone and adds the changes up; called as `fit_adapter`.

    Args:
        divided: the images of the requests.
        rank_after: rank to which the sum is cut; by default that of the sum.
    """

    def __init__(self, divided: Divided, rank_after: int | None) -> None:
        self.divided, self.rank_after = divided, rank_after

    def __call__(
        self,
        extracted: Extracted,
        config: RunConfig,
        console: Console,
        stage: Stage | None,
        mesh: Mesh | None,
    ) -> FittedAdapter:
        """Fit; each image counts for the first request that is about it."""
        owner = self.divided.owner[~self.divided.forget.held_out]
        fitted = [
            # Without snapshots, which are of one fit.
            fit_adapter(only(extracted, owner == number, config), config, console, None, mesh)
            for number in sorted({*owner.tolist()})
        ]
        found = [one.found for one in fitted]
        adapter = added([one.result.adapter for one in found], self.rank_after)
        result = scored(adapter, extracted, config, [one.result for one in found])
        strongest = max(one.lambda_forget for one in found)
        trials = sum(one.trials for one in found)
        reached = all(one.reached for one in found)
        search = ForgetSearch(result, strongest, trials, fall_of(result), reached)
        choose = config.solver.select == "held_out"
        fit, _ = problems(extracted, config.objective, config.solver.seed, choose)
        return FittedAdapter(search, describe(fit))


def scored(
    adapter: LoraAdapter, extracted: Extracted, config: RunConfig, parts: Sequence[Result]
) -> Result:
    """The loss of a sum over all images, before and after, and the time of its parts."""
    choose = config.solver.select == "held_out"
    fit, _ = problems(extracted, config.objective, config.solver.seed, choose)
    weights = config.solver.loss_weights()
    terms = [np.asarray(loss(one, fit, weights)[1]) for one in (config.solver.init(fit), adapter)]
    seconds = {name: sum(one.seconds.get(name, 0.0) for one in parts) for name in parts[0].seconds}
    stopped = next((one.stopped for one in parts if one.stopped), None)
    return Result(adapter, history_of(np.stack(terms), 0), 1, stopped, seconds)


def added(adapters: Sequence[LoraAdapter], rank_after: int | None = None) -> LoraAdapter:
    """The sum of low-rank changes: their factors side by side, or cut to a rank by an SVD.

    A sum of more ranks than the Linears allow is written with as many as they do, which loses
    nothing.

    Args:
        adapters: changes of the same Linears.
        rank_after: the largest rank of the sum.
    """
    factors = {name: stacked([(a.pairs[name], a.scale) for a in adapters])
               for name in adapters[0].pairs}  # fmt: skip
    full = sum(one.rank for one in adapters)
    most = max(min(b.shape[0], a.shape[1]) for b, a in factors.values())
    rank = min(full, most, rank_after or full)
    if rank < full:
        factors = {name: cut(b, a, rank) for name, (b, a) in factors.items()}
    pairs = {n: LoraPair(a.astype(np.float32), b.astype(np.float32))
             for n, (b, a) in factors.items()}  # fmt: skip
    return LoraAdapter(pairs, alpha=float(rank), rank=rank)


def stacked(pairs: Sequence[tuple[LoraPair, float]]) -> Factors:
    """Factors of the sum of scale · b @ a, in the given order."""
    assert all(pair.bias is None for pair, _ in pairs)
    b = [scale * np.asarray(pair.b, np.float64) for pair, scale in pairs]
    return np.concatenate(b, axis=1), np.concatenate(
        [np.asarray(pair.a, np.float64) for pair, _ in pairs]
    )


def cut(b: np.ndarray, a: np.ndarray, rank: int) -> Factors:
    """The nearest product of a rank to b @ a; missing directions are zeros."""
    left, upper = np.linalg.qr(b)
    right, lower = np.linalg.qr(a.T)
    u, sizes, v = np.linalg.svd(upper @ lower.T, full_matrices=False)
    kept = min(rank, len(sizes))
    root = np.sqrt(sizes[:kept])
    new_b, new_a = np.zeros((len(b), rank)), np.zeros((rank, a.shape[1]))
    new_b[:, :kept] = left @ u[:, :kept] * root
    new_a[:kept] = root[:, None] * (v[:kept] @ right.T)
    return new_b, new_a


def named(extracted: Extracted, adapter: LoraAdapter, divided: Divided) -> list[Metrics]:
    """For each request, the share of its held-out images that a linear probe names.

    The probe was fitted on the original embeddings; the worst projector counts. An image is named
    if its class is said to be one of the request's.
    """
    nothing = LoraAdapter({}, alpha=1.0, rank=1)
    probes = fit_probes(splits(extracted, extracted.train.image_means(), nothing))
    test = splits(extracted, extracted.test, adapter)
    said = {name: [probes[name].predict(x[split.is_forget]) for x in (split.before, split.after)]
            for name, split in test.items()}  # fmt: skip
    held_out = divided.forget.held_out
    found: list[Metrics] = []
    for number, request in enumerate(divided.requests):
        own = divided.of_request(number)
        classes = sorted({label for label, ours in zip(divided.forget.labels, own, strict=True)
                          if ours})  # fmt: skip
        shown = own[held_out]
        shares = [
            max(float(np.isin(both[when][shown], classes).mean()) for both in said.values())
            if shown.any() else None
            for when in (0, 1)
        ]  # fmt: skip
        found.append(
            {
                "id": request.id,
                "concept": request.concept,
                "classes": classes,
                "images": int((own & ~held_out).sum()),
                "held_out": int(shown.sum()),
                "named_before": shares[0],
                "named_after": shares[1],
            }
        )
    return found
