"""The files of a run's directory: config.json, metrics.json, history.jsonl, adapter/."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import porting
from jax_unlearn.data.images import ImageFile
from jax_unlearn.evaluate.vlm.doubts import doubts
from jax_unlearn.models.lora import LoraAdapter
from jax_unlearn.objective.loss import TERMS
from jax_unlearn.runs.report.page import report
from jax_unlearn.runs.settings.config import RunConfig, to_json
from jax_unlearn.runtime.atomic_files import replace_files
from jax_unlearn.runtime.digests import check_digests, read_sealed, sealed, to_text, write_digests
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.hub import hub_id
from jax_unlearn.runtime.outputs import ADAPTER_FILES, ANSWERS
from jax_unlearn.runtime.text_files import read_text
from jax_unlearn.solvers.result import Result
from jax_unlearn.solvers.until_forgotten import ForgetSearch

Metrics = dict[str, Any]
# Fall of the accuracy on images to keep from which a sum of requests has a warning.
FALL = 0.02


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
    directory: Path,
    config: RunConfig,
    metrics: Metrics,
    pictures: Sequence[Sequence[ImageFile]],
    files: Mapping[str, str] | None = None,
) -> None:
    """Write metrics.json, the report and other files; all are made before one is replaced.

    Args:
        directory: the run's directory.
        config: its settings.
        metrics: the content of metrics.json.
        pictures: images for the report.
        files: texts of the other files by name.

    Raises:
        UserError: a number in `metrics` is not finite; names it.
    """
    if where := not_finite(metrics):
        raise UserError(
            f"{config.execution.out}: {where} is not finite, so the features are too large to "
            "measure with; check the weights, and the statistics if they are an earlier run's"
        )
    metrics["warnings"] = checks_that_mean_nothing(metrics)
    page = report(directory, config, metrics, pictures, (files or {}).get(ANSWERS))
    texts = {"metrics.json": sealed(metrics), "report.html": page}
    replace_files(directory, {**(files or {}), **texts})


def save_report(
    directory: Path, config: RunConfig, pictures: Sequence[Sequence[ImageFile]]
) -> None:
    """Render the report again, with what other commands have measured."""
    metrics, answers = read_sealed(directory / "metrics.json"), directory / ANSWERS
    said = read_text(answers) if answers.is_file() else None
    page = report(directory, config, metrics, pictures, said)
    replace_files(directory, {"report.html": page})


def checks_that_mean_nothing(metrics: Metrics) -> list[str]:
    """A warning for each check of forgetting that says nothing, or less than it seems to."""
    by = "zero-shot classification" if "zero_shot" in metrics else "a linear probe"
    forget = metrics["forget"]
    checks = [(by, forget["accuracy_before"], forget["chance"], "--concept")]
    vlm = metrics.get("vlm")
    scored = vlm["before"] if vlm else {"named": [], "confirmed": []}
    for named in scored["named"] + scored["confirmed"]:
        what = f"the model's answer to “{named['question']}”"
        checks.append((what, named["share"], named["chance"], "--questions"))
    of_answers = doubts(vlm, metrics["samples"]["forget_held_out"]) if vlm else []
    flattered = [
        f"{one['concept']}: only {min(one['images'].values())} held-out images of it or of "
        f"{one['counterpart']}; the readers that look for it again were fitted on the images of "
        f"the edit, which flatters it{expectation(one)}"
        for one in metrics.get("reidentification", ())
        if not one["fresh"]
    ]
    at_chance = [
        f"without the adapter {what} names the concept in {before:.1%} of the images, and a guess "
        f"in {chance:.1%}: this check says nothing about forgetting; choose another {option}"
        for what, before, chance, option in checks
        if before is not None and before <= chance
    ]
    of_ledger = [*mixtures(metrics), *added_up(metrics)]
    return [*of_answers, *flattered, *beyond(metrics), *of_ledger, *at_chance]


def added_up(metrics: Metrics) -> list[str]:
    """That a sum of many requests costs images to keep."""
    ledger, kept = metrics.get("ledger"), metrics["preserve"]
    fall = kept["accuracy_before"] - kept["accuracy_after"]
    if not ledger or ledger["combine"] != "sum" or len(ledger["requests"]) < 2 or fall <= FALL:
        return []
    return [
        f"the changes of {len(ledger['requests'])} requests add up on what is to be kept, of which "
        f"{kept['accuracy_after']:.1%} is read right, {kept['accuracy_before']:.1%} before; try "
        f"`ledger solve {ledger['directory']} --combine joint`, which weighs it once for all"
    ]


def mixtures(metrics: Metrics) -> list[str]:
    """That the rows of a ledger without image means are of no images."""
    if metrics.get("ledger", {}).get("image_means", True):
        return []
    return [
        "the ledger keeps no image means: all shares are of rows that have the mean and covariance "
        "of each class, not of images; `evaluate --vlm` asks about images"
    ]


def beyond(metrics: Metrics) -> list[str]:
    """What was looked at for some concepts alone, because there are so many."""
    looked, asked = len(metrics.get("reidentification", ())), metrics.get("concepts", 0)
    if asked <= looked:
        return []
    return [
        f"readers looked again for the first {looked} of {asked} concepts, which take up to a "
        "second each; nothing is known of the others"
    ]


def expectation(found: Metrics) -> str:
    """What a reader of fresh images can be expected to find, where it is known."""
    if "expected_linear" not in found:
        return ""
    return f": with many fresh images a linear reader may find it in {found['expected_linear']:.0%}"


def save_digests(directory: Path, linears: Mapping[str, str]) -> None:
    """Write digests.json: of the files that later commands read and that never change.

    metrics.json, which `evaluate` replaces, and statistics.safetensors have their own.

    Args:
        directory: the directory of a run or a sweep.
        linears: digest of each adapted Linear of the checkpoint.
    """
    there = ("config.json", "history.jsonl", *(f"adapter/{name}" for name in sorted(ADAPTER_FILES)))
    write_digests(directory, [name for name in there if (directory / name).is_file()], linears)


def check_run(directory: Path, config: RunConfig) -> LoraAdapter:
    """Check the files of a run, and the adapted Linears of its checkpoint if that is there.

    Returns:
        The run's adapter.

    Raises:
        UserError: a file or the checkpoint has changed since the run, or the adapter is not finite.
    """
    names = [f"adapter/{name}" for name in sorted(ADAPTER_FILES)]
    then = check_digests(directory, "config.json", "history.jsonl", *names)
    checkpoint = config.samples.checkpoint
    # The files of a commit on the hub do not change.
    if not hub_id(checkpoint) and checkpoint.is_dir():
        now = porting.linear_digests(checkpoint, then)
        if other := [name for name in then if now[name] != then[name]]:
            raise UserError(
                f"{checkpoint}: {', '.join(other)} changed since {directory} was made; restore the "
                "checkpoint, or run again"
            )
    adapter = porting.load_peft(directory / "adapter")
    check_finite(adapter, directory / "adapter")
    return adapter


def not_finite(part: Any, where: str = "") -> str:
    """The place of a number in a tree of JSON that is not finite; empty if there is none."""
    if isinstance(part, float):
        return "" if math.isfinite(part) else where.removeprefix(".")
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(part, Mapping):
        items = part.items()
    elif isinstance(part, list | tuple):
        items = enumerate(part)
    return next(filter(None, (not_finite(value, f"{where}.{key}") for key, value in items)), "")


def check_finite(adapter: LoraAdapter, directory: Path) -> None:
    """Refuse an adapter with a value that is not finite.

    Raises:
        UserError: there is one; names its Linear.
    """
    for name, pair in adapter.pairs.items():
        if not all(np.isfinite(part).all() for part in jax.tree.leaves(pair)):
            raise UserError(f"{directory}: {name} has a value that is not finite; run again")
