"""Entry point of the command line: help, errors and exit codes.

Everything else is imported when a command is run, since JAX takes a second.
"""

import argparse
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from jax_unlearn.runs import DESCRIPTION, PROGRAM
from jax_unlearn.runtime.errors import UserError

INTERRUPTED = f"{PROGRAM}: interrupted"
# As of sysexits.h, EX_SOFTWARE.
INTERNAL_ERROR = 70
COMMANDS = {
    "demo": "run on the bundled model and images, on CPU, without network",
    "inspect": "show a checkpoint's family, Mergers and memory, and whatever a run would refuse",
    "run": "extract, fit, evaluate, save and report",
    "sweep": "fit and score many settings, and choose one of them",
    "ledger": "many requests to forget, in any order, each of which can be withdrawn",
    "evaluate": "evaluate a run again; --vlm also asks the Hugging Face model",
    "attack": "attack the changed model, with controls: who can still find the concept",
    "report": "write a page that compares runs",
    "ask": "ask the Hugging Face model about any images, before and after",
    "export": "write the changed model for PyTorch: a merged checkpoint, or an adapter for PEFT",
    "unmerge": "undo a merge, with the file that `export --undo` wrote",
    "compare": "say whether the change is in what is served, and how large it is",
    "certify": "write a certificate of a run: digests, settings, figures, the threat model",
    "verify": "say whether a run is as its certificate says",
}
EXAMPLES = f"""\
examples:
  {PROGRAM} demo
  {PROGRAM} run --checkpoint Qwen/Qwen3-VL-2B-Instruct --forget cats --preserve others --out run
  {PROGRAM} run --help          the options of a command
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; exits with 0, or prints one line that says what is wrong and exits with 2."""
    with closed_pipe_ends_it():
        run_command(list(sys.argv[1:] if arguments is None else arguments))
        # What is left would be written at Python's exit, which has its own words for a closed pipe.
        sys.stdout.flush()


@contextmanager
def closed_pipe_ends_it() -> Iterator[None]:
    """If whoever reads the output has ended, as `head` does, exit as other programs do."""
    try:
        yield
    except BrokenPipeError:
        # Python would complain at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def run_command(given: Sequence[str]) -> None:
    """Run a command; see `main`."""
    parser = overview()
    if not given or given[0] in ("-h", "--help"):
        # Not by print_help, which would hide that it cannot be written.
        print(parser.format_help(), end="")
        sys.stdout.flush()
        sys.exit(0 if given else 2)
    if given[0] == "--version":
        # Imported here because the metadata of all packages is searched.
        from jax_unlearn.runtime.version import VERSION

        print(f"{PROGRAM} {VERSION}")
        return
    from jax_unlearn.data.scan import printable
    from jax_unlearn.runs.command_line import dispatch
    from jax_unlearn.runs.terminal import show_unencodable
    from jax_unlearn.runtime.interrupts import raise_until_heeded
    from jax_unlearn.runtime.pipe_console import PipeConsole
    from jax_unlearn.runtime.processes import exit_together
    from jax_unlearn.runtime.resume import TerminatedError

    show_unencodable()
    console = PipeConsole(stderr=True)
    try:
        with warnings.catch_warnings(), raise_until_heeded():
            # A command says every warning and does not end with it, whatever the process filters.
            for said in (UserWarning, RuntimeWarning):
                warnings.simplefilter("default", said)
            # Without markup, since a file name may contain brackets.
            warnings.showwarning = lambda message, *_: console.out(
                printable(f"warning: {message}"), highlight=False
            )
            dispatch(given, console)
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except UserError as error:
        # In one line and without control characters, whatever names it quotes.
        print(f"{PROGRAM}: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    except TerminatedError as error:
        how = "interrupted" if error.number == signal.SIGINT else "terminated"
        then = (
            "the same command with --resume continues"
            if error.saved
            else "nothing was saved yet, so the same command begins again"
        )
        print(f"{PROGRAM}: {how}; {then}", file=sys.stderr)
        exit_together(128 + error.number)
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except OSError as error:
        # Without a file's name it was the output itself, as on a full disk.
        where = error.filename or "the output"
        print(
            f"{PROGRAM}: {where}: {error.strerror or error}; see that it can be used",
            file=sys.stderr,
        )
        sys.exit(2)
    except Exception as error:
        print(f"{PROGRAM}: {unexpected(error)}", file=sys.stderr)
        sys.exit(INTERNAL_ERROR)


def unexpected(error: Exception) -> str:
    """One line for an error that should not have happened; its traceback is written to a file."""
    # Imported here because it should not be needed.
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile(
        "w", prefix="jax-unlearn-error-", suffix=".txt", delete=False, encoding="utf-8"
    ) as file:
        file.write("".join(traceback.format_exception(error)).encode("utf-8", "replace").decode())
    what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return f"this is a fault of the program ({what}); please report it with {file.name}"


def overview() -> argparse.ArgumentParser:
    """The parser of `--help`: the commands, without their options."""
    width = max(map(len, COMMANDS)) + 2
    listed = "\n".join(f"  {name:<{width}}{what}" for name, what in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        usage=f"{PROGRAM} COMMAND [OPTIONS]",
        description=f"{DESCRIPTION}\n\ncommands:\n{listed}",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="show the version")
    return parser
