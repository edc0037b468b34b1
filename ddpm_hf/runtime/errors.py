"""The one error that is the user's to mend, and the wish to stop."""


class UserError(ValueError):
    """Something the user gave cannot be used; the message says what was given, what is possible and how to mend it.

    The programs print it as it is, without a traceback, and leave with exit code 2.
    """


class Abandoned(Exception):  # noqa: N818  (a wish, not an error)
    """Work was given up because the run is to stop; what was finished before stays."""
