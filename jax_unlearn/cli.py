"""The command line. Commands are dataclasses, and their options are the dataclasses' fields."""

import json
import signal
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from jax_unlearn.config import (
    OF_TOWER,
    Preset,
    RunConfig,
    preset_settings,
    read_config,
    settings_of,
)
from jax_unlearn.errors import UserError
from jax_unlearn.gpu_flags import make_reproducible
from jax_unlearn.hosts import leave
from jax_unlearn.inspect import inspect, lines
from jax_unlearn.report.page import VLM_ROWS, ZERO_SHOT_ROWS, percent
from jax_unlearn.resume import TerminatedError
from jax_unlearn.run import Format, Metrics, evaluate, export, run, sweep
from jax_unlearn.shipped import ASSETS, CLIP_ASSETS
from jax_unlearn.sweep_config import SweepConfig
from jax_unlearn.torchless import hide_torch
from jax_unlearn.tradeoff import TradeOff

REQUIRED = ("checkpoint", "out")


@dataclass(frozen=True)
class Demo:
    """The whole job on the bundled model and images, on CPU, without network."""

    concept: str | None = None
    """What to forget: a photo (astronaut is the default), a shape, a colour, or a pair; with --clip
    one of its names ("red triangle" is the default)."""
    clip: bool = False
    """Forget a name through the text side of the bundled CLIP."""
    out: Path = Path("unlearn-demo")
    """Directory of the run."""
    preset: Preset = "default"
    """What works best, or the published scheme."""
    overwrite: bool = False
    """Replace --out if it exists."""


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
        leave(128 + signal.SIGTERM)
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


def demo_config(demo: Demo) -> RunConfig:
    """The demo is a run over the bundled folders."""
    if demo.clip:
        return clip_demo_config(demo)
    return RunConfig(
        checkpoint=ASSETS / "checkpoint",
        forget=ASSETS / "images" / "train",
        preserve=ASSETS / "images" / "train",
        forget_held_out=ASSETS / "images" / "test",
        preserve_held_out=ASSETS / "images" / "test",
        questions=ASSETS / "questions.json",
        concept=demo.concept or "astronaut",
        out=demo.out,
        overwrite=demo.overwrite,
        **preset_settings(demo.preset, text=False),
    )


def clip_demo_config(demo: Demo) -> RunConfig:
    """The same for CLIP: one of the bundled classes' names is forgotten, the others are kept.

    Raises:
        UserError: no class has that name.
    """
    folder = CLIP_ASSETS / "images" / "test"
    names = sorted(path.name for path in folder.iterdir() if path.is_dir())
    concept = demo.concept or "red triangle"
    if concept not in names:
        raise UserError(f"--concept {concept}: must be one of {', '.join(names)}")
    return RunConfig(
        checkpoint=CLIP_ASSETS / "checkpoint",
        forget_text=(concept,),
        preserve_text=tuple(name for name in names if name != concept),
        images=folder,
        out=demo.out,
        overwrite=demo.overwrite,
        **preset_settings(demo.preset, text=True),
    )


def finish(metrics: Metrics, out: Path) -> None:
    """Print the summary, and fail if training had to stop."""
    for file in metrics["samples"]["skipped"]:
        print(f"skipped {file}", file=sys.stderr)
    if not (found := metrics["search"])["reached"]:
        fall, trials = percent(found["fall"]), found["trials"]
        print(
            f"warning: the forget norm fell by {fall} only, in {trials} trainings", file=sys.stderr
        )
    Console().print(summary(metrics))
    print(f"{out / 'report.html'}")
    if metrics["stopped"]:
        raise UserError(f"{out}: {metrics['stopped']}; the last good adapter was saved")


def finish_sweep(found: TradeOff, config: SweepConfig) -> None:
    """Print the chosen setting, the front, and how to run it."""
    settings = [asdict(point.setting) for point in found.points]
    varied = [name for name in settings[0] if len({s[name] for s in settings}) > 1]
    scores = ("forget, still named", "preserve, right", "drift of it")
    table = Table("", *scores, *(name.replace("_", " ") for name in varied))
    for point in sorted(found.front, key=lambda p: (p.score.forget, p.score.drift)):
        shown = (percent(s) for s in (point.score.forget, point.score.preserve, point.score.drift))
        values = (str(getattr(point.setting, name)) for name in varied)
        table.add_row("chosen" if point is found.chosen else "", *shown, *values)
    Console().print(table)
    if not found.reached:
        print("warning: no setting forgets enough; the chosen one forgets most", file=sys.stderr)
    print(config.out / "sweep.csv")


def summary(metrics: Metrics) -> Table:
    """Before and after: the worst path by the probe fitted on the original features, or names."""
    shown = metrics["zero_shot"]["on"] if "zero_shot" in metrics else "images"
    table = Table(f"held-out {shown}", "before", "after", "chance")
    if zero_shot := metrics.get("zero_shot"):
        add_zero_shot(table, zero_shot)
    if "paths" in metrics:
        forget, preserve = metrics["forget"], metrics["preserve"]
        table.add_row("forget, still named by a probe", *shares(forget, "chance"))
        chance = f"{metrics['chance']['preserve']:.3f}"
        table.add_row("preserve, right by the same probe", *shares(preserve), chance)
    for before, after in zip(*named(metrics), strict=True):
        share = (f"{before['share']:.3f}", f"{after['share']:.3f}", f"{before['chance']:.3f}")
        table.add_row(f"the model names it: {before['question']}", *share)
    if vlm := metrics.get("vlm"):
        for key, text in VLM_ROWS:
            shown = [percent(vlm[when][key]) for when in ("before", "after")]
            table.add_row(f"the model, {text}", *shown, "")
    return table


def add_zero_shot(table: Table, zero_shot: Metrics) -> None:
    """Zero-shot accuracy: each forgotten class, all others, their neighbours, other data."""
    for name, share in zero_shot["classes"].items():
        both = (percent(share["before"]), percent(share["after"]))
        table.add_row(f"zero-shot, {name} (to forget)", *both, percent(zero_shot["chance"]))
    for key, text in ZERO_SHOT_ROWS:
        both = (percent(zero_shot["before"][key]), percent(zero_shot["after"][key]))
        table.add_row(f"zero-shot, {text}", *both, "")
    for folder, share in zero_shot["other_data"].items():
        both = (percent(share["before"]), percent(share["after"]))
        table.add_row(f"zero-shot, {folder}", *both, "")


def shares(scores: dict[str, float], *more: str) -> list[str]:
    return [f"{scores[key]:.3f}" for key in ("accuracy_before", "accuracy_after", *more)]


def named(metrics: Metrics) -> tuple[list[Metrics], list[Metrics]]:
    vlm = metrics.get("vlm")
    return (vlm["before"]["named"], vlm["after"]["named"]) if vlm else ([], [])


if __name__ == "__main__":
    main()
