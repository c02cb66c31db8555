"""The command line. Commands are dataclasses, and their options are the dataclasses' fields."""

import json
import signal
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from tyro.conf import Positional

from jax_unlearn.runs.commands import evaluate, export, sweep
from jax_unlearn.runs.demo import Demo, demo_config
from jax_unlearn.runs.inspect.checkpoint_facts import inspect, lines
from jax_unlearn.runs.pipeline import run
from jax_unlearn.runs.run_directory import Format
from jax_unlearn.runs.settings.checks import OF_TOWER
from jax_unlearn.runs.settings.config import RunConfig, read_config, settings_of
from jax_unlearn.runs.settings.presets import preset_settings
from jax_unlearn.runs.settings.sweep_config import SweepConfig
from jax_unlearn.runs.terminal import finish, finish_sweep
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.no_torch import hide_torch
from jax_unlearn.runtime.processes import exit_together
from jax_unlearn.runtime.resume import TerminatedError
from jax_unlearn.runtime.xla_flags import make_reproducible

REQUIRED = ("checkpoint", "out")


@dataclass(frozen=True)
class Inspect:
    """Family, last layer, Merger structure, widths, adaptable Linears, memory."""

    checkpoint: Positional[Path]
    """Directory of a checkpoint."""
    plan: str | None = None
    """Accelerators that need not be here, as v5e:2x2, v5p:2x2x4 or h100:8: also say the largest
    batch that fits, its memory and the work of a pass, by compiling for them (needs the extra
    aot)."""
    fsdp: int = 1
    """How many of those devices share the weights of the tower's blocks, for --plan."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the tower, for --plan."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class Evaluate:
    """Evaluate an existing run again; --vlm also asks the Hugging Face model (needs torch)."""

    run: Positional[Path]
    """Directory of a run."""
    vlm: bool = False
    """Ask the model questions about the held-out images, before and after."""
    questions: Path | None = None
    """JSON list of {question, answers: {class: answer}}, for --vlm; by default the run's own, or
    "what is this?" and the classes' names."""
    mesh: str | None = None
    """Devices for the tower, as for `run`; by default all here."""
    workers: int | None = None
    """Processes that decode and pack images, as for `run`."""
    batch_patches: int | None = None
    """Patches of a device's batch; by default the run's."""


@dataclass(frozen=True)
class Export:
    """Write a run's adapter for PyTorch."""

    run: Positional[Path]
    """Directory of a run."""
    out: Path
    """Directory to make."""
    format: Format = "peft"
    """An adapter for PEFT, or a whole checkpoint with the change merged in."""
    overwrite: bool = False
    """Replace --out if it exists."""


Command = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Inspect, tyro.conf.subcommand("inspect")]
    | Annotated[
        RunConfig,
        tyro.conf.subcommand("run", description="Extract, train, evaluate, save and report."),
    ]
    | Annotated[
        SweepConfig,
        tyro.conf.subcommand(
            "sweep", description="Many settings at once, and which of them forgets at least cost."
        ),
    ]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Export, tyro.conf.subcommand("export")]
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: exits 0, or prints one line that says what is wrong and exits 2."""
    console = Console(stderr=True)
    try:
        command = parse(list(sys.argv[1:] if arguments is None else arguments))
        with warnings.catch_warnings():
            # Not as markup: a file's name may hold brackets.
            warnings.showwarning = lambda message, *_: console.out(f"warning: {message}")
            dispatch(command, console)
    except UserError as error:
        print(f"jax-unlearn: {error}", file=sys.stderr)
        sys.exit(2)
    except TerminatedError:
        print("jax-unlearn: terminated; the same command with --resume goes on", file=sys.stderr)
        exit_together(128 + signal.SIGTERM)
    except KeyboardInterrupt:
        print("jax-unlearn: interrupted", file=sys.stderr)
        sys.exit(130)


def parse(arguments: Sequence[str]) -> Any:
    """The command with its options. A preset, and an earlier run, are defaults: options win."""
    kind = {"run": RunConfig, "sweep": SweepConfig}.get(arguments[0] if arguments else "")
    if kind and (earlier := option_of(arguments, "--statistics")):
        out = option_of(arguments, "--out")
        if out is None and "--help" not in arguments:
            raise UserError("--out: give the directory of the new run")
        defaults = replace(read_config(earlier), out=out or Path())
        return tyro.cli(kind, default=kind(**settings_of(defaults)), args=arguments[1:])
    command: Any = tyro.cli(
        Command,
        prog="jax-unlearn",
        description="Make a vision-language model forget something it sees.",
        args=arguments,
    )
    if isinstance(command, RunConfig):
        settings = preset_settings(command.preset, text=bool(command.forget_text))
        if settings:
            required = {name: getattr(command, name) for name in REQUIRED}
            kind = type(command)
            command = tyro.cli(kind, default=kind(**required, **settings), args=arguments[1:])
    return command


def option_of(arguments: Sequence[str], name: str) -> Path | None:
    """The value of an option that says what the defaults of the others are."""
    for option, value in zip(arguments, [*arguments[1:], ""], strict=True):
        if option == name and value:
            return Path(value)
        if option.startswith(f"{name}="):
            return Path(option.removeprefix(f"{name}="))
    return None


def dispatch(command: Any, console: Console) -> None:
    """Run a parsed command; results go to stdout, progress and warnings to stderr."""
    make_reproducible()
    if not (isinstance(command, Evaluate) and command.vlm):
        hide_torch()
    match command:
        case Demo():
            finish(run(demo_config(command), console), command.out)
        case SweepConfig():
            if found := sweep(command, console):
                finish_sweep(found, command)
        case RunConfig():
            if metrics := run(command, console):
                finish(metrics, command.out)
        case Inspect():
            facts = inspect(command.checkpoint, command.plan, command.dtype, command.fsdp)
            print(json.dumps(facts, indent=2) if command.json else "\n".join(lines(facts)))
        case Evaluate():
            how = {name: getattr(command, name) for name in OF_TOWER}
            metrics = evaluate(command.run, command.vlm, command.questions, console, **how)
            finish(metrics, command.run)
        case Export():
            export(command.run, command.format, command.out, command.overwrite)
            print(command.out)
