"""Help of `run` and `sweep`: their many options in groups, the few that everybody needs first."""

import textwrap
from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from jax_unlearn.runs import PROGRAM
from jax_unlearn.runs.settings.config import RunConfig
from jax_unlearn.runs.settings.options import Option, options_of
from jax_unlearn.runs.settings.sweep_config import SweepConfig, SweepSettings
from jax_unlearn.runtime.pipe_console import PipeConsole

PRESET = Option(
    RunConfig,
    "preset",
    "default, faithful, clip-rn50, clip-vit-b16, clip-multi",
    "default",
    "Initial settings, which other options override: default, those that worked best in our "
    "measurements (for names --target blank and --lambda-preserve 1); faithful, the published "
    "scheme (for images: main Merger only, random unit targets, tokens, sums; for names including "
    "its faults, with the last epoch kept); clip-..., for names, its constants without those "
    "faults.",
)
CONFIG = Option(
    RunConfig,
    "config",
    "path",
    None,
    "YAML or JSON file of settings by name, such as `rank: 5`, or the config.json of a run; "
    "options override it.",
)
# Each option of `run` is in one group.
GROUPS = {
    "the five that everybody needs": ("checkpoint", "forget", "preserve", "concept", "out"),
    "settings from elsewhere": ("preset", "config", "statistics"),
    "images": (
        "forget_held_out",
        "preserve_held_out",
        "names",
        "max_pixels",
        "granularity",
        "keep_means",
        "strict",
        "questions",
    ),
    "what is adapted, and towards what": (
        "targets",
        "linears",
        "target",
        "near_step",
        "stand_in",
        "strength",
    ),
    "the loss": (
        "rank",
        "alpha",
        "lambda_forget",
        "lambda_preserve",
        "lambda_weight",
        "reduction",
    ),
    "the solver": (
        "optimizer",
        "auto",
        "until_forgotten",
        "count_rise",
        "select",
        "seed",
        "learning_rate",
        "epochs",
        "chunk",
        "iterations",
        "tolerance",
        "starts",
    ),
    "devices": ("dtype", "batch_patches", "sum_on", "mesh", "workers"),
    "output and resuming": (
        "overwrite",
        "base_model",
        "save_statistics",
        "track",
        "pictures",
        "resume",
        "save_seconds",
        "save_steps",
    ),
    "several processes": (
        "distributed",
        "coordinator",
        "process_id",
        "processes",
        "wait_seconds",
        "heartbeat_seconds",
    ),
    "CLIP": (
        "forget_text",
        "preserve_text",
        "images",
        "other_images",
        "template",
        "train_templates",
    ),
}
TRIED = "what a sweep tries, and how it chooses"
EXAMPLES = {
    "run": (
        "--checkpoint Qwen/Qwen3-VL-2B-Instruct --forget photos/me --preserve photos/others"
        " --out RUN",
        "--checkpoint CLIP --forget-text airplane --preserve-text names.txt --out RUN",
    ),
    "sweep": (
        "--statistics RUN --out SWEEP",
        "--checkpoint CHECKPOINT --forget IMAGES --preserve IMAGES --ranks 1 5 10 --out SWEEP",
    ),
}
ABOUT = {
    "run": "Extract, fit, evaluate, save and report.",
    "sweep": "Fit and score many settings, and choose one of them.",
}
# Below this, meanings would be columns of single words.
NARROWEST = 60


def print_help(command: str, console: Console | None = None) -> None:
    """Print the help of `run` or `sweep`."""
    console = console or PipeConsole(markup=False, emoji=False, highlight=False)
    console.print(f"usage: {PROGRAM} {command} --checkpoint CHECKPOINT --out DIRECTORY [OPTIONS]\n")
    console.print(f"{ABOUT[command]}\n")
    for title, options in grouped(command).items():
        console.print(f"{title}:", style="bold")
        console.print(Padding(table(options, max(console.width, NARROWEST)), (0, 0, 1, 2)))
    console.print("examples:", style="bold")
    for example in EXAMPLES[command]:
        line = f"{PROGRAM} {command} {example}"
        parts = textwrap.wrap(line, console.width - 8, break_on_hyphens=False)
        console.print(Padding(Text(" \\\n    ".join(parts)), (0, 0, 0, 2)))


def grouped(command: str) -> dict[str, list[Option]]:
    """The options of `run` or `sweep` by group."""
    kind: type = SweepConfig if command == "sweep" else RunConfig
    known = {one.name: one for one in options_of(kind)} | {"config": CONFIG}
    if command == "run":
        known["preset"] = PRESET
    groups = {
        title: [known[name] for name in names if name in known] for title, names in GROUPS.items()
    }
    tried = [one for one in known.values() if one.group is SweepSettings]
    return groups | {TRIED: tried} if tried else groups


def table(options: Sequence[Option], width: int) -> Table:
    """A row per option: flag and values, and meaning with the default."""
    rows = Table(box=None, show_header=False, padding=(0, 2, 0, 0), width=width - 2)
    rows.add_column(width=34, overflow="fold")
    rows.add_column(ratio=1)
    for option in options:
        no = ", --no-" + option.flag.removeprefix("--") if option.default is True else ""
        kind, _, many = option.values.partition("; ")
        choices = f" One of {kind}." if ", " in kind else ""
        value = "" if kind == "flag" else " VALUE" if choices else f" {kind.upper()}"
        shown = option.shown_default
        default = f" ({shown if shown == 'required' else f'default: {shown}'})" if shown else ""
        rows.add_row(
            Text(option.flag + no + value + (" ..." if many else "")),
            Text(option.text + choices + default),
        )
    return rows
