"""``settings.json``, all settings of a run, and ``report.json``, its figures."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from var_tokenizer.common import replacing

log = logging.getLogger(__name__)


def record_settings(folder: Path, settings: Mapping[str, object]) -> None:
    """Writes ``FOLDER/settings.json`` and logs which settings an earlier command there had.

    settings: of the whole run; values of types that JSON lacks are written as text.
    """
    path = folder / "settings.json"
    settings = json.loads(json.dumps(settings, default=str))
    try:
        before = _flat(json.loads(path.read_text()))
    except (OSError, ValueError, RecursionError):
        before = {}
    now = _flat(settings)
    changed = [name for name in now if name in before and before[name] != now[name]]
    if changed:
        differences = (
            f"{name} was {json.dumps(before[name])} and is {json.dumps(now[name])}"
            for name in changed
        )
        log.info("settings changed since the last command here: %s", "; ".join(differences))
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(settings, indent=2) + "\n")


def write_report(path: Path, figures: dict[str, object]) -> None:
    """Writes ``figures`` as JSON, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(figures, indent=2) + "\n")


def _flat(settings: object, prefix: str = "") -> dict[str, object]:
    """``{"loop": {"keep": 3}}`` as ``{"loop.keep": 3}``."""
    if not isinstance(settings, dict):
        return {prefix: settings}
    flat: dict[str, object] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}.{name}" if prefix else name)
    return flat
