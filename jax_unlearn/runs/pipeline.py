"""The pipeline of a run: open, extract, fit, evaluate, save."""

import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

import porting
from jax_unlearn.data.dataset import Dataset
from jax_unlearn.evaluate.judges import judge_of
from jax_unlearn.evaluate.vlm.benchmarks import read_benchmark
from jax_unlearn.evaluate.vlm.questions import load_questions
from jax_unlearn.features.extracted import check_features
from jax_unlearn.models.lora import LoraAdapter
from jax_unlearn.objective.problem import linears_to_adapt
from jax_unlearn.objective.targets import STAND_IN
from jax_unlearn.runs.fingerprint import differences
from jax_unlearn.runs.fit_adapter import Fitting
from jax_unlearn.runs.ledger.fitting import check_requests, fitting_of
from jax_unlearn.runs.model_card import write_card
from jax_unlearn.runs.preflight import in_words, preflight
from jax_unlearn.runs.report.sweep_files import write_tradeoff
from jax_unlearn.runs.run_directory import (
    Metrics,
    check_finite,
    describe_adapter,
    describe_search,
    objective,
    save_digests,
    save_metrics,
    write_config,
)
from jax_unlearn.runs.saved_statistics import protect, write_statistics
from jax_unlearn.runs.settings.checks import check_run, optimizer_of, source_of
from jax_unlearn.runs.settings.config import RunConfig
from jax_unlearn.runs.settings.inputs import check_out
from jax_unlearn.runs.settings.presets import start_of
from jax_unlearn.runs.settings.sweep_config import sweep_of
from jax_unlearn.runs.sources.clip_images import ClipImages
from jax_unlearn.runs.sources.clip_names import ClipNames
from jax_unlearn.runs.sources.qwen_images import QwenImages
from jax_unlearn.runs.sources.saved_statistics import SavedStatistics
from jax_unlearn.runs.sources.source import Source
from jax_unlearn.runs.sweep import explore
from jax_unlearn.runs.tracking import check_installed, track
from jax_unlearn.runtime import collectives, processes
from jax_unlearn.runtime.atomic_files import fresh_directory
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.hub import cached_checkpoint, pinned
from jax_unlearn.runtime.interrupts import handled
from jax_unlearn.runtime.leftovers import remove_leftovers
from jax_unlearn.runtime.outputs import check_free, resolved
from jax_unlearn.runtime.resume import RunSnapshots
from jax_unlearn.solvers.config import SolverConfig, check_ranks


@dataclass(frozen=True)
class PreparedRun:
    """A checked source, with the snapshots of its run."""

    source: Source
    snapshots: RunSnapshots
    console: Console


def run(config: RunConfig, console: Console, start: RunConfig | None = None) -> Metrics:
    """Extract, fit, evaluate and save.

    Args:
        config: the settings.
        console: where progress is shown.
        start: the settings that `config` started from; a setting that differs from it and would
            have no effect is refused. By default the settings of a run without options.

    Returns:
        The content of metrics.json. Of several processes only process 0 writes files; the others
        return an empty dictionary.

    Raises:
        UserError: bad input, or another process has failed; the run's directory is then unchanged.
        TerminatedError: the run was stopped by SIGTERM or SIGINT; what was done is saved for
            `resume`, if anything was.
    """
    begun = time.perf_counter()
    with prepared_run(config, console, start) as prepared:
        return run_pipeline(prepared, begun)


@contextmanager
def prepared_run(
    config: RunConfig,
    console: Console,
    start: RunConfig | None = None,
    opened: Callable[[], Source] | None = None,
) -> Iterator[PreparedRun]:
    """Connect the processes, check the settings, open the source, and find earlier snapshots.

    When the block ends without an error, the processes wait at a barrier and the snapshots are
    removed. `opened` opens another source than the one that the settings select.
    """
    execution = config.execution
    if execution.distributed:
        processes.connect(
            execution.coordinator,
            execution.process_id,
            execution.processes,
            execution.heartbeat_seconds,
            execution.wait_seconds,
        )
        if processes.index() > 0:
            console = Console(quiet=True)
    with collectives.failing_together():
        check_out(execution.out, config.samples)
        if processes.index() == 0:
            remove_leftovers(resolved(execution.out))
        check_free(execution.out, execution.overwrite)
        check_installed(execution.track)
        source = opened() if opened else open_source(config, console, start)
        snapshots = RunSnapshots(
            execution.out,
            source.fingerprint,
            differences,
            execution.save_seconds,
            execution.save_steps,
            execution.resume,
            execution.overwrite,
        )
        with closing(snapshots):
            check_processes_agree(source)
            with snapshots.listening():
                yield PreparedRun(source, snapshots, console)
                if processes.index() > 0:
                    # Wait until process 0 has written the results.
                    collectives.barrier()
            if processes.index() == 0:
                # Outside the block, where SIGTERM can no longer stop the run.
                collectives.barrier()
            # The output is whole: only SIGKILL can leave a part of the snapshots beside it.
            with handled(signal.SIG_IGN, signal.SIGTERM, signal.SIGINT):
                snapshots.finish()


def check_processes_agree(source: Source) -> None:
    """Check that all processes have the same options and files.

    Raises:
        UserError: they differ; names the differences.
    """
    if processes.count() == 1:
        return
    ours = source.fingerprint()
    others = collectives.all_gather_bytes(lambda: json.dumps(ours).encode())
    for theirs in map(json.loads, others):
        if unequal := differences(theirs, ours, ("elsewhere", "here")):
            raise UserError(
                f"--distributed: {'; '.join(unequal)}; start every process with the same options "
                "and files"
            )


