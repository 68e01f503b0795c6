"""What can be known of the Ascend path without an Ascend.

MindSpore infers shapes and types of a graph before it looks for kernels, so that a graph whose
only fault is the missing kernel ("Kernel select failed") is right in the operators' own terms. What
the operators compute is stood in for by a NumPy model of their documentation.
"""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from var_tokenizer import InputError
from var_transformer import Backend, TransformerConfig
from var_transformer.attention import build

PRESETS = ("d16", "d20", "d24", "d30", "d36-s")
HALVES = (ms.float16, ms.bfloat16)
CALLS = [(p, b, t) for p in PRESETS for b in (1, 96) for t in HALVES]


class Gradient(nn.Cell):
    def __init__(self, attend: nn.Cell) -> None:
        super().__init__()
        self.attend = attend
        self.gradient = ops.GradOperation(get_all=True)

    def construct(self, q, k, v, scale):
        return self.gradient(self.all_scales)(q, k, v, scale)

    def all_scales(self, q, k, v, scale):
        return self.attend(q, k, v, scale, None, ())[0]


class EveryScale(nn.Cell):
    def __init__(self, attend: nn.Cell) -> None:
        super().__init__()
        self.attend = attend
        self.offsets = attend.offsets

    def construct(self, q, k, v, scale, keys, values):
        mixed = ()
        for i in range(len(self.offsets) - 1):
            begin, end = self.offsets[i], self.offsets[i + 1]
            q_blc, k_blc, v_blc = q[:, begin:end], k[:, begin:end], v[:, begin:end]
            y_blc, _ = self.attend(q_blc, k_blc, v_blc, scale, i, (keys, values))
            mixed = (*mixed, y_blc)
        return mixed


def unfilled(*shape: int, dtype=ms.float16) -> Tensor:
    """A tensor without memory: for graphs that are compiled and never run."""
    return Tensor(shape=list(shape), dtype=dtype, init=ms.common.initializer.Zero())


def infer(cell: nn.Cell, *inputs: Tensor) -> str:
    """Compiles a graph and returns the message at which it stops for want of a kernel.

    Kernels are looked for after all inference; what inference raises goes through.
    """
    try:
        cell.compile(*inputs)
    except (RuntimeError, TypeError) as error:
        if "Kernel select failed" in str(error):
            return str(error)
        raise
    raise AssertionError("the graph has a kernel for every operator; expected a fused one")


def attention_of(preset: str, dtype, **changes):
    config = TransformerConfig.preset(preset)
    fields = {
        "schedule": config.schedule,
        "heads": config.heads,
        "head_width": config.width // config.heads,
        "unit_length": config.qk_l2_norm,
        "backend": Backend("ascend", dtype),
    }
    return config, build(**fields | changes)


@pytest.mark.parametrize(("preset", "batch", "dtype"), CALLS)
def test_training_passes_inference_forward_and_gradient(preset, batch, dtype):
    config, attend = attention_of(preset, dtype)
    x = unfilled(batch, config.schedule.length, config.width, dtype=dtype)
    scale = Tensor(np.ones((1, config.heads, 1, 1), np.float32))
    stopped = infer(Gradient(attend), x, x, x, scale)
    if dtype == ms.float16:  # bfloat16 has no CPU kernel for earlier operators either
        assert "[FlashAttentionScore" in stopped


@pytest.mark.parametrize(("preset", "batch", "dtype"), CALLS)
def test_each_scale_of_a_generation_passes_inference(preset, batch, dtype):
    config, attend = attention_of(preset, dtype)
    x = unfilled(batch, config.schedule.length, config.width, dtype=dtype)
    cache = unfilled(
        batch, config.schedule.length, config.heads, config.width // config.heads, dtype=dtype
    )
    scale = Tensor(np.ones((1, config.heads, 1, 1), np.float32))
    stopped = infer(EveryScale(attend), x, x, x, scale, cache, cache)
    if dtype == ms.float16:
        assert "[ReshapeAndCache]" in stopped or "[FusedInferAttentionScore]" in stopped
