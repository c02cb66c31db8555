"""The command line. Commands are dataclasses, and their fields are the options."""

import argparse
import json
import signal
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro
from rich.console import Console
from tyro.conf import Positional

import jax_unlearn
from jax_unlearn.runs.commands import evaluate, export, sweep
from jax_unlearn.runs.demo import Demo, demo_config, demo_start
from jax_unlearn.runs.inspect.checkpoint_facts import inspect, lines
from jax_unlearn.runs.pipeline import run
from jax_unlearn.runs.run_directory import Format
from jax_unlearn.runs.settings.checks import refuse_preset, refuse_unused
from jax_unlearn.runs.settings.config import RunConfig, build
from jax_unlearn.runs.settings.presets import Preset, start_settings
from jax_unlearn.runs.settings.sweep_config import SweepConfig
from jax_unlearn.runs.terminal import finish, finish_sweep, show_unencodable
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.interrupts import raise_until_heeded
from jax_unlearn.runtime.no_torch import hide_torch
from jax_unlearn.runtime.processes import exit_together
from jax_unlearn.runtime.resume import TerminatedError
from jax_unlearn.runtime.used_if import used_if
from jax_unlearn.runtime.xla_flags import make_reproducible

PROGRAM = "jax-unlearn"
INTERRUPTED = f"{PROGRAM}: interrupted"
PRESET_HELP = (
    "--preset PRESET: initial settings, which other options override: default, the settings that "
    "worked best in our measurements (for names --target blank and --lambda-preserve 1); faithful, "
    "the published scheme (for images: main Merger only, random unit targets, tokens, sums; for "
    "names including its faults, with the last epoch kept); clip-rn50, clip-vit-b16 and "
    "clip-multi, for names, its constants without those faults."
)


@dataclass(frozen=True)
class Inspect:
    """Family, last layer, Merger structure, widths, adaptable Linears, memory."""

    checkpoint: Positional[Path]
    """Directory of a checkpoint."""
    plan: str | None = None
    """Accelerators such as v5e:2x2, v5p:2x2x4 or h100:8: also print the largest batch that fits
    them, its memory and the work of a pass. Compiles for them without the hardware (needs the extra
    aot)."""
    fsdp: int = used_if(1, plan=True)
    """Number of those devices over which the weights of the tower's blocks are sharded."""
    dtype: Literal["float32", "bfloat16"] = used_if("bfloat16", plan=True)
    """Data type of the tower."""
    json: bool = False
    """Print JSON."""


@dataclass(frozen=True)
class Evaluate:
    """Evaluate an existing run again; --vlm also asks the Hugging Face model (needs torch)."""

    run: Positional[Path]
    """Directory of a run."""
    vlm: bool = False
    """Ask the model questions about the held-out images, before and after."""
    questions: Path | None = used_if(None, vlm=True)
    """JSON list of {question, answers: {class: answer}}; by default that of the run, or "what is
    this?" with the class names as answers."""
    mesh: str | None = None
    """Devices for the tower, as for `run`; by default all local devices."""
    workers: int | None = None
    """Processes that decode and pack images, as for `run`."""
    batch_patches: int | None = None
    """Patches per batch of a device; by default that of the run."""


@dataclass(frozen=True)
class Export:
    """Write a run's adapter for PyTorch."""

    run: Positional[Path]
    """Directory of a run."""
    out: Path
    """Directory to create."""
    format: Format = "peft"
    """peft: an adapter for PEFT; merged: a whole checkpoint with the change merged in."""
    overwrite: bool = False
    """Replace --out if it exists."""


