"""The command `ledger` and its own commands."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from jax_unlearn.data.scan import printable
from jax_unlearn.runs.ledger.commands import add, init, solve, undo
from jax_unlearn.runs.ledger.listing import listing
from jax_unlearn.runs.ledger.options import Add, Init, Listing, Solve, Undo
from jax_unlearn.runs.report.verdict import percent
from jax_unlearn.runs.run_directory import Metrics
from jax_unlearn.runs.terminal import finish, print_table

Request = (
    Annotated[Init, tyro.conf.subcommand("init")]
    | Annotated[Add, tyro.conf.subcommand("add")]
    | Annotated[Undo, tyro.conf.subcommand("undo")]
    | Annotated[Listing, tyro.conf.subcommand("list")]
    | Annotated[Solve, tyro.conf.subcommand("solve")]
)


@dataclass(frozen=True)
class Ledger:
    """Many requests to forget, in any order, each of which can be withdrawn."""

    request: Request


def run_ledger(command: Any, console: Console) -> None:
    """Run a command of a ledger; results go to stdout, what was left out to stderr."""
    match command:
        case Init():
            left_out = init(command, console)
            print(printable(str(command.directory)))
            say(left_out)
        case Add():
            id, left_out = add(command, console)
            print(id)
            say(left_out)
        case Undo():
            undo(command)
            print(f"{command.id} is withdrawn")
        case Listing():
            found = listing(command)
            if command.json:
                print(json.dumps(found, indent=2))
            else:
                show_listing(found)
        case Solve():
            metrics = solve(command, console)
            show_requests(metrics["ledger"]["requests"])
            finish(metrics, command.out)


def say(lines: Sequence[str]) -> None:
    """Print lines on stderr."""
    for line in lines:
        print(printable(line), file=sys.stderr)


def show_listing(found: Metrics) -> None:
    """Print the entries, the active requests and the digest to keep."""
    entries = Table("entry", "what", "request", "concept", "time")
    for one in found["entries"]:
        row = (str(one["number"]), one["kind"], one["id"], one["concept"], one["time"])
        entries.add_row(*map(printable, row))
    print_table(entries)
    onto = ["moved onto"] if any("stand_in" in one for one in found["active"]) else []
    what = "prompts" if found["names"] else "images"
    requests = Table("active request", "concept", what, "held out", *onto)
    for one in found["active"]:
        cells = [one["id"], one["concept"], str(one["images"]), str(one["held_out"])]
        if onto:
            nearest = one.get("in_place_of")
            why = f", as {nearest} is forgotten" if nearest else ""
            cells.append(one.get("stand_in", "—") + why)
        requests.add_row(*map(printable, cells))
    print_table(requests)
    if found["unnamed"]:
        print(
            f"store: {len(found['unnamed'])} files that no entry names, of commands that were "
            "ended before they appended their entry; they may be deleted"
        )
    print(f"SHA-256 of the last entry: {found['digest']}")


def show_requests(requests: Sequence[Metrics]) -> None:
    """Print what a linear probe names of each request."""
    table = Table("request", "concept", "named before", "named after")
    for one in requests:
        shares = (
            "—" if one[name] is None else percent(one[name])
            for name in ("named_before", "named_after")
        )
        table.add_row(one["id"], printable(one["concept"]), *shares)
    print_table(table)
