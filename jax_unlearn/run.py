"""The commands on a run's directory: make it, evaluate it again, export from it."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

import porting
from jax_unlearn.config import RunConfig, read_config, to_json
from jax_unlearn.data.folder import ImageFile, read_image
from jax_unlearn.errors import UserError
from jax_unlearn.evaluate.answers import ask_all, load_questions, score
from jax_unlearn.evaluate.vlm import ask, load_vlm
from jax_unlearn.files import check_free, fresh_directory
from jax_unlearn.lora import LoraAdapter
from jax_unlearn.objective import TERMS, Problem
from jax_unlearn.report.page import write_report
from jax_unlearn.session import Session, Sides
from jax_unlearn.train import Result, Row, train

Metrics = dict[str, Any]
Format = Literal["peft", "merged"]


def run(config: RunConfig, console: Console) -> Metrics:
    """Extract, train, evaluate and save; returns what metrics.json holds.

    Raises:
        UserError: bad input; `config.out` is then as it was.
    """
    begun = time.perf_counter()
    check_free(config.out, config.overwrite)
    session = Session(config, console)
    train_sides = session.train_features(config.granularity)
    test_sides = session.test_features()
    extracted = time.perf_counter()
    fit_sides, choose_sides = session.hold_out(train_sides)
    held_out = session.problem(choose_sides) if choose_sides else None
    result = optimise(session.problem(fit_sides), held_out, config, console)
    optimised = time.perf_counter()
    with console.status("Reading the embeddings"):
        read = session.evaluate(train_sides.image_means(), test_sides, result.adapter)

    with fresh_directory(config.out, config.overwrite) as out:
        adapter_dir = out / "adapter"
        porting.save_peft(
            result.adapter, adapter_dir, base_model_name_or_path=str(config.checkpoint.resolve())
        )
        metrics = {
            "objective": objective(result),
            **read,
            "adapter": describe_adapter(result.adapter, adapter_dir),
            "images": count_images(session),
            "stopped": result.stopped,
            "seconds": {
                "extract": extracted - begun,
                "optimise": optimised - extracted,
                "total": time.perf_counter() - begun,
            },
            "optimiser_seconds": result.seconds,
        }
        write_json(out / "config.json", to_json(config))
        lines = (json.dumps(row) for row in result.history)
        (out / "history.jsonl").write_text("\n".join(lines) + "\n")
        save_metrics(out, session, metrics, test_sides)
    return metrics


def optimise(
    problem: Problem, held_out: Problem | None, config: RunConfig, console: Console
) -> Result:
    """`train` under a progress bar."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("Training", total=config.epochs)

        def progress(epoch: int, row: Row) -> None:
            bar.update(task, completed=epoch, description=f"Training, loss {row['total']:.4g}")

        return train(problem, config, held_out=held_out, progress=progress)


def objective(result: Result) -> Metrics:
    """The chosen adapter's terms, where training began, and which epoch was chosen."""
    row = result.history[result.epoch]
    terms = {name: row[name] for name in (*TERMS, "total")}
    return {**terms, "initial": result.history[0]["total"], "epoch": result.epoch}


def describe_adapter(adapter: LoraAdapter, directory: Path) -> Metrics:
    return {
        "rank": adapter.rank,
        "alpha": adapter.alpha,
        "targets": list(adapter.pairs),
        "bytes": sum(file.stat().st_size for file in directory.iterdir()),
    }


def count_images(session: Session) -> Metrics:
    counts = {name: len(files) for name, files in asdict(session.dataset).items()}
    return {**counts, "skipped": [str(path) for path in session.reader.skipped]}


def evaluate(run_dir: Path, vlm: bool, questions: Path | None, console: Console) -> Metrics:
    """Evaluate an existing run again; `vlm` also asks the Hugging Face model.

    Raises:
        UserError: not a run, its images or checkpoint are gone, or torch is missing for `vlm`.
    """
    config = read_config(run_dir)
    adapter = porting.load_peft(run_dir / "adapter")
    metrics: Metrics = read_json(run_dir / "metrics.json")
    session = Session(config, console)
    train_sides, test_sides = session.train_features("images"), session.test_features()
    with console.status("Reading the embeddings"):
        metrics |= session.evaluate(train_sides, test_sides, adapter)
    if vlm:
        files = [*test_sides.forget.files, *test_sides.preserve.files]
        metrics["vlm"] = ask_before_and_after(
            config,
            run_dir / "adapter",
            files,
            len(test_sides.forget.files),
            metrics["neighbours"],
            questions or config.questions,
            console,
        )
    save_metrics(run_dir, session, metrics, test_sides)
    return metrics


def ask_before_and_after(
    config: RunConfig,
    adapter_dir: Path,
    files: list[ImageFile],
    forget: int,
    neighbours: list[str],
    questions: Path | None,
    console: Console,
) -> Metrics:
    """The Hugging Face model's answers on held-out images, without and with the adapter.

    The first `forget` files are the ones to be forgotten.
    """
    labels = np.array([file.label for file in files])
    asked = load_questions(questions, labels.tolist())
    images = [read_image(file.path) for file in files]
    scores = {}
    for when, adapter in (("before", None), ("after", adapter_dir)):
        model = load_vlm(config.checkpoint, adapter)

        def put(rows: list[int], question: str) -> list[str]:
            chosen: list[Image.Image] = [images[i] for i in rows]
            return ask(model, chosen, question)  # noqa: B023  (used up before the next model)

        with console.status(f"Asking the model, {when}: {len(asked)} questions"):
            answers = ask_all(put, asked, labels)
        scores[when] = score(answers, labels, np.arange(len(files)) < forget, neighbours)
    return scores


def export(run_dir: Path, form: Format, out: Path, overwrite: bool) -> None:
    """Write the run's adapter as a PEFT directory, or merged into a copy of its checkpoint.

    Raises:
        UserError: not a run, or `out` exists.
    """
    config = read_config(run_dir)
    adapter = porting.load_peft(run_dir / "adapter")
    if form == "merged":
        porting.merge_checkpoint(adapter, config.checkpoint, out, overwrite=overwrite)
    else:
        porting.save_peft(
            adapter, out, base_model_name_or_path=str(config.checkpoint), overwrite=overwrite
        )


def save_metrics(directory: Path, session: Session, metrics: Metrics, test: Sides) -> None:
    """metrics.json and the report made from it."""
    write_json(directory / "metrics.json", metrics)
    samples = (test.forget.files, test.preserve.files)
    write_report(directory, session.config, metrics, samples)


def write_json(path: Path, content: Any) -> None:
    """Write whole or not at all: a reader never sees half a file."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    partial.replace(path)


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run again") from error
