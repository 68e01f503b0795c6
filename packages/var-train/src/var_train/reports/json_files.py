"""``settings.json``, all settings of a run, and ``report.json``, its figures."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from var_tokenizer.common import replacing

log = logging.getLogger(__name__)

FILE = "settings.json"


def changed_settings(
    folder: Path, settings: Mapping[str, object]
) -> dict[str, tuple[object, object]]:
    """Name -> old and new value of the settings that the last command in ``folder`` had otherwise.

    Logs them, too. settings: of the whole run; values of types that JSON lacks count as text.
    """
    try:
        before = _flat(json.loads((folder / FILE).read_text()))
    except (OSError, ValueError, RecursionError):
        return {}
    now = _flat(json.loads(_text(settings)))
    changed = {n: (before[n], now[n]) for n in now if n in before and before[n] != now[n]}
    if changed:
        differences = (
            f"{name} was {json.dumps(was)} and is {json.dumps(is_)}"
            for name, (was, is_) in changed.items()
        )
        log.info("settings changed since the last command here: %s", "; ".join(differences))
    return changed


def record_settings(folder: Path, settings: Mapping[str, object]) -> None:
    """Writes ``FOLDER/settings.json``."""
    with replacing(folder / FILE) as temporary:
        temporary.write_text(_text(settings))


def write_report(path: Path, figures: dict[str, object]) -> None:
    """Writes ``figures`` as JSON, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(figures, indent=2) + "\n")


def _text(settings: Mapping[str, object]) -> str:
    return json.dumps(settings, indent=2, default=str) + "\n"


def _flat(settings: object, prefix: str = "") -> dict[str, object]:
    """``{"loop": {"keep": 3}}`` as ``{"loop.keep": 3}``."""
    if not isinstance(settings, dict):
        return {prefix: settings}
    flat: dict[str, object] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}.{name}" if prefix else name)
    return flat
