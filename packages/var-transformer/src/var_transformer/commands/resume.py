"""Continues an interrupted run, but only with the settings it began with."""

import json
import logging
from pathlib import Path
from typing import Any

from var_tokenizer.common import InputError, open_regular, quoted, replacing

from var_transformer.commands.selection import RECORD

log = logging.getLogger(__name__)


def begin_or_resume(out: Path, settings: dict[str, Any], *, keep_batch: bool, is_done: bool) -> int:
    """Records what the images in ``out`` depend on, or compares it with an earlier run's record.

    is_done: whether it holds all images. Returns the batch size, ``settings["batch"]``, or with
    ``keep_batch`` the earlier run's: with another batch, matrix products differ in the last bits,
    and so, rarely, a pixel by 1. A smaller one than the earlier run's replaces it, because memory
    may be short, unless all images are there.

    Raises InputError for other settings than the earlier run's, and for images without a record.
    """
    settings = json.loads(json.dumps(settings))  # a file has lists for tuples
    path = out / "settings.json"
    if path.exists():
        try:
            with open_regular(path) as file:
                # runs from before --numbers, --adapter, --dtype, --pruned and --speed have none
                older: dict[str, Any] = {"numbers": None, "adapters": [], "dtype": "float32"}
                before = older | {"selection": None} | json.load(file)
            before["sampler"] = {"pruned": [], "speed": 0} | before["sampler"]
            compared = {"selection": None} | settings
            found = {name: before[name] for name in compared}
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputError(f"{quoted(path)}: not the settings of a run: {error!r}") from error
        if keep_batch and isinstance(found["batch"], int) and found["batch"] > 0:
            settings["batch"] = found["batch"]
        batch = settings["batch"]
        lowered = isinstance(found["batch"], int) and batch < found["batch"] and not is_done
        for name, value in (compared | {"batch": batch}).items():
            if found[name] != value and not (lowered and name == "batch"):
                raise InputError(
                    f"{name} is {value} and was {quoted(str(found[name]))} in the run that "
                    f"{quoted(out)} holds; expected the same, or another --out"
                )
        if lowered:
            log.info("the batch was %d and is %d from now on", found["batch"], batch)
            _record(path, before | {"batch": batch})
    else:
        for what, pattern in (("images", "[0-9]*_[0-9]*.png"), (RECORD, RECORD)):
            if next(out.glob(pattern), None) is not None:
                raise InputError(
                    f"{quoted(out)}: holds {what} but no settings.json; expected another --out"
                )
        _record(path, settings)
    return settings["batch"]


def _record(path: Path, settings: dict[str, Any]) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(settings, indent=1) + "\n")


def file_version(path: Path | None) -> tuple[int, ...] | None:
    """What changes when a file is replaced or written to; None if there is none."""
    if path is None or not path.exists():
        return None
    of = path.stat()
    return (of.st_dev, of.st_ino, of.st_size, of.st_mtime_ns)
