"""The commands on a run's directory: make it, evaluate it again, export from it."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

from rich.console import Console

import porting
from jax_unlearn.evaluate.vlm.questions import load_questions
from jax_unlearn.runs.fingerprint import differences
from jax_unlearn.runs.fit_adapter import adapt
from jax_unlearn.runs.report.sweep_files import write_tradeoff
from jax_unlearn.runs.run_directory import (
    Metrics,
    describe_adapter,
    describe_search,
    objective,
    save_metrics,
    write_config,
)
from jax_unlearn.runs.settings.checks import check_inputs, check_no_tower, check_sweep
from jax_unlearn.runs.settings.config import RunConfig
from jax_unlearn.runs.settings.sweep_config import sweep_of
from jax_unlearn.runs.sources.clip_names import ClipImageSession, TextSession
from jax_unlearn.runs.sources.qwen_images import ImageSession
from jax_unlearn.runs.sources.saved_statistics import open_saved
from jax_unlearn.runs.sources.source import Session
from jax_unlearn.runs.sweep import explore
from jax_unlearn.runtime import collectives, processes
from jax_unlearn.runtime.atomic_files import check_free, fresh_directory
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.resume import RunSnapshots


def run(config: RunConfig, console: Console) -> Metrics:
    """Extract, train, evaluate and save; returns what metrics.json holds.

    Of several processes the first writes; the others return nothing.

    Raises:
        UserError: bad input, or another process has failed; `config.out` is then as it was.
        TerminatedError: SIGTERM came; what had been done is saved for `config.resume`.
    """
    begun = time.perf_counter()
    with opened(config, console) as session:
        return made(session, begun)


@contextmanager
def opened(config: RunConfig, console: Console) -> Iterator[Session]:
    """A run's session, while nothing stands in its way.

    Connects the processes, sees to it that they mean the same run, and that it can be resumed.
    """
    if config.distributed:
        processes.connect(
            config.coordinator, config.process_id, config.processes, config.heartbeat_seconds
        )
    if config.distributed and processes.index() > 0:
        console = Console(quiet=True)
    with collectives.failing_together():
        check_free(config.out, config.overwrite)
        session = open_session(config, console)
        session.journal = journal = RunSnapshots(
            config.out,
            session.identity,
            config.save_seconds,
            config.save_steps,
            config.resume,
            config.overwrite,
        )
        agree(session)
        with journal.listening():
            yield session
            if processes.index() > 0:
                # Until the first has written.
                collectives.barrier()
        if processes.index() == 0:
            # There is nothing left to be terminated.
            collectives.barrier()
        journal.finish()


def agree(session: Session) -> None:
    """Refuse processes that were started differently, or see other files.

    Raises:
        UserError: names what is not the same.
    """
    if processes.count() == 1:
        return
    ours = session.identity()
    others = collectives.all_gather_bytes(lambda: json.dumps(ours).encode())
    for theirs in map(json.loads, others):
        if unlike := differences(theirs, ours, ("elsewhere", "here")):
            raise UserError(
                f"--distributed: {'; '.join(unlike)}; start all processes alike, on the same files"
            )


def made(session: Session, begun: float) -> Metrics:
    """What `run` does with a session; `begun` is when, by `time.perf_counter`."""
    config, console = session.config, session.console
    if config.questions:
        load_questions(config.questions, session.dataset.labels())
    train_sides = session.train_features(config.granularity)
    test_sides = session.test_features()
    extracted = time.perf_counter()
    if processes.index() > 0:
        return {}
    tradeoff = None
    if tried := sweep_of(config):
        tradeoff = explore(session, train_sides, test_sides, tried, console)
        session = session.having(**asdict(tradeoff.chosen.setting), auto=False)
    adapted = adapt(session, train_sides, console)
    result = adapted.found.result
    optimised = time.perf_counter()
    with console.status("Reading the embeddings"):
        read = session.evaluate(train_sides.image_means(), test_sides, result.adapter)

    with fresh_directory(config.out, config.overwrite) as out:
        adapter_dir = out / "adapter"
        base = config.checkpoint.resolve()
        # Read where the checkpoint has no config.json, which only OpenCLIP's have not.
        porting.save_peft(
            result.adapter, adapter_dir, base_model_name_or_path=base, model_type=session.model_type
        )
        metrics = {
            "objective": objective(result),
            **read,
            "adapter": describe_adapter(result.adapter, adapter_dir),
            "search": describe_search(adapted.found),
            "samples": session.counts(),
            "tower": session.work,
            "optimizer": session.optimizer,
            "rows": adapted.rows,
            "stopped": result.stopped,
            "seconds": {
                "extract": extracted - begun,
                "optimise": optimised - extracted,
                "total": time.perf_counter() - begun,
            },
            "optimiser_seconds": result.seconds,
        }
        write_config(out, session.config)
        if tradeoff:
            write_tradeoff(out, tradeoff)
        session.save(out, train_sides, test_sides)
        lines = (json.dumps(row) for row in result.history)
        (out / "history.jsonl").write_text("\n".join(lines) + "\n")
        save_metrics(out, session, metrics, test_sides)
    return metrics


def open_session(config: RunConfig, console: Console) -> Session:
    """The session of a checkpoint's kind.

    Raises:
        UserError: bad input, before a tower sees the first sample.
    """
    check_inputs(config)
    check_sweep(config)
    clip = not config.statistics and porting.is_clip(config.checkpoint)
    if processes.count() > 1 and (clip or config.statistics):
        raise UserError("--distributed: is for images through a Qwen tower; leave it out")
    if clip or config.statistics:
        check_no_tower(config)
    if config.statistics:
        return open_saved(config, console)
    if clip:
        kind = TextSession if config.forget_text else ClipImageSession
        return kind(config, console)
    if config.forget_text:
        raise UserError(f"{config.checkpoint}: --forget-text needs a CLIP checkpoint")
    return ImageSession(config, console)
