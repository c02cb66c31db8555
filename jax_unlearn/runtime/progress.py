"""A progress bar that is silent without a terminal."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)


def progress_bar(console: Console, counted: bool = True) -> Progress:
    """A progress bar that disappears when it is done.

    Args:
        counted: show the count, such as 3/10.
    """
    columns: list[ProgressColumn] = [TextColumn("{task.description}", markup=False), BarColumn()]
    columns += [MofNCompleteColumn()] if counted else []
    # Without a terminal the bar would print empty lines.
    quiet = not console.is_terminal
    return Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=quiet)
