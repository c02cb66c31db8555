"""The commands sweep and evaluate."""

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

import porting
from jax_unlearn.data.dataset import Dataset, collect
from jax_unlearn.data.images import ImageFile
from jax_unlearn.evaluate.judges import judge_of
from jax_unlearn.evaluate.vlm.benchmarks import read_benchmark
from jax_unlearn.evaluate.vlm.model import need_torch
from jax_unlearn.evaluate.vlm.settings import AskSettings
from jax_unlearn.features.extracted import Extracted, check_features
from jax_unlearn.features.samples import SampleFeatures, Sides
from jax_unlearn.features.statistics_file import FILE, read_statistics
from jax_unlearn.runs.exam import exam_of, examine, examine_published, loaded
from jax_unlearn.runs.ledger.fitting import fitting_of
from jax_unlearn.runs.model_card import write_card
from jax_unlearn.runs.pipeline import open_source, prepared_run
from jax_unlearn.runs.report.sweep_files import write_tradeoff
from jax_unlearn.runs.run_directory import (
    Metrics,
    check_run,
    save_digests,
    save_metrics,
    write_config,
)
from jax_unlearn.runs.saved_statistics import protect, unsaved_statistics, write_statistics
from jax_unlearn.runs.settings.config import RunConfig, build, read_config
from jax_unlearn.runs.settings.sweep_config import SweepConfig
from jax_unlearn.runs.sweep import TradeOff, explore
from jax_unlearn.runtime import processes
from jax_unlearn.runtime.atomic_files import fresh_directory
from jax_unlearn.runtime.digests import read_sealed
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.used_if import option


def sweep(config: SweepConfig, console: Console, start: RunConfig | None = None) -> TradeOff | None:
    """Fit and score many settings; write a table, a plot and the config of the chosen setting.

    Also saves the statistics, if the settings ask for it, so that `run --statistics` can fit the
    chosen setting. Only process 0 writes; the others return None.

    Raises:
        UserError, TerminatedError: see `run`.
    """
    with prepared_run(config, console, start) as prepared:
        extracted = prepared.source.extract(prepared.snapshots.stage)
        check_features(extracted)
        if processes.index() > 0:
            return None
        linears = prepared.source.stored_linears()
        # The source's config has lists of names read from their files.
        config = build(SweepConfig, {}, prepared.source.config)
        judge = judge_of(extracted, config.samples)
        found = explore(extracted, judge, config, console, fitting_of(extracted))
        with fresh_directory(config.execution.out, config.execution.overwrite) as out:
            write_tradeoff(out, found)
            chosen = asdict(found.chosen.setting)
            write_config(out, config.run_config().replace(**chosen))
            saved = write_statistics(out, extracted, config)
            save_digests(out, linears)
            protect(out, config.samples)
        if line := unsaved_statistics(saved):
            print(line, file=sys.stderr)
        return found


