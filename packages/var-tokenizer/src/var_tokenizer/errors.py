"""The one exception that means: what the user gave is wrong."""


class InputError(ValueError):
    """A file, field or argument is unusable.

    The message names it, its value and what was expected. Commands print the message and
    exit with 2; library callers may catch it as a ``ValueError``.
    """
