"""Continues an interrupted run, but only with the settings it began with."""

import json
from pathlib import Path
from typing import Any

from var_tokenizer.common import InputError, open_regular, quoted, replacing


def begin_or_resume(out: Path, settings: dict[str, Any], *, keep_batch: bool) -> int:
    """Records what the images in ``out`` depend on, or compares it with an earlier run's record.

    Returns the batch size, ``settings["batch"]``, or with ``keep_batch`` the earlier run's: with
    another batch, matrix products differ in the last bits, and so, rarely, a pixel by 1.

    Raises InputError for other settings than the earlier run's, and for images without a record.
    """
    settings = json.loads(json.dumps(settings))  # a file has lists for tuples
    path = out / "settings.json"
    if path.exists():
        try:
            with open_regular(path) as file:
                # runs from before --numbers have none
                before = {"numbers": None} | json.load(file)
            found = {name: before[name] for name in settings}
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputError(f"{quoted(path)}: not the settings of a run: {error!r}") from error
        if keep_batch and isinstance(found["batch"], int) and found["batch"] > 0:
            settings["batch"] = found["batch"]
        for name, value in settings.items():
            if found[name] != value:
                raise InputError(
                    f"{name} is {value} and was {quoted(str(found[name]))} in the run that "
                    f"{quoted(out)} holds; expected the same, or another --out"
                )
    else:
        if next(out.glob("[0-9]*_[0-9]*.png"), None) is not None:
            raise InputError(
                f"{quoted(out)}: holds images but no settings.json; expected another --out"
            )
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(settings, indent=1) + "\n")
    return settings["batch"]


def file_version(path: Path | None) -> tuple[int, ...] | None:
    """What changes when a file is replaced or written to; None if there is none."""
    if path is None or not path.exists():
        return None
    of = path.stat()
    return (of.st_dev, of.st_ino, of.st_size, of.st_mtime_ns)
