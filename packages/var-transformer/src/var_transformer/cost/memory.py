"""The memory that a training step holds at its peak, counted array by array.

On an Ascend, whose forms are in ``model/ascend_operators.py``, with weights in flat arrays as
var-train keeps them. It is within 2 % of what MindSpore plans, where a dry run has recorded that
(``benchmarks/ascend.json``); neither knows the workspace that operators ask for while they run.
"""

import bisect
from collections.abc import Callable
from dataclasses import dataclass

from var_transformer.attention import BackendConfig, build
from var_transformer.attention.segments import Segment, scores
from var_transformer.cost.parts import parameter_count
from var_transformer.model.config import TransformerConfig

USABLE = 15 / 16
"""Share of a device's memory; MindSpore leaves the rest to the driver and to exchanges."""

_WIDE = 4  # bytes of a float32
# arrays (B, L, C), by what follows from them: the input and the middle of a block, in float32 ...
_RESIDUALS = 2
# ... and in the type of products: two norms, bare and modulated; queries, keys and values, as they
# are, of length 1, and scaled; what attention and projection give; fc1 (4) and fc2
_KEPT = 4 + 3 + 3 + 2 + 4 + 1
_STATISTICS = 2 * 8  # float32 numbers for each query and head: maxima and sums, in eights
# fc1's GELU, computed again, and the gradients before and behind it (4 each), with the residual's
_BACKWARD = 3 * 4 + 2


@dataclass(frozen=True)
class StepMemory:
    """Bytes on one device at the peak of a training step.

    weights: float32 weights, moments and averages, gradients, and the copies of these. model: the
    model's own weights, which the first checkpoint fills, or the first exchange with other workers.
    blocks: what they keep for the backward pass. rest: the head and the loss, or the backward pass
    of a block, whichever takes more.
    """

    weights: float
    model: float
    blocks: float
    rest: float

    @property
    def total(self) -> float:
        return self.weights + self.model + self.blocks + self.rest


def step_memory(
    config: TransformerConfig,
    images: int,
    itemsize: int = 2,
    recompute: bool = False,
    accumulates: bool = False,
    averages: bool = False,
    shards: int = 1,
) -> StepMemory:
    """The memory of a step on an Ascend.

    images: those that a device computes at once. itemsize: bytes of the type of products.
    recompute: blocks keep their inputs alone. accumulates: a batch is computed in parts. averages:
    of the weights. shards: workers that share the moments.
    """
    c, rows = config.width, images * config.schedule.length
    count = _WIDE * parameter_count(config)
    # the moments, and a copy of the gradients that are updated; weights, and what products read
    # and what their gradients are
    weights = count * (3 / shards + 1 + 2 * itemsize / _WIDE)
    weights += count * (averages + 3 * accumulates)
    kept = rows * c * (_RESIDUALS * _WIDE + _KEPT * itemsize) + _attention(config, images, itemsize)
    # logits in float32, the softmax's result and its gradient; before them logits in half
    head = rows * config.vocab_size * (3 * _WIDE + (itemsize if itemsize < _WIDE else 0))
    backward = rows * c * _BACKWARD * itemsize
    if recompute:
        inputs = config.depth * rows * c * _WIDE
        return StepMemory(weights, count, inputs, max(head, kept + backward))
    return StepMemory(weights, count, config.depth * kept, max(head, backward))


def _attention(config: TransformerConfig, images: int, itemsize: int) -> float:
    """What the attention of a block keeps besides its inputs and its result."""
    if itemsize < _WIDE:
        return images * config.schedule.length * config.heads * _STATISTICS * _WIDE
    # float32 has no fused operator: the weights of all calls stay, and the joined keys and values
    head_width = config.width // config.heads
    attend = build(config.schedule, config.heads, head_width, False, BackendConfig("portable"))
    plan = tuple(Segment(*call) for call in attend.plans[-1])
    joined = 2 * sum(segment.end for segment in plan[1:-1])
    return images * (config.heads * scores(plan) + config.width * joined) * _WIDE


def least_memory(config: TransformerConfig, images: int, shards: int = 1) -> float:
    """Bytes below which no training step gets, on any device and in any form.

    Weights, gradients and moments in float32, and the input of every block.
    """
    rows = images * config.schedule.length
    count = parameter_count(config)
    return _WIDE * (count * (2 + 2 / shards) + config.depth * rows * config.width)


def most_images(needed: Callable[[int], float], memory: float, most: int = 2**16) -> int:
    """How many images at once fit into a device with so many bytes: 0 to ``most``.

    needed: bytes, by images; it grows with them.
    """
    return bisect.bisect_right(range(1, most + 1), USABLE * memory, key=needed)
