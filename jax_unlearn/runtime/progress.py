"""A progress bar; without a terminal, a line every few seconds."""

import time
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

# Seconds between lines; the first comes after as long, so that short work prints none.
EVERY = 10.0


class ProgressLines(Progress):
    """Prints a line at most every `EVERY` seconds in place of a bar, for files and logs."""

    def __init__(self, console: Console) -> None:
        super().__init__(console=console, disable=True)
        self.said = time.monotonic()

    def advance(self, task_id: TaskID, advance: float | int = 1) -> None:
        super().advance(task_id, advance)
        self.say(task_id)

    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        self.say(task_id)

    def say(self, task_id: TaskID) -> None:
        """Print the task's state, unless a line was printed a moment ago."""
        if (now := time.monotonic()) - self.said >= EVERY:
            self.said = now
            self.console.out(line(self._tasks[task_id]), highlight=False)


def line(task: Task) -> str:
    """The state of a task: what, how much of it, and the time left."""
    done = f"{task.completed:,.0f}"
    parts = [f"{done} of {task.total:,.0f}" if task.total is not None else done]
    if task.time_remaining is not None:
        minutes, seconds = divmod(int(task.time_remaining), 60)
        parts.append(f"{minutes}:{seconds:02d} min left")
    return f"{task.description}: {', '.join(parts)}"


def progress_bar(console: Console, counted: bool = True) -> Progress:
    """A progress bar that disappears when it is done; lines if the console is not a terminal.

    Args:
        counted: show the count, such as 3/10.
    """
    if not console.is_terminal:
        return ProgressLines(console)
    columns: list[ProgressColumn] = [TextColumn("{task.description}", markup=False), BarColumn()]
    columns += [MofNCompleteColumn()] if counted else []
    return Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