Command = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Inspect, tyro.conf.subcommand("inspect")]
    | Annotated[
        RunConfig,
        tyro.conf.subcommand("run", description="Extract, fit, evaluate, save and report."),
    ]
    | Annotated[
        SweepConfig,
        tyro.conf.subcommand(
            "sweep", description="Fit and score many settings, and choose one of them."
        ),
    ]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Export, tyro.conf.subcommand("export")]
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: exits with 0, or prints one line that says what is wrong and exits with 2."""
    show_unencodable()
    console = Console(stderr=True)
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with warnings.catch_warnings(), raise_until_heeded():
            # Without markup, since a file name may contain brackets.
            warnings.showwarning = lambda message, *_: console.out(f"warning: {message}")
            dispatch(given, console)
    except UserError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        sys.exit(2)
    except TerminatedError as error:
        how = "interrupted" if error.number == signal.SIGINT else "terminated"
        print(f"{PROGRAM}: {how}; the same command with --resume continues", file=sys.stderr)
        exit_together(128 + error.number)
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def dispatch(arguments: Sequence[str], console: Console) -> None:
    """Parse and run a command; results go to stdout, progress and warnings to stderr."""
    kind = {"run": RunConfig, "sweep": SweepConfig}.get(arguments[0] if arguments else "")
    if kind:
        config, start = parse_run(kind, arguments)
        prepare(torch=False)
        if isinstance(config, SweepConfig):
            if found := sweep(config, console, start):
                finish_sweep(found, config)
        elif metrics := run(config, console, start):
            finish(metrics, config.execution.out)
        return
    if arguments and arguments[0] == "--version":
        print(f"{PROGRAM} {jax_unlearn.__version__}")
        return
    command: Any = tyro.cli(
        Command,
        prog=PROGRAM,
        description="Make a vision-language model forget something it sees.",
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    prepare(torch=isinstance(command, Evaluate) and command.vlm)
    match command:
        case Demo():
            finish(run(demo_config(command), console, demo_start(command)), command.out)
        case Inspect():
            plan = {"plan": command.plan is not None}
            refuse_unused(command, plan, Inspect(command.checkpoint))
            facts = inspect(command.checkpoint, command.plan, command.dtype, command.fsdp)
            print(json.dumps(facts, indent=2) if command.json else "\n".join(lines(facts)))
        case Evaluate():
            refuse_unused(command, {"vlm": command.vlm}, Evaluate(command.run))
            how = {name: getattr(command, name) for name in ("mesh", "workers", "batch_patches")}
            metrics = evaluate(command.run, command.vlm, command.questions, console, **how)
            finish(metrics, command.run)
        case Export():
            export(command.run, command.format, command.out, command.overwrite)
            print(command.out)


def prepare(torch: bool) -> None:
    """Set up the process before JAX compiles anything and transformers is imported."""
    make_reproducible()
    if not torch:
        hide_torch()


def parse_run(kind: type[Any], arguments: Sequence[str]) -> tuple[Any, RunConfig]:
    """(settings, initial settings): the settings are those of a preset or run, plus options."""
    first, _ = deciding_options().parse_known_args(list(arguments[1:]))
    helps = {"-h", "--help"} & set(arguments)
    if helps or not (first.checkpoint or first.statistics):
        start = RunConfig.of(checkpoint=Path(), out=Path())
        required = ["checkpoint", "out"]
    else:
        start = start_settings(
            first.preset,
            checkpoint=first.checkpoint,
            forget_text=first.forget_text,
            statistics=first.statistics,
        )
        required = ["out"]
    default = build(kind, {}, start)
    for name in required:
        group = default.samples if name == "checkpoint" else default.execution
        # Bypasses the frozen dataclass: tyro requires an option whose default is MISSING.
        object.__setattr__(group, name, tyro.MISSING)
    config = tyro.cli(
        kind,
        prog=f"{PROGRAM} {arguments[0]}",
        description=PRESET_HELP if kind is RunConfig else None,
        default=default,
        args=without_preset(arguments[1:]),
        config=(tyro.conf.OmitArgPrefixes,),
    )
    refuse_preset(first.preset, config)
    return config, start.replace(out=config.execution.out)


def deciding_options() -> argparse.ArgumentParser:
    """A parser of the options that determine the defaults of the others."""
    parser = argparse.ArgumentParser(prog=PROGRAM, add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", choices=get_args(Preset), default="default")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--statistics", type=Path)
    parser.add_argument("--forget-text", "--forget_text", nargs="*", default=())
    return parser


def without_preset(arguments: Sequence[str]) -> list[str]:
    """Remove --preset, which is not a setting of `RunConfig`, from the arguments."""
    kept, skip = [], False
    for one in arguments:
        if skip or one.startswith("--preset="):
            skip = False
        elif one == "--preset":
            skip = True
        else:
            kept.append(one)
    return kept
