"""The commands: dataclasses whose fields are the options; parse and run one of them."""

import argparse
import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_args

import tyro
from rich.console import Console
from tyro.conf import Positional

from jax_unlearn.data.scan import printable
from jax_unlearn.evaluate.vlm.settings import AskSettings
from jax_unlearn.runs import DESCRIPTION, PROGRAM
from jax_unlearn.runs.ask import Ask, ask_run, show_replies
from jax_unlearn.runs.attack import AttackOptions, attack
from jax_unlearn.runs.certificate import Certify, certify, show_digest
from jax_unlearn.runs.commands import evaluate, sweep
from jax_unlearn.runs.compare import Compare, compare
from jax_unlearn.runs.demo import Demo, demo_config, demo_start
from jax_unlearn.runs.export import Export, Unmerge, export, unmerge
from jax_unlearn.runs.help import print_help
from jax_unlearn.runs.inspect.checkpoint_facts import inspect, lines
from jax_unlearn.runs.ledger.command_line import Ledger, run_ledger
from jax_unlearn.runs.ledger.options import Listing, Undo, with_target_defaults
from jax_unlearn.runs.pipeline import run
from jax_unlearn.runs.report.comparison import Report, write_comparison
from jax_unlearn.runs.settings.checks import refuse_preset, refuse_unused
from jax_unlearn.runs.settings.config import RunConfig, build, read_config
from jax_unlearn.runs.settings.config_file import OF_RUN, options_in
from jax_unlearn.runs.settings.presets import Preset, start_settings, with_target
from jax_unlearn.runs.settings.sweep_config import SweepConfig, sweep_start
from jax_unlearn.runs.terminal import finish, finish_attacks, finish_sweep, print_table
from jax_unlearn.runs.verify import Verify, show_verification, verify
from jax_unlearn.runtime.compilation_cache import compiled_programs_kept
from jax_unlearn.runtime.errors import UserError
from jax_unlearn.runtime.no_torch import without_torch
from jax_unlearn.runtime.used_if import used_if
from jax_unlearn.runtime.xla_flags import make_reproducible

# Settings of the tower that `evaluate` may replace.
HOW = ("mesh", "workers", "batch_patches")
# Options and commands have no prefix of the group that they are in.
FLAT = (tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)


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
    """JSON list of {question, answers: {class: answer}}, or the files of MLLMU-Bench, CLEAR or
    FIUBench; by default those of the run, or else "what is this?" and "is there a …?", with right
    answers from the class names."""
    asking: AskSettings = field(default_factory=AskSettings)
    mesh: str | None = None
    """Devices for the tower, as for `run`; by default all local devices."""
    workers: int | None = None
    """Processes that decode and pack images, as for `run`."""
    batch_patches: int | None = None
    """Patches per batch of a device; by default that of the run."""

    checkpoint: Path | None = None
    """Where the run's checkpoint is now, if it was moved."""


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
    | Annotated[Ledger, tyro.conf.subcommand("ledger")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[AttackOptions, tyro.conf.subcommand("attack")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Ask, tyro.conf.subcommand("ask")]
    | Annotated[Export, tyro.conf.subcommand("export")]
    | Annotated[Unmerge, tyro.conf.subcommand("unmerge")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Certify, tyro.conf.subcommand("certify")]
    | Annotated[Verify, tyro.conf.subcommand("verify")]
)


def dispatch(arguments: Sequence[str], console: Console) -> None:
    """Parse and run a command; results go to stdout, progress and warnings to stderr."""
    kind = {"run": RunConfig, "sweep": SweepConfig}.get(arguments[0] if arguments else "")
    if kind and {"-h", "--help"} & set(arguments):
        print_help(arguments[0])
        sys.exit()
    if kind:
        config, start = parse_run(kind, arguments)
        with prepared(console):
            run_or_sweep(config, console, start)
        return
    command = parse(Command, PROGRAM, with_target_defaults(arguments), description=DESCRIPTION)
    with prepared(console, torch=needs_torch(command), keep=compiles(command)):
        execute(command, console)


def needs_torch(command: Any) -> bool:
    """Whether a command asks the Hugging Face model."""
    match command:
        case Ask() | AttackOptions():
            return True
        case Evaluate():
            return command.vlm
        case Verify():
            return command.ask > 0
    return False


def compiles(command: Any) -> bool:
    """Whether a command compiles programs that another one may use.

    Those of `inspect --plan` are for accelerators that are not here and could not be loaded.
    """
    match command:
        case Ledger():
            return not isinstance(command.request, Listing | Undo)
        case Verify():
            return command.figures or command.ask > 0
    return not isinstance(command, Inspect | Report | Export | Unmerge | Compare | Certify)


@contextmanager
def prepared(console: Console, torch: bool = False, keep: bool = True) -> Iterator[None]:
    """Set up the process before JAX compiles anything and transformers is imported.

    Args:
        console: where warnings go.
        torch: whether the command uses PyTorch.
        keep: whether compiled programs are kept for later commands.
    """
    make_reproducible()
    kept: AbstractContextManager[None] = nullcontext()
    if keep:
        kept = compiled_programs_kept(
            lambda line: console.out(printable(f"warning: {line}"), highlight=False)
        )
    if torch:
        # Or JAX would take most of an accelerator's memory, which PyTorch needs.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    with kept, nullcontext() if torch else without_torch():
        yield


def run_or_sweep(config: RunConfig | SweepConfig, console: Console, start: RunConfig) -> None:
    if isinstance(config, SweepConfig):
        if found := sweep(config, console, start):
            finish_sweep(found, config)
    elif metrics := run(config, console, start):
        finish(metrics, config.execution.out)


