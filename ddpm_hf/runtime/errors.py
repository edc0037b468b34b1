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
