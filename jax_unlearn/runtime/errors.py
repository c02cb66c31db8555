"""The one exception that means "the user can mend this"."""


class UserError(Exception):
    """Bad input. The message is one line that names the file or option and the mend.

    The command line prints it and exits with 2; any other exception is a fault of ours.
    """
