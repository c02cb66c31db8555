"""Log a finished run to TensorBoard or Weights & Biases, if asked."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jax_unlearn.runs.run_directory import Metrics
from jax_unlearn.runs.settings.config import RunConfig, Tracker, to_json
from jax_unlearn.runtime.errors import UserError

# The package of each tracker, which the extra of its name installs.
PACKAGES: dict[Tracker, str] = {"tensorboard": "tensorboardX", "wandb": "wandb"}
History = Sequence[dict[str, Any]]


def check_installed(trackers: Sequence[Tracker]) -> None:
    """Check that the packages of the trackers are installed, before any work is done.

    Raises:
        UserError: one is not installed.
    """
    # Imported here because few runs are tracked.
    from importlib.util import find_spec

    for tracker in trackers:
        if find_spec(PACKAGES[tracker]) is None:
            raise UserError(
                f"--track {tracker}: {PACKAGES[tracker]} is not installed; "
                f"pip install 'jax-unlearn[{tracker}]'"
            )


def track(config: RunConfig, out: Path, history: History, metrics: Metrics) -> None:
    """Log settings, the loss by epoch or iteration, and the metrics, as `--track` asks.

    Args:
        config: the settings.
        out: directory that becomes that of the run.
        history: the rows of history.jsonl.
        metrics: the content of metrics.json.
    """
    log: dict[Tracker, Callable[..., None]] = {
        "tensorboard": partial(to_tensorboard, out / "tensorboard"),
        "wandb": partial(to_wandb, config.execution.out.name),
    }
    for tracker in config.execution.track:
        log[tracker](to_json(config), history, dict(numbers(metrics)))


def numbers(tree: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a tree of metrics, by their path; lists are left out."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from numbers(value, f"{prefix}/{name}" if prefix else name)
    elif isinstance(tree, int | float) and not isinstance(tree, bool):
        yield prefix, float(tree)


def to_tensorboard(
    folder: Path, settings: dict[str, Any], history: History, final: dict[str, float]
) -> None:
    from tensorboardX import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        writer.add_text("settings", "\n".join(f"    {k}: {v}" for k, v in settings.items()))
        for step, row in enumerate(history):
            for name, value in numbers(row):
                writer.add_scalar(f"training/{name}", value, step)
        for name, value in final.items():
            writer.add_scalar(name, value, len(history))


def to_wandb(
    name: str, settings: dict[str, Any], history: History, final: dict[str, float]
) -> None:
    import wandb

    with wandb.init(project="jax-unlearn", name=name, config=settings) as run:
        for step, row in enumerate(history):
            run.log({f"training/{name}": value for name, value in numbers(row)}, step=step)
        run.summary.update(final)
