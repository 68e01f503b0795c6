"""The page's own folder: private, made for one server, and gone with it."""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from var_tokenizer.common import InputError

from var_transformer.web.sessions import RefusedError


@contextmanager
def private_folder() -> Iterator[Path]:
    """A new folder (mode 0700) for what visitors upload and are shown; removed at the end.

    To be entered before Gradio is imported, which keeps its files there. Raises InputError where
    there is no place for it.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="var-serve-", ignore_cleanup_errors=True)
    except OSError as error:
        raise InputError(f"no place for temporary files: {error}; set TMPDIR") from error
    # some of these let Gradio share a folder, or open a tunnel
    before = {name: value for name, value in os.environ.items() if name.startswith("GRADIO_")}
    with folder as name:
        for variable in before:
            del os.environ[variable]
        path = os.environ["GRADIO_TEMP_DIR"] = os.path.realpath(name)
        try:
            yield Path(path)
        finally:
            del os.environ["GRADIO_TEMP_DIR"]
            os.environ.update(before)


def find_file(folder: Path, name: object) -> Path:
    """The file that a visitor names; raises RefusedError unless it is a regular one in the folder.

    Nothing outside of the folder is touched, not even to see whether it exists.
    """
    refusal = RefusedError(403, "A file must be one that was uploaded to this page.")
    if not isinstance(name, str) or "\0" in name:
        raise refusal
    path = os.path.normpath(name)
    if path != name or not path.startswith(f"{folder}{os.sep}"):
        raise refusal
    try:
        # links lead out of the folder, and pipes and devices wait for somebody
        if os.path.realpath(path) != path or not stat.S_ISREG(os.lstat(path).st_mode):
            raise refusal
    except OSError as error:
        raise refusal from error
    return Path(path)
