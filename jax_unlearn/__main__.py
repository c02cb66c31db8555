"""The program: `jax-unlearn`, or `python -m jax_unlearn`."""

import gc
import signal

from jax_unlearn.runtime.interrupts import exit_at_once


def main() -> None:
    """Run the command line."""
    exit_at_once("jax-unlearn: interrupted")
    # Imported here because SIGINT would otherwise interrupt it with a traceback.
    from jax_unlearn.runs import cli

    try:
        cli.main()
    finally:
        # The result is there, and the exit code with it; exiting takes a moment.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # Python collects garbage as it ends, and would look through all that was imported, which
        # takes up to a second. The system takes the memory back anyway.
        gc.freeze()


if __name__ == "__main__":
    main()
