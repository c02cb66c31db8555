"""A console for programs whose output may be read by another that ends early, such as `head`."""

from rich.console import Console


class PipeConsole(Console):
    """A console whose closed pipe is a BrokenPipeError, where Rich's exits with code 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError
