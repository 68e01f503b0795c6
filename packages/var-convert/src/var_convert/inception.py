"""Inception v3, by which FID is defined: from PyTorch's file to one that var-train judges by."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from var_tokenizer.common import (
    CLASSES_OF_2015,
    InputError,
    check_tensors,
    file_digest,
    inception_shapes,
    is_inception,
    quoted,
)

from var_convert.formats.dtypes import LONG_NAMES, widen
from var_convert.formats.weights import Entry, Weights

log = logging.getLogger(__name__)

METADATA = {"format": "var-mindspore", "kind": "inception"}
_PUBLISHED = "6726825d"  # the SHA-256 of pt_inception-2015-12-05-6726825d.pth begins with it
_LEFT_OUT = re.compile(r"AuxLogits\..*|.*\.num_batches_tracked")  # what only training reads


def inception_in(held: Sequence[Weights]) -> Weights | None:
    """The state dict of an Inception v3 among those of a file; None if there is none."""
    return next((weights for weights in held if is_inception(weights.tensors)), None)


def judging_tensors(weights: Weights, path: Path) -> dict[str, Entry]:
    """The tensors of the network without what only its training reads.

    path: the file. Raises InputError unless they are those of Inception v3, finite numbers, with a
    classifier of any size. Warns if the network looks like that of 2015 and is another file.
    """
    names = [name for name in weights.tensors if not _LEFT_OUT.fullmatch(name)]
    tensors = {name: weights.tensors[name] for name in names}
    bias = tensors.get("fc.bias")
    classes = bias.shape[0] if bias is not None and len(bias.shape) == 1 else CLASSES_OF_2015
    check_tensors(weights.source, inception_shapes(classes), tensors)
    for name, entry in tensors.items():
        if not entry.is_floating:
            raise InputError(
                f"{weights.source}: tensor {name} is {LONG_NAMES[entry.dtype]}; expected floating "
                "point"
            )
        if not all(np.isfinite(widen(piece, entry.dtype)).all() for piece in entry.pieces()):
            raise InputError(f"{weights.source}: tensor {name} holds NaN or infinity")
    published = path.is_file() and file_digest(path).startswith(_PUBLISHED)
    if classes == CLASSES_OF_2015 and not published:
        log.warning(
            "%s: not pt_inception-2015-12-05-%s.pth; its figures are FID only if it holds the same "
            "weights",
            quoted(path),
            _PUBLISHED,
        )
    return tensors
