"""The first hour's checks of what draws token ids on an NPU."""

import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import ops
from var_transformer.check_ascend import draw_checks
from var_transformer.check_ascend.checks import find
from var_transformer.generation.device_draw import DeviceDraw
from var_transformer.model import operators as fast

VOCABULARY = 1024


def finding(name: str):
    checks = draw_checks.draw_checks(2, 4, VOCABULARY, compiled=False)
    (check,) = (c for c in checks if c.name == f"draw's {name}")
    return find(check)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("vocab_size", [32, 33, VOCABULARY])
def test_the_draw_of_this_device_is_as_defined(vocab_size, compiled):
    for check in draw_checks.draw_checks(2, 4, vocab_size, compiled):
        assert find(check).fault == ""


def becomes(cell, method, change):
    """A method calls ``change(method, cell, *arrays)`` instead."""
    plain = getattr(cell, method)
    return lambda patch: patch.setattr(cell, method, lambda *args: change(plain, *args))


def settings(change):
    """The draw is given other settings, which ``change`` makes of its own, in place."""

    def seed(patch):
        def changed(*args, plain=draw_checks.draw_settings):
            values = plain(*args)
            change(values)
            return values

        patch.setattr(draw_checks, "draw_settings", changed)

    return seed


def setting(index, value):
    return settings(lambda values: values.__setitem__(index, value))


def ranking(change):
    return becomes(fast.Ranked, "construct", change)


def summing(change):
    return becomes(fast.CumulativeSum, "construct", change)


def filtering(change):
    return becomes(DeviceDraw, "filtered", change)


def drawing(change):
    return becomes(DeviceDraw, "draw", change)


def later_first(plain, cell, x):
    values, index = plain(cell, ops.flip(x, (2,)))
    return values, x.shape[-1] - 1 - index


def anew(plain, cell, x):
    return ops.concat([plain(cell, part) for part in ops.split(x, 512, 2)], 2)


def without_ties(plain, cell, logits, dropped, rank):
    ranked, tokens = cell.ranked(logits)
    fewer = ops.masked_fill(ranked, cell.position_v < rank, -math.inf)
    return plain(cell, fewer, dropped, 0 * rank)[0], tokens


def without_top_k(plain, cell, logits, dropped, rank):
    return plain(cell, logits, dropped, 0 * rank)


def top_p_first(plain, cell, logits, dropped, rank):
    ranked, tokens = cell.ranked(logits)
    least = cell.count(cell.cumulative_sum(cell.softmax(ranked)) <= dropped)
    fewer = ops.masked_fill(ranked, cell.position_v < least, -math.inf)
    return plain(cell, fewer, -1 + 0 * dropped, rank)[0], tokens


def shifted(step):
    def change(plain, *arrays):
        return ops.clamp(plain(*arrays) + step, 0, VOCABULARY - 1)

    return drawing(change)


def by_rank(plain, cell, ranked, tokens, uniform):
    ranks = ms.Tensor(np.broadcast_to(np.arange(VOCABULARY), tokens.shape).copy())
    return plain(cell, ranked, ranks, uniform)


def first_image(plain, cell, ranked, tokens, uniform):
    return plain(cell, ranked, tokens, ops.tile(uniform[:1], (uniform.shape[0], 1, 1)))


def wrong_way(plain, cell, logits, *rest):
    return plain(cell, ops.concat(ops.split(logits, logits.shape[0] // 2, 0)[::-1]), *rest)


MISTAKES = {
    ("sort", "the order is descending"): ranking(
        lambda plain, cell, x: ops.Sort(descending=True)(x)
    ),
    ("order of equal values", "the later of equal values comes first"): ranking(later_first),
    ("cumulative sum", "an entry is missing in its own sum"): summing(
        lambda plain, cell, x: plain(cell, x) - x
    ),
    ("cumulative sum", "the sums run backwards"): summing(
        lambda plain, cell, x: ops.flip(plain(cell, ops.flip(x, (2,))), (2,))
    ),
    ("cumulative sum", "the sums round float32 to 10 bits (HF32, or half)"): summing(
        lambda plain, cell, x: plain(cell, (x * 2**8).astype(ms.float16).astype(x.dtype) / 2**8)
    ),
    ("cumulative sum", "the sums begin anew after 512 entries"): summing(anew),
    ("sum of integers", "the sums are rounded to float32"): summing(
        lambda plain, cell, x: plain(cell, x.astype(ms.float32)).astype(ms.int32)
    ),
    ("softmax", "it runs over the tokens"): becomes(
        fast.Softmax, "construct", lambda plain, cell, x: ops.softmax(x, 1)
    ),
    ("softmax", "its base is 2"): becomes(
        fast.Softmax, "construct", lambda plain, cell, x: plain(cell, x * math.log(2))
    ),
    ("top-k", "top-k is left out"): filtering(without_top_k),
    ("top-k", "top-k drops values equal to the least"): filtering(without_ties),
    ("filters", "top-k is left out, or comes after top-p"): filtering(top_p_first),
    ("filters", "top-p is left out"): filtering(
        lambda plain, cell, x, dropped, rank: plain(cell, x, -1 + 0 * dropped, rank)
    ),
    ("filters", "top-p drops the token that reaches it"): becomes(
        DeviceDraw, "count", lambda plain, cell, true: plain(cell, true) + 1
    ),
    ("ids", "guidance is left out"): settings(
        lambda values: (values.__setitem__(0, 1), values.__setitem__(1, 0))
    ),
    ("ids", "guidance moves the wrong way"): becomes(DeviceDraw, "construct", wrong_way),
    ("ids", "the temperature multiplies"): setting(2, 2.0),
    ("ids", "top-k is left out"): setting(4, 0),
    ("ids", "top-p is left out"): setting(3, -1),
    ("ids", "the ids are ranks"): drawing(by_rank),
    ("ids", "the ids are one too high"): shifted(1),
    ("ids", "the ids are one too low"): shifted(-1),
    ("ids", "all images have the first one's random numbers"): drawing(first_image),
}


@pytest.mark.parametrize(("name", "mistake"), MISTAKES)
def test_a_mistake_in_the_draw_is_named(monkeypatch, name, mistake):
    MISTAKES[name, mistake](monkeypatch)
    assert finding(name).fault.endswith(f": {mistake}")
