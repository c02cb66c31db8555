"""The commands on an existing run, and the sweep."""

import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

import porting
from jax_unlearn.evaluate.vlm.exam import Exam
from jax_unlearn.evaluate.vlm.model import need_torch
from jax_unlearn.evaluate.vlm.questions import load_questions
from jax_unlearn.features.samples import images
from jax_unlearn.features.statistics_file import FILE
from jax_unlearn.runs.pipeline import open_session, opened
from jax_unlearn.runs.report.sweep_files import write_tradeoff
from jax_unlearn.runs.run_directory import Format, Metrics, read_json, save_metrics, write_config
from jax_unlearn.runs.settings.config import RunConfig, read_config, settings_of
from jax_unlearn.runs.settings.sweep_config import SweepConfig
from jax_unlearn.runs.sweep import TradeOff, explore
from jax_unlearn.runtime import processes
from jax_unlearn.runtime.atomic_files import fresh_directory
from jax_unlearn.runtime.errors import UserError


def sweep(config: SweepConfig, console: Console) -> TradeOff | None:
    """Try many settings, and leave the table, the plot and the chosen one's config.

    The directory also holds the statistics, where there are some, so that `run --statistics` goes
    on from the chosen setting. Of several processes the first writes; the others return None.

    Raises:
        UserError, TerminatedError: see `run`.
    """
    with opened(config, console) as session:
        train, test = session.train_features(config.granularity), session.test_features()
        if processes.index() > 0:
            return None
        found = explore(session, train, test, config, console)
        with fresh_directory(config.out, config.overwrite) as out:
            write_tradeoff(out, found)
            settings = settings_of(session.config) | asdict(found.chosen.setting)
            write_config(out, RunConfig(**settings))
            session.save(out, train, test)
        return found


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
