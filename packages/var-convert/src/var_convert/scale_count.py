"""A tokenizer with another number of scales: all but its statistics stay as they are."""

import logging
from dataclasses import replace

import numpy as np
from var_tokenizer.common import InputError

from var_convert.architecture import Shaped
from var_convert.formats.dtypes import NUMPY
from var_convert.formats.weights import Weights, entry_of
from var_convert.kinds import is_native
from var_convert.published_names import HITS, PHI

log = logging.getLogger(__name__)


def with_scale_count(weights: Weights, count: int) -> Weights:
    """The weights of a tokenizer, for a schedule of ``count`` scales.

    The convolutions and the codebook do not depend on the schedule. The usage statistics have a
    row for each scale; if their number changes, they start at zero, with a warning. Raises
    InputError if each scale has a phi of its own, as there are none for other scales.
    """
    hits = weights.tensors.get(HITS)
    if hits is None or len(hits.shape) != 2 or hits.shape[0] in (0, count):
        return weights
    before, phi_count = hits.shape[0], Shaped(weights).count(f"{PHI}qresi_ls.")
    if phi_count == before > 1 and not _shares_phi(weights):
        raise InputError(
            f"{weights.source}: scales holds {count} sizes; expected {before}, because each scale "
            "of this tokenizer has a phi of its own"
        )
    log.warning(
        "%s: was used with %d scales, and is converted for %d: its usage statistics start at zero",
        weights.source,
        before,
        count,
    )
    zeros = np.zeros((count, hits.shape[1]), NUMPY[hits.dtype])
    metadata = {k: v for k, v in weights.metadata.items() if k != "rounded_from"}
    if is_native(weights) and phi_count == count:  # or each scale would have its own
        metadata["phi_names"] = "qresi_ls"
    return replace(
        weights, tensors={**weights.tensors, HITS: entry_of(zeros, hits.dtype)}, metadata=metadata
    )


def _shares_phi(weights: Weights) -> bool:
    """Whether as many phi as scales are shared ones all the same, by their spelling."""
    if is_native(weights):
        return weights.metadata.get("phi_names") == "qresi_ls"
    return any(name.startswith(f"{PHI}qresi_ls.") for name in weights.tensors)