def execute(command: Any, console: Console) -> None:
    """Run any other command."""
    match command:
        case Demo():
            finish(run(demo_config(command), console, demo_start(command)), command.out)
        case Inspect():
            plan = {"plan": command.plan is not None}
            refuse_unused(command, plan, Inspect(command.checkpoint))
            facts = inspect(command.checkpoint, command.plan, command.dtype, command.fsdp)
            print(json.dumps(facts, indent=2) if command.json else "\n".join(lines(facts)))
        case Ledger():
            run_ledger(command.request, console)
        case Evaluate():
            refuse_unused(command, {"vlm": command.vlm}, Evaluate(command.run))
            how = {name: getattr(command, name) for name in (*HOW, "checkpoint")}
            how["asking"] = command.asking
            metrics = evaluate(command.run, command.vlm, command.questions, console, **how)
            finish(metrics, command.run)
        case AttackOptions():
            finish_attacks(attack(command, console), command.run)
        case Report():
            write_comparison(command)
            print(printable(str(command.out)))
        case Ask():
            show_replies(ask_run(command, console), command.json)
        case Export():
            said = export(command)
            print(printable(str(command.out)))
            print(*said, sep="\n", file=sys.stderr)
        case Compare():
            verdict = compare(command)
            print_table(verdict.table)
            print(*map(printable, verdict.lines), sep="\n")
            sys.exit(0 if verdict.present else 1)
        case Certify():
            show_digest(command, certify(command, console))
        case Verify():
            found = verify(command, console)
            show_verification(found, command)
            sys.exit(1 if found.differences else 0)
        case Unmerge():
            unmerge(command)
            print(printable(str(command.out)))


def parse(kind: Any, program: str, words: Sequence[str], **options: Any) -> Any:
    """Parse options into a dataclass with tyro.

    Raises:
        UserError: an option is unknown, missing or has another type; in one line.
    """
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(kind, prog=program, args=words, config=FLAT, **options)
    except SystemExit as ended:
        if not ended.code:
            raise
        # tyro draws a box, in ASCII where stdout cannot show other characters; first its title.
        lines = [line.strip("│ ") for line in said.getvalue().splitlines()]
        what = " ".join([line for line in lines if line.strip("╭╮╰╯─-")][1:])
        what = what.partition(" For full helptext")[0]
        raise UserError(f"{what}; see `{program} --help`") from None


def parse_run(kind: type[Any], arguments: Sequence[str]) -> tuple[Any, RunConfig]:
    """(settings, initial settings): the settings are those of a preset or run, plus options."""
    given = with_config(arguments[1:])
    first, _ = deciding_options().parse_known_args(given)
    required = ["out"]
    if first.config:
        # The config.json of a run; the values of other files are among the options.
        refuse_beside(first, "--config")
        start = with_target(read_config(first.config.parent), first.target)
    elif first.checkpoint or first.statistics:
        start = start_settings(
            first.preset,
            checkpoint=first.checkpoint,
            forget_text=first.forget_text,
            statistics=first.statistics,
            target=first.target,
            given=names_in(given),
        )
    else:
        start, required = RunConfig.of(checkpoint=Path(), out=Path()), ["checkpoint", "out"]
    default = build(kind, sweep_start(start) if kind is SweepConfig else {}, start)
    for name in required:
        group = default.samples if name == "checkpoint" else default.execution
        # Bypasses the frozen dataclass: tyro requires an option whose default is MISSING.
        object.__setattr__(group, name, tyro.MISSING)
    words = without(given, "--preset", "--config")
    config = parse(kind, f"{PROGRAM} {arguments[0]}", words, default=default)
    refuse_preset(first.preset, config)
    return config, start.replace(out=config.execution.out)


def names_in(words: Sequence[str]) -> set[str]:
    """The settings that some options give, by name."""
    flags = (word.split("=")[0] for word in words if word.startswith("--"))
    return {flag.removeprefix("--").removeprefix("no-").replace("-", "_") for flag in flags}


def with_config(words: Sequence[str]) -> list[str]:
    """The options, with those of a --config file in its place, unless it is that of a run.

    Raises:
        UserError: the file cannot be read.
    """
    first, _ = deciding_options().parse_known_args(list(words))
    if first.config is None or first.config.name == OF_RUN:
        return list(words)
    # First, so that the options of the command line override them.
    return [*options_in(first.config), *without(words, "--config")]


def refuse_beside(first: argparse.Namespace, one: str) -> None:
    """Refuse options that also determine all initial settings.

    Raises:
        UserError: such an option is given.
    """
    for name, value in {
        "--preset": first.preset != "default",
        "--statistics": first.statistics,
    }.items():
        if value:
            raise UserError(f"{name}: {one} starts from the settings of a run; leave one out")


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are a UserError, which is printed in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def deciding_options() -> argparse.ArgumentParser:
    """A parser of the options that determine the defaults of the others."""
    parser = OneLineParser(prog=PROGRAM, add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", choices=get_args(Preset), default="default")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--statistics", type=Path)
    parser.add_argument("--target")
    parser.add_argument("--forget-text", "--forget_text", nargs="*", default=())
    return parser


def without(words: Sequence[str], *flags: str) -> list[str]:
    """Remove options that are not settings of `RunConfig`, each with its value."""
    kept, skip = [], False
    for one in words:
        if skip or one.split("=")[0] in flags:
            skip = one in flags and not skip
        else:
            kept.append(one)
    return kept
