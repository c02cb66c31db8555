"""UserError: the exception for input that the user can correct."""


class UserError(Exception):
    """Bad input. The message is one line that names the file or option and what to do.

    The command line prints it and exits with status 2; any other exception is a bug.
    """


class StoppedError(UserError):
    """A run cannot go on because a process has died; what it has done is saved for --resume."""
