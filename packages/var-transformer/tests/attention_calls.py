"""Calls of attention and of other operators that several tests make, and what they compare."""

import itertools

import mindspore as ms
import numpy as np
from mindspore import nn


class Joined(nn.Cell):
    """An attention over all scales from its joined inputs, as the transformer calls it."""

    def __init__(self, attend: nn.Cell) -> None:
        super().__init__()
        self.attend = attend

    def construct(self, qkv_bl3c, scale_1h11):
        return self.attend.projected(qkv_bl3c, scale_1h11, None, ())[0]


def scale_by_scale(attend, qkv_bl3c, scale_1h11):
    """The mixed values of one scale after another, and what the last one gave for the cache."""
    cache, mixed = attend.empty_cache(qkv_bl3c.shape[0]), []
    for k, (begin, end) in enumerate(itertools.pairwise(attend.offsets)):
        part, kept = attend.projected(qkv_bl3c[:, begin:end], scale_1h11, k, cache)
        cache = kept or cache
        mixed.append(part.asnumpy())
    return np.concatenate(mixed, 1), kept


def value_and_gradients(function, tensors, d_out):
    """``function(*tensors)``, one result or a tuple, and its gradients for those of the results."""

    def product(*tensors):
        return sum((r * d).sum() for r, d in zip(results(*tensors), d_out, strict=True))

    def results(*tensors):
        found = function(*tensors)
        return found if isinstance(found, tuple) else (found,)

    gradients = ms.grad(product, tuple(range(len(tensors))))(*tensors)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    return [x.asnumpy() for x in (*results(*tensors), *gradients)]


def assert_all_close(got, expected, atol, rtol=0):
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)
