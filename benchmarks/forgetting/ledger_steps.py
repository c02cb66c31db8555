"""What is named of each request after each entry of a ledger, by `ledger solve --steps`.

On the shipped model and images: requests that overlap, one of which is withdrawn.
"""

import contextlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import tyro

from benchmarks.forgetting.targets import machine
from benchmarks.harness import write
from benchmarks.markdown import caption, table_of
from jax_unlearn.runs.cli import main as jax_unlearn
from jax_unlearn.runtime.assets import ASSETS

RESULTS = Path(__file__).parents[1] / "results" / "ledger_steps.json"


@dataclass
class Options:
    """The entries: concepts to add in this order, and -CONCEPT to withdraw one."""

    entries: tuple[str, ...] = ("astronaut", "triangle", "teal", "-teal", "coffee")
    out: Path = RESULTS


def said(*words: object) -> str:
    """What a command prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        jax_unlearn([*map(str, words)])
    return printed.getvalue()


def measure(entries: Sequence[str]) -> dict[str, Any]:
    """`ledger.steps` of metrics.json, with the concepts."""
    ids: dict[str, str] = {}
    images = ASSETS / "images"
    with TemporaryDirectory() as temporary:
        ledger, run = Path(temporary) / "ledger", Path(temporary) / "run"
        given = ["--checkpoint", ASSETS / "checkpoint", "--preserve", images / "train"]
        given += ["--preserve-held-out", images / "test"]
        said("ledger", "init", ledger, *given)
        for entry in entries:
            if entry.startswith("-"):
                said("ledger", "undo", ledger, ids[entry[1:]])
            else:
                ids[entry] = said("ledger", "add", ledger, "--concept", entry).split()[-1]
        said("ledger", "solve", ledger, "--steps", "--out", run)
        found = json.loads((run / "metrics.json").read_text())["ledger"]
    return {"concepts": found["concepts"], "steps": found["steps"]}


def table(results: dict[str, Any]) -> str:
    """Entries × requests: per cent named, in bold while the request is active."""
    concepts = results["concepts"]
    rows = []
    for step in results["steps"]:
        what = f"{step['entry']} {step['kind']} {concepts.get(step['id'], '')}".strip()
        shares = ((id in step["active"], 100 * step["named"][id]) for id in concepts)
        rows.append([what, *(f"**{one:.1f}**" if bold else f"{one:.1f}" for bold, one in shares)])
    about = caption(results["machine"], "forgetting.ledger_steps")
    return f"{about}\n\n{table_of(['entry', *concepts.values()], rows)}"


def main() -> None:
    options = tyro.cli(Options)
    write(options.out, {"machine": machine(), **measure(options.entries)})


if __name__ == "__main__":
    main()