def open_source(config: RunConfig, console: Console, start: RunConfig | None = None) -> Source:
    """Open the source that the settings select, without running a model.

    Raises:
        UserError: bad input, or a setting that would have no effect.
    """
    start = start or start_of(config)
    if config.samples.statistics is None:
        # The commit, so that every later command reads the same weights.
        checkpoint = pinned(config.samples.checkpoint)
        config, start = config.replace(checkpoint=checkpoint), start.replace(checkpoint=checkpoint)
    check_run(config, start)
    source: Source
    kind = source_of(config.samples)
    if kind != "qwen_images" or sweep_of(config):
        config = config.replace(target=config.objective.target_kind)
    if config.samples.statistics:
        source = SavedStatistics(config)
        check_requests(source.extracted, config)
    elif kind == "clip_names":
        source = ClipNames(config, console)
    elif kind == "clip_images":
        source = ClipImages(config, console)
    else:
        source = QwenImages(config, console)
    check_solvers(source)
    return source


def check_solvers(source: Source) -> None:
    """Check the solver's settings for the Linears to adapt, in a sweep for every setting.

    Raises:
        UserError: a value is out of range; names the setting and what it may be.
    """
    config, shapes = source.config, {linear.name: linear.shape for linear in source.linears}
    adapted = linears_to_adapt(config.objective, [*shapes])
    if missing := sorted(set(adapted) - set(shapes)):
        raise UserError(f"{', '.join(missing)}: its rows were not extracted; leave it out")
    tried = sweep_of(config)
    solvers: list[SolverConfig] = [config.solver]
    if tried:
        kind, optimizer = source_of(config.samples), optimizer_of(config)
        solvers = [one.config(config.solver) for one in tried.settings(kind, optimizer)]
    for solver in solvers:
        check_ranks(solver, {name: shapes[name] for name in adapted})


def run_pipeline(
    prepared: PreparedRun,
    begun: float,
    steps: Callable[[LoraAdapter], Metrics] | None = None,
    folders: Sequence[Path] = (),
) -> Metrics:
    """Run a prepared source.

    Args:
        prepared: the source.
        begun: start time by `time.perf_counter`.
        steps: further entries for the ledger in metrics.json, from the adapter.
        folders: further folders that the run's features are from; see `protect`.
    """
    source, console, config = prepared.source, prepared.console, prepared.source.config
    check_questions(config, source.dataset)
    extracted = source.extract(prepared.snapshots.stage)
    check_features(extracted)
    seconds = {"extract": time.perf_counter() - begun}
    if processes.index() > 0:
        return {}
    judge = judge_of(extracted, config.samples)
    tradeoff, of_requests = None, fitting_of(extracted)
    if tried := sweep_of(config):
        tradeoff = explore(extracted, judge, tried, console, of_requests)
        config = config.replace(**asdict(tradeoff.chosen.setting), auto=False)
    expected = None
    if config.objective.target == STAND_IN:
        expected = preflight(extracted, config)
        console.out("\n".join(in_words(expected)))
    stage = prepared.snapshots.stage("training") if optimizer_of(config) == "adam" else None
    fitting = of_requests or Fitting()
    fitted = fitting.fit(extracted, config, console, stage, source.mesh)
    result = fitted.found.result
    seconds["optimise"] = time.perf_counter() - begun - seconds["extract"]
    with console.status("Evaluating on the held-out samples"):
        measured = judge.evaluate(result.adapter)
        further = dict(fitting.describe(fitted))
        if steps:
            further["ledger"] |= steps(result.adapter)

    check_finite(result.adapter, config.execution.out)
    linears = source.stored_linears()

    with fresh_directory(config.execution.out, config.execution.overwrite) as out:
        adapter_dir = out / "adapter"
        porting.save_peft(
            result.adapter,
            adapter_dir,
            base_model_name_or_path=cached_checkpoint(config.samples.checkpoint),
            model_type=extracted.model_type,
            base_model=config.execution.base_model,
            seed=config.solver.seed,
        )
        metrics = {
            "objective": objective(result),
            **measured,
            "adapter": describe_adapter(porting.load_peft(adapter_dir), adapter_dir),
            "search": describe_search(fitted.found),
            "samples": dict(extracted.counts),
            "tower": dict(extracted.throughput),
            "optimizer": optimizer_of(config),
            "rows": fitted.rows,
            "stopped": result.stopped,
            "seconds": seconds | {"total": time.perf_counter() - begun},
            "optimiser_seconds": result.seconds,
            **further,
        }
        write_config(out, config)
        if expected:
            metrics["expected"] = expected
        if tradeoff:
            write_tradeoff(out, tradeoff)
        metrics["statistics"] = write_statistics(out, extracted, config)
        lines = (json.dumps(row) for row in result.history)
        (out / "history.jsonl").write_text("\n".join(lines) + "\n")
        pictures = judge.pictures() if config.execution.pictures else []
        save_metrics(out, config, metrics, pictures)
        write_card(out, config, metrics)
        save_digests(out, linears)
        track(config, out, result.history, metrics)
        protect(out, config.samples, folders)
    return metrics


def check_questions(config: RunConfig, dataset: Dataset[Any]) -> None:
    """Check the questions for `evaluate --vlm` before any work is done.

    Raises:
        UserError: the file has another format, or asks about none of the classes.
    """
    questions = config.samples.questions
    if questions and read_benchmark(questions) is None:
        load_questions(questions, dataset.labels())