def evaluate(
    run_dir: Path,
    vlm: bool,
    questions: Path | None,
    console: Console,
    checkpoint: Path | None = None,
    asking: AskSettings | None = None,
    **how: Any,
) -> Metrics:
    """Evaluate an existing run again.

    The run's features are read from its statistics.safetensors; without that file the tower is run
    again.

    Args:
        run_dir: directory of the run.
        vlm: also ask the Hugging Face model.
        questions: JSON file of questions for it, or a published benchmark; by default that of the
            run, or questions generated from the class names.
        console: where progress is shown.
        checkpoint: where the run's checkpoint is now, if it was moved.
        asking: how the model is asked.
        how: settings of the tower that replace those of the run, if not None.

    Returns:
        The updated metrics.

    Raises:
        UserError: `run_dir` is not a run, its images or checkpoint are missing or have changed,
            torch is missing for `vlm`, or a setting of the tower is given but no tower is run.
    """
    config, asking = read_config(run_dir), asking or AskSettings()
    asking.check()
    if checkpoint is not None:
        if not vlm and (run_dir / FILE).is_file():
            raise no_tower("checkpoint", run_dir / FILE)
        config = config.replace(checkpoint=checkpoint)
    adapter = check_run(run_dir, config)
    metrics: Metrics = read_sealed(run_dir / "metrics.json")
    given = {name: value for name, value in how.items() if value is not None}
    questions = questions or config.samples.questions
    if vlm and porting.is_clip(config.samples.checkpoint):
        raise UserError("--vlm: asks a language model, and CLIP has none; leave it out")
    if vlm:
        need_torch()
    extracted = extracted_again(run_dir, config, metrics["samples"]["fingerprint"], given, console)
    judge = judge_of(extracted, config.samples)
    benchmark = read_benchmark(questions) if vlm and questions else None
    # The readers name the neighbours, which are not needed to check the questions.
    exam = exam_of(extracted, [], questions) if vlm and benchmark is None else None
    with console.status("Evaluating on the held-out samples"):
        metrics |= judge.evaluate(adapter)
    entries: Metrics = {}
    files: dict[str, str] = {}
    if exam is not None:
        exam.neighbours = metrics["neighbours"]
        entries, files = examine(exam, loaded(run_dir, config, asking, console), asking, console)
    elif benchmark is not None:
        asked = loaded(run_dir, config, asking, console)
        entries, files = examine_published(benchmark, asked, asking, console)
    metrics |= entries
    pictures = judge.pictures() if config.execution.pictures else []
    save_metrics(run_dir, read_config(run_dir), metrics, pictures, files)
    write_card(run_dir, config, metrics)
    return metrics


def extracted_again(
    run_dir: Path, config: RunConfig, fingerprint: str, how: dict[str, Any], console: Console
) -> Extracted:
    """The features of a run, from its statistics file or by another pass over the same samples.

    Args:
        run_dir: directory of the run.
        config: settings of the run.
        fingerprint: fingerprint of the run's samples.
        how: settings of the tower that replace those of the run.
        console: where progress is shown.

    Raises:
        UserError: the samples have changed, or `how` is given but no tower is run.
    """
    file = run_dir / FILE
    if how and file.is_file():
        raise no_tower(min(how), file)
    changed = UserError(f"{run_dir}: its samples or its seed have changed since; run again")
    # The samples of a run that used --statistics may no longer exist.
    on_statistics = config.samples.statistics is not None
    if file.is_file() or on_statistics:
        if file.is_file():
            extracted = read_statistics(run_dir).extracted()
        else:
            extracted = open_source(config.replace(**how), console, start=config).extract()
        unchanged = extracted.counts["fingerprint"] == fingerprint
        if unchanged and not on_statistics:
            dataset = collect(config.samples, config.solver.seed)
            unchanged = dataset.fingerprint() == fingerprint
            extracted = with_files(extracted, dataset)
        if not unchanged:
            raise changed
        return extracted
    source = open_source(config.replace(**how), console, start=config)
    if source.dataset.fingerprint() != fingerprint:
        raise changed
    return source.extract()


def no_tower(name: str, file: Path) -> UserError:
    """The error of a setting of the tower where none is run."""
    return UserError(
        f"{option(name)}: has no effect here: no tower is run, because the features are read from "
        f"{file}; leave it out"
    )


def with_files(extracted: Extracted, dataset: Dataset[Any]) -> Extracted:
    """Replace the held-out samples by those of the data set, which may be in shards."""
    here = {(s.name, s.label): s for s in dataset.samples() if isinstance(s, ImageFile)}

    def side(features: SampleFeatures) -> SampleFeatures:
        files = (here.get((s.name, s.label), s) if isinstance(s, ImageFile) else s
                 for s in features.files)  # fmt: skip
        return replace(features, files=tuple(files))

    test = Sides(side(extracted.test.forget), side(extracted.test.preserve))
    return replace(extracted, test=test)
