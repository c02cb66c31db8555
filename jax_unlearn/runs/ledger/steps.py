"""What is named of each request after each entry of a ledger."""

from collections.abc import Callable, Sequence

from jax_unlearn.models.lora import NO_CHANGE, LoraAdapter
from jax_unlearn.runs.ledger.named import Probes
from jax_unlearn.runs.ledger.requests import Divided, Ledger, Request, active, divide
from jax_unlearn.runs.ledger.source import extracted_of
from jax_unlearn.runs.run_directory import Metrics

Solve = Callable[[Sequence[Request]], LoraAdapter]


CURE = "leave out --steps"


def check_steps(ledger: Ledger) -> None:
    """Check that the requests can be compared after every entry, before anything is fitted.

    Raises:
        UserError: the requests up to an entry, or all together, leave a side without images.
    """
    every, _ = requested(ledger)
    for number in range(1, len(ledger.entries) + 1):
        if now := active(ledger.entries[:number]):
            requests = [every[id] for id in now]
            divide(requests, ledger.preserve, f"the requests up to entry {number}", CURE)


def requested(ledger: Ledger) -> tuple[dict[str, Request], Divided]:
    """All requests by id, also withdrawn ones, and the images divided by all of them."""
    every = {id: ledger.request(id) for id in dict.fromkeys(e.id for e in ledger.entries[1:])}
    who = "all requests of the ledger together"
    return every, divide([*every.values()], ledger.preserve, who, CURE)


def steps(ledger: Ledger, solve: Solve, last: LoraAdapter) -> Metrics:
    """Entries of metrics.json: the concepts of all requests by id, and for each entry the share of
    every request's held-out images that a probe names after it.

    Also of requests that are not asked for yet, or withdrawn. The probes are the same for all
    entries. A set of requests that was active before is not solved again.

    Args:
        ledger: the ledger.
        solve: gives the adapter for some requests.
        last: the adapter after the last entry.

    Raises:
        UserError: as `check_steps`.
    """
    every, together = requested(ledger)
    probes = Probes(extracted_of(together, ledger.tower, ledger.config))
    adapters = {(): NO_CHANGE, tuple(ledger.active()): last}
    found: list[Metrics] = []
    for number, entry in enumerate(ledger.entries, 1):
        now = tuple(active(ledger.entries[:number]))
        if now not in adapters:
            adapters[now] = solve([every[id] for id in now])
        rows = probes.of_requests(adapters[now], [1.0] * len(every))
        found.append(
            {
                "entry": number,
                "kind": entry.kind,
                "id": entry.id,
                "active": list(now),
                "named": {row["id"]: row["named_after"] for row in rows},
            }
        )
    return {"concepts": {id: one.concept for id, one in every.items()}, "steps": found}
