"""The files of a run's directory: config.json, metrics.json, history.jsonl, adapter/."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax_unlearn.data.images import ImageFile
from jax_unlearn.models.lora import LoraAdapter
from jax_unlearn.objective.loss import TERMS
from jax_unlearn.runs.report.page import report
from jax_unlearn.runs.settings.config import RunConfig, to_json
from jax_unlearn.runtime.atomic_files import replace_files
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.solvers.result import Result
from jax_unlearn.solvers.until_forgotten import ForgetSearch

Metrics = dict[str, Any]


def write_config(directory: Path, config: RunConfig) -> None:
    (directory / "config.json").write_text(to_text(to_json(config)))


def describe_search(found: ForgetSearch) -> Metrics:
    """The result of the search over λ_f, for metrics.json."""
    return {
        "lambda_forget": found.lambda_forget,
        "trials": found.trials,
        "fall": found.fall,
        "reached": found.reached,
    }


def objective(result: Result) -> Metrics:
    """The chosen adapter's terms and epoch, the initial loss, and the lower bound if known."""
    row = result.history[result.epoch]
    terms = {name: row[name] for name in (*TERMS, "total")}
    found = {**terms, "initial": result.history[0]["total"], "epoch": result.epoch}
    if result.lower_bound is not None:
        # The gap to the lower bound over adapters of any rank.
        gap = row["total"] - result.lower_bound
        found |= {"lower_bound": result.lower_bound, "gap": gap}
    return found


def describe_adapter(adapter: LoraAdapter, directory: Path) -> Metrics:
    return {
        "rank": adapter.rank,
        "alpha": adapter.alpha,
        "targets": list(adapter.pairs),
        "bias": any(pair.bias is not None for pair in adapter.pairs.values()),
        "bytes": sum(file.stat().st_size for file in directory.iterdir()),
    }


def save_metrics(
    directory: Path, config: RunConfig, metrics: Metrics, pictures: Sequence[Sequence[ImageFile]]
) -> None:
    """Write metrics.json and the report; both are rendered before either is replaced."""
    metrics["warnings"] = checks_that_mean_nothing(metrics)
    page = report(directory, config, metrics, pictures)
    replace_files(directory, {"metrics.json": to_text(metrics), "report.html": page})


def checks_that_mean_nothing(metrics: Metrics) -> list[str]:
    """A warning for each check of forgetting whose "before" is no better than chance."""
    by = "zero-shot classification" if "zero_shot" in metrics else "a linear probe"
    forget = metrics["forget"]
    checks = [(by, forget["accuracy_before"], forget["chance"], "--concept")]
    for named in metrics["vlm"]["before"]["named"] if "vlm" in metrics else ():
        what = f"the model's answer to “{named['question']}”"
        checks.append((what, named["share"], named["chance"], "--questions"))
    return [
        f"without the adapter {what} names the concept in {before:.1%} of the images, and a guess "
        f"in {chance:.1%}: this check says nothing about forgetting; choose another {option}"
        for what, before, chance, option in checks
        if before is not None and before <= chance
    ]


def to_text(content: Any) -> str:
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run again") from error
