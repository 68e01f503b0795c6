"""Errors of the place that images lie in, which no other image may stand in for."""

import errno

from var_tokenizer.common import InputError

TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)
"""What ``OSError`` says where a process, or the system, may open no more."""


class SourceError(InputError):
    """Images cannot be read through no fault of theirs: a run stops rather than skip them."""


def refuse_lost(error: InputError) -> None:
    """Raises SourceError if ``error`` is not the fault of the image that could not be read."""
    if isinstance(error, SourceError):
        raise error
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno in TOO_MANY_FILES:
        raise SourceError(f"{error}; expected more to be allowed (ulimit -n)") from error
