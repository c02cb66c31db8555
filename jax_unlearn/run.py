"""The commands on a run's directory: make it, evaluate it again, export from it."""

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

import porting
from jax_unlearn import hosts
from jax_unlearn.adapt import adapt
from jax_unlearn.clip_session import ClipImageSession, TextSession
from jax_unlearn.config import (
    RunConfig,
    check_inputs,
    check_no_tower,
    read_config,
    settings_of,
    to_json,
)
from jax_unlearn.errors import UserError
from jax_unlearn.evaluate.answers import load_questions
from jax_unlearn.evaluate.exam import Exam
from jax_unlearn.evaluate.vlm import need_torch
from jax_unlearn.files import check_free, fresh_directory, replace_files
from jax_unlearn.identity import differences
from jax_unlearn.image_session import ImageSession
from jax_unlearn.lora import LoraAdapter
from jax_unlearn.objective import TERMS
from jax_unlearn.report.page import report
from jax_unlearn.report.tradeoff import write_tradeoff
from jax_unlearn.resume import Journal
from jax_unlearn.rows import images
from jax_unlearn.saved import open_saved
from jax_unlearn.search import Search
from jax_unlearn.session import Session, Sides
from jax_unlearn.statistics_file import FILE
from jax_unlearn.sweep_config import SweepConfig, check_sweep, sweep_of
from jax_unlearn.tradeoff import TradeOff, explore
from jax_unlearn.train import Result

Metrics = dict[str, Any]
Format = Literal["peft", "merged"]


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
        hosts.connect(
            config.coordinator, config.process_id, config.processes, config.heartbeat_seconds
        )
    if config.distributed and hosts.index() > 0:
        console = Console(quiet=True)
    with hosts.failing_together():
        check_free(config.out, config.overwrite)
        session = open_session(config, console)
        session.journal = journal = Journal(
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
            if hosts.index() > 0:
                # Until the first has written.
                hosts.meet()
        if hosts.index() == 0:
            # There is nothing left to be terminated.
            hosts.meet()
        journal.finish()


def agree(session: Session) -> None:
    """Refuse processes that were started differently, or see other files.

    Raises:
        UserError: names what is not the same.
    """
    if hosts.count() == 1:
        return
    ours = session.identity()
    others = hosts.of_others(lambda: json.dumps(ours).encode())
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
    if hosts.index() > 0:
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


def sweep(config: SweepConfig, console: Console) -> TradeOff | None:
    """Try many settings, and leave the table, the plot and the chosen one's config.

    The directory also holds the statistics, where there are some, so that `run --statistics` goes
    on from the chosen setting. Of several processes the first writes; the others return None.

    Raises:
        UserError, TerminatedError: see `run`.
    """
    with opened(config, console) as session:
        train, test = session.train_features(config.granularity), session.test_features()
        if hosts.index() > 0:
            return None
        found = explore(session, train, test, config, console)
        with fresh_directory(config.out, config.overwrite) as out:
            write_tradeoff(out, found)
            settings = settings_of(session.config) | asdict(found.chosen.setting)
            write_config(out, RunConfig(**settings))
            session.save(out, train, test)
        return found


def write_config(directory: Path, config: RunConfig) -> None:
    (directory / "config.json").write_text(to_text(to_json(config)))


def open_session(config: RunConfig, console: Console) -> Session:
    """The session of a checkpoint's kind.

    Raises:
        UserError: bad input, before a tower sees the first sample.
    """
    check_inputs(config)
    check_sweep(config)
    clip = not config.statistics and porting.is_clip(config.checkpoint)
    if hosts.count() > 1 and (clip or config.statistics):
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


def describe_search(found: Search) -> Metrics:
    """How far the forget norm fell, and after how many trainings with which λ_f."""
    return {
        "lambda_forget": found.lambda_forget,
        "trials": found.trials,
        "fall": found.fall,
        "reached": found.reached,
    }


def objective(result: Result) -> Metrics:
    """The chosen adapter's terms, where training began, and which epoch was chosen."""
    row = result.history[result.epoch]
    terms = {name: row[name] for name in (*TERMS, "total")}
    found = {**terms, "initial": result.history[0]["total"], "epoch": result.epoch}
    if result.lower_bound is not None:
        # No adapter of any rank comes below it.
        gap = row["total"] - result.lower_bound
        found |= {"lower_bound": result.lower_bound, "gap": gap}
    return found


def describe_adapter(adapter: LoraAdapter, directory: Path) -> Metrics:
    return {
        "rank": adapter.rank,
        "alpha": adapter.alpha,
        "targets": list(adapter.pairs),
        "bytes": sum(file.stat().st_size for file in directory.iterdir()),
    }


def evaluate(
    run_dir: Path, vlm: bool, questions: Path | None, console: Console, **how: Any
) -> Metrics:
    """Evaluate an existing run again; `vlm` also asks the Hugging Face model.

    Args:
        how: settings to run the tower with in place of the run's own, if they are not None.

    Raises:
        UserError: not a run, its images or checkpoint are gone, or torch is missing for `vlm`.
    """
    config = read_config(run_dir)
    adapter = porting.load_peft(run_dir / "adapter")
    metrics: Metrics = read_json(run_dir / "metrics.json")
    if "samples" not in metrics:
        raise UserError(f"{run_dir}: was made by an earlier version; run again")
    if config.statistics and (run_dir / FILE).is_file():
        # Its own copy: the earlier run may be gone.
        config = replace(config, statistics=run_dir)
    config = replace(config, **{name: value for name, value in how.items() if value is not None})
    session = open_session(config, console)
    if session.counts()["fingerprint"] != metrics["samples"]["fingerprint"]:
        raise UserError(f"{run_dir}: its samples have changed since, or its seed; run again")
    questions = questions or config.questions
    if vlm:
        if porting.is_clip(config.checkpoint):
            raise UserError("--vlm asks a language model, and CLIP has none")
        need_torch()
        load_questions(questions, session.dataset.labels())
    train_sides, test_sides = session.train_features("images"), session.test_features()
    with console.status("Reading the embeddings"):
        metrics |= session.evaluate(train_sides, test_sides, adapter)
    if vlm:
        files = (*images(test_sides.forget), *images(test_sides.preserve))
        exam = Exam(files, test_sides.is_forget, metrics["neighbours"], questions)
        with console.status(f"Asking the model {len(exam.questions)} questions, before and after"):
            metrics["vlm"] = exam.before_and_after(config.checkpoint, run_dir / "adapter")
    save_metrics(run_dir, session, metrics, test_sides)
    return metrics


def export(run_dir: Path, form: Format, out: Path, overwrite: bool) -> None:
    """Write the run's adapter as a PEFT directory, or merged into a copy of its checkpoint.

    Raises:
        UserError: not a run, or `out` exists or is the run.
    """
    config = read_config(run_dir)
    adapter = porting.load_peft(run_dir / "adapter")
    if form == "merged":
        porting.merge_checkpoint(adapter, config.checkpoint, out, overwrite=overwrite)
        return
    if run_dir.resolve().is_relative_to(out.resolve()):
        raise UserError(f"{out}: holds the run itself; choose another folder")
    with fresh_directory(out, overwrite) as fresh:
        shutil.copytree(run_dir / "adapter", fresh, dirs_exist_ok=True)


def save_metrics(directory: Path, session: Session, metrics: Metrics, test: Sides) -> None:
    """metrics.json and the report made from it; both are made before either is replaced."""
    page = report(directory, session.config, metrics, session.pictures(test))
    replace_files(directory, {"metrics.json": to_text(metrics), "report.html": page})


def to_text(content: Any) -> str:
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run again") from error
