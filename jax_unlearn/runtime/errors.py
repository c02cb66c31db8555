"""UserError: the one exception that a user can fix."""


class UserError(Exception):
    """Bad input. The message is one line that names the file or option and what to do.

    The command line prints it and exits with 2; any other exception is a fault of ours.
    """
