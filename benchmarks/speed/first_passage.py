"""First passages: when a training first reaches a goal, and which learning rate is first."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float

from benchmarks.speed.contestants import Scan
from jax_unlearn.models.lora import LoraAdapter


class Lap(NamedTuple):
    """A reading of a training: seconds since its start, steps, and lowest objective so far."""

    seconds: float
    epoch: int
    objective: float


@dataclass(frozen=True)
class Passage:
    """The first lap whose objective is at most a goal, and its adapter, if requested."""

    lap: Lap
    adapter: LoraAdapter | None


class Descent(Protocol):
    """A training whose objective is read every `unit` steps."""

    unit: int

    def begin(self, learning_rate: float) -> None: ...

    def advance(self, steps: int) -> None: ...

    def objective(self) -> float: ...

    def best(self) -> LoraAdapter: ...


def laps(run: Descent, learning_rate: float, epochs: int) -> Iterator[Lap]:
    """Restart the training and yield a lap after every `unit` steps."""
    begun = perf_counter()
    run.begin(learning_rate)
    yield Lap(perf_counter() - begun, 0, run.objective())
    for epoch in range(run.unit, epochs + 1, run.unit):
        run.advance(run.unit)
        objective = run.objective()
        yield Lap(perf_counter() - begun, epoch, objective)


def first_passages(
    looks: Iterable[Lap],
    goals: Mapping[str, float],
    adapter: Callable[[], LoraAdapter] | None = None,
) -> dict[str, Passage | None]:
    """The first passage of each goal; None if it is never reached.

    No lap is taken after the last goal is reached.

    Args:
        looks: the laps.
        goals: objectives by name.
        adapter: returns the adapter of the current lap.
    """
    found: dict[str, Passage | None] = dict.fromkeys(goals)
    for lap in looks:
        for name, goal in goals.items():
            if found[name] is None and lap.objective <= goal:
                found[name] = Passage(lap, adapter() if adapter else None)
        if all(found.values()):
            break
    return found


def epoch_of(objectives: Float[np.ndarray, " epochs"], goal: float) -> int | None:
    """The first epoch whose objective is at most the goal; None if there is none."""
    there = objectives <= goal
    return int(there.argmax()) if there.any() else None


@dataclass(frozen=True)
class Tuning:
    """Objectives by epoch and best adapter of each learning rate, and the seconds of the tuning."""

    histories: dict[float, Float[np.ndarray, " epochs"]]
    adapters: dict[float, LoraAdapter]
    seconds: float

    def epochs(self, goals: Mapping[str, float]) -> dict[float, dict[str, int | None]]:
        """The epoch of the first passage of each goal, by rate."""
        return {
            rate: {name: epoch_of(history, goal) for name, goal in goals.items()}
            for rate, history in self.histories.items()
        }

    def chosen(self, goals: Mapping[str, float]) -> dict[str, float]:
        """The rate that reaches each goal first, or with the lowest objective if none does."""

        def order(rate: float, goal: float) -> tuple[Any, ...]:
            history = self.histories[rate]
            epoch = epoch_of(history, goal)
            return (epoch is None, history.min() if epoch is None else epoch)

        return {
            name: min(self.histories, key=lambda rate: order(rate, goal))
            for name, goal in goals.items()
        }


def tune(run: Scan, rates: Sequence[float], goal: float, epochs: int) -> Tuning:
    """Train with each rate until the goal, or for as many steps as the fastest rate so far needed.

    A rate that reaches an easier goal first does so in fewer steps, so none is missed.
    """
    histories, adapters = {}, {}
    begun, limit = perf_counter(), epochs
    for rate in rates:
        for lap in laps(run, rate, limit):
            if lap.objective <= goal:
                limit = lap.epoch
                break
        histories[rate], adapters[rate] = run.history(), run.best()
    return Tuning(histories, adapters, perf_counter() - begun)
