"""The one error that the user can mend."""


class UserError(ValueError):
    """Raised for input that cannot be used; the message says what was given, what is possible and how to mend it.

    The programs print the message without a traceback and exit with code 2.
    """
