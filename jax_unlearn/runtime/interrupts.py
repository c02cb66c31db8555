"""SIGINT (Ctrl-C): heeded wherever it comes.

What a signal handler raises inside a finaliser or a callback of the garbage collector is printed
and lost, so nothing is raised there. It is raised again until it gets through, since there are
other such places. This module imports nothing that takes time.
"""

import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Seconds after which an exception is raised again, in case the first one was lost.
RETRY_SECONDS = 0.2


def exit_at_once(message: str) -> None:
    """From now on SIGINT ends the process with a message and exit code 130.

    For a program that has not written anything, or has ended: importing and exiting do not survive
    an exception at any point.
    """

    def end(*_: object) -> None:
        os.write(2, f"{message}\n".encode())
        os._exit(128 + signal.SIGINT)

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, end)


@contextmanager
def raise_until_heeded() -> Iterator[None]:
    """Within the block, SIGINT raises KeyboardInterrupt, even if other code loses or replaces it.

    Raises:
        KeyboardInterrupt: SIGINT was received.
    """
    received = False

    def interrupt(_: int, frame: FrameType | None) -> None:
        nonlocal received
        received = True
        signal.setitimer(signal.ITIMER_REAL, RETRY_SECONDS)
        if not (isinstance(sys.exception(), KeyboardInterrupt) or would_be_lost(frame)):
            raise KeyboardInterrupt

    with handled(interrupt, signal.SIGINT, signal.SIGALRM):
        try:
            yield
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            # Compiled code may turn it into an error of its own.
            if received:
                raise KeyboardInterrupt from error
            raise


def would_be_lost(frame: FrameType | None) -> bool:
    """Whether an exception would be lost: in a finaliser or a callback of the garbage collector."""
    callbacks = {getattr(callback, "__code__", None) for callback in gc.callbacks}
    while frame:
        if frame.f_code.co_name == "__del__" or frame.f_code in callbacks:
            return True
        frame = frame.f_back
    return False


@contextmanager
def handled(handler: "signal._HANDLER", *numbers: int) -> Iterator[None]:
    """Within the block, a handler for signals, except for SIGINT where that is ignored.

    A shell lets its background commands ignore SIGINT. Outside the main thread, which alone may
    handle signals, nothing is done. At the end the interval timer is stopped; a signal that comes
    at that moment is left to the earlier handler.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    taken = [n for n in numbers if signal.getsignal(n) is not signal.SIG_IGN]
    within, late = True, []

    def guarded(number: int, frame: FrameType | None) -> None:
        if not within:
            # What it raises would leave the rest undone, and a timer that ends the process.
            late.append(number)
        elif callable(handler):
            handler(number, frame)

    new = guarded if callable(handler) else handler
    before = {number: signal.signal(number, new) for number in taken}
    try:
        yield
    finally:
        within = False
        if signal.SIGALRM in numbers:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, earlier in before.items():
            signal.signal(number, earlier)
        for number in late:
            if number != signal.SIGALRM:
                signal.raise_signal(number)


@contextmanager
def blocked(*numbers: int) -> Iterator[None]:
    """Within the block, signals wait; processes that are started in it never get them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
