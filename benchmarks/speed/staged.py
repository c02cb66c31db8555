"""Run a command with its stages timed: what `benchmarks.speed.stages` starts as a process.

    python -m benchmarks.speed.staged BEGUN OUT COMMAND…

BEGUN is the time of the start, OUT the JSON file to write. A stage is a function that is wrapped;
its time is without that of the stages inside it.
"""

import importlib
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

REST, START = "everything else", "start Python, import"
# (stage, module, function as the module's callers find it).
STAGES = (
    ("list and divide the images", "jax_unlearn.runs.sources.qwen_images", "collect_images"),
    ("load the tower", "porting", "load_vision_tower"),
    ("passes of the tower", "jax_unlearn.features.extractor", "Extractor.extract"),
    ("targets and rows of the fit", "jax_unlearn.runs.fit_adapter", "problems"),
    ("solver", "jax_unlearn.runs.fit_adapter", "solve"),
    ("evaluation", "jax_unlearn.evaluate.judges", "ProbeJudge.evaluate"),
    ("statistics and digests", "jax_unlearn.runs.pipeline", "write_statistics"),
    ("statistics and digests", "jax_unlearn.runs.pipeline", "save_digests"),
    ("metrics, pictures and report", "jax_unlearn.runs.pipeline", "save_metrics"),
)
COMPILING = "/jax/core/compile/"


class Clock:
    """Seconds and CPU seconds (of all threads) of each stage."""

    def __init__(self, begun: float) -> None:
        self.spent: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self.spent[START] = [time.time() - begun, time.process_time()]
        self.stages, self.last = [REST], self.now()

    @staticmethod
    def now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def lap(self) -> None:
        """Add the time since the last lap to the stage that runs."""
        now, spent = self.now(), self.spent[self.stages[-1]]
        for i, (new, old) in enumerate(zip(now, self.last, strict=True)):
            spent[i] += new - old
        self.last = now

    def of(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            self.lap()
            self.stages.append(stage)
            try:
                return function(*arguments, **options)
            finally:
                self.lap()
                self.stages.pop()

        return timed


def main() -> None:
    begun, out = float(sys.argv[1]), Path(sys.argv[2])
    sys.argv = ["jax-unlearn", *sys.argv[3:]]
    import jax.monitoring

    from jax_unlearn.__main__ import main as command

    modules = [importlib.import_module(module) for _, module, _ in STAGES]
    clock, compiling = Clock(begun), [0.0]
    for (stage, _, name), place in zip(STAGES, modules, strict=True):
        owner, _, own = name.rpartition(".")
        at = getattr(place, owner) if owner else place
        setattr(at, own, clock.of(stage, getattr(at, own)))

    def programs(event: str, seconds: float, **_: Any) -> None:
        if event.startswith(COMPILING):
            compiling[0] += seconds

    jax.monitoring.register_event_duration_secs_listener(programs)
    command()
    clock.lap()
    facts = {
        "stages": clock.spent,
        "programs": compiling[0],
        "ended": time.time(),
    }
    out.write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
