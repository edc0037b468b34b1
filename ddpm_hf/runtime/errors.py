"""The errors that are reported in one line: the user's, which they can mend, and those of the machine under a run."""


class UserError(ValueError):
    """Raised for input that cannot be used; the message says what was given, what is possible and how to mend it.

    The programs print the message without a traceback and exit with code 2.
    """


class RunError(Exception):
    """Raised when a disk, another process or the like keeps a run from its end; the message says what is left of it.

    The programs print the message without a traceback and exit with code 1.
    """

    exit_code = 1


def first_line(error: Exception) -> str:
    """What an error of a library says, in one line; the name of its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
