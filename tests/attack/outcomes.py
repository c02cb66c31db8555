"""Run one command on a hostile input, and say what is wrong with how it ended."""

import contextlib
import io
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jax_unlearn.runs.cli import main

# Far more than any command here takes on a busy machine.
SECONDS = 120
# Files of a run that the same inputs and settings write to the last byte.
REPRODUCED = ("adapter/adapter_model.safetensors", "adapter/adapter_config.json")


@dataclass(frozen=True)
class Attack:
    """A command and what it may do.

    what: describes the input.
    out: the output directory, which must not exist after an error.
    same: a run whose adapter `out` must have after success, as the input may not change it.
    differs: whether exit code 1 is a result, as it is of `verify`.
    """

    what: str
    words: list[str]
    out: Path | None = None
    same: Path | None = None
    differs: bool = False


class HangError(BaseException):
    """The command took longer than SECONDS."""


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    """Raise HangError in the block after SECONDS.

    By a signal that jax-unlearn does not use itself, as it does SIGALRM.
    """

    def hung(*_: object) -> None:
        raise HangError

    earlier = signal.signal(signal.SIGUSR1, hung)
    clock = threading.Timer(SECONDS, os.kill, (os.getpid(), signal.SIGUSR1))
    clock.daemon = True
    clock.start()
    try:
        yield
    finally:
        clock.cancel()
        signal.signal(signal.SIGUSR1, earlier)


def fault_of(attack: Attack) -> str | None:
    """Run a command; what is wrong with how it ended, its kind first, or None if nothing is.

    The output is removed afterwards.
    """
    try:
        return _fault_of(attack)
    finally:
        if attack.out:
            shutil.rmtree(attack.out, ignore_errors=True)
            # A page is a file.
            attack.out.unlink(missing_ok=True)


def _fault_of(attack: Attack) -> str | None:
    said, printed = io.StringIO(), io.StringIO()
    code: object = 0
    try:
        with time_limit(), contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed):
            main(attack.words)
    except SystemExit as ended:
        code = ended.code or 0
    except HangError:
        return f"hang: took {SECONDS} seconds"
    except BaseException as error:
        return f"exception: {error!r}"
    if code == 1 and attack.differs:
        code = 0
    return of_text(code, said.getvalue(), printed.getvalue()) or of_output(attack, code)


def of_text(code: object, said: str, printed: str) -> str | None:
    """What is wrong with an exit code, stderr and stdout."""
    if "\x1b" in said or "\x1b" in printed:
        return f"control character: {said[-300:]!r}"
    if code == 0:
        return None
    if code != 2:
        return f"exit code {code}: {said[-300:]}"
    lines = [line for line in said.splitlines() if line.startswith("jax-unlearn:")]
    if len(lines) != 1 or said.splitlines()[-1] != lines[0]:
        return f"several lines: {said[-300:]}"
    return None


def of_output(attack: Attack, code: object) -> str | None:
    """What is wrong with the output directory, and with what lies beside it."""
    if attack.out is None:
        return None
    if left := [path.name for path in attack.out.parent.glob(f".{attack.out.name}.*")]:
        return f"leftover: {left}"
    if code != 0:
        return "half-written output: it exists after an error" if attack.out.exists() else None
    if attack.same and any(
        (attack.out / name).read_bytes() != (attack.same / name).read_bytes() for name in REPRODUCED
    ):
        return "other result: the adapter differs from that of the undamaged input"
    return None
