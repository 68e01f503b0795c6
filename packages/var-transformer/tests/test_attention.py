import itertools

import mindspore as ms
import numpy as np
import pytest
from attention_calls import assert_all_close, value_and_gradients
from hypothesis import given
from hypothesis import strategies as st
from mindspore import Tensor
from var_tokenizer import SCALES_256, SCALES_512, ScaleSchedule
from var_tokenizer.common import InputError
from var_transformer import BackendConfig, TransformerConfig
from var_transformer.attention import Cache, build, portable
from var_transformer.attention.devices import DEVICES, device
from var_transformer.attention.segments import Segment, cut, cut_at, scores, scores_and

LABELS = np.array([0, 3])


# ---------------------------------------------------------------- segments
@pytest.mark.parametrize(("scales", "least"), [(SCALES_256, 0.619), (SCALES_512, 0.652)])
def test_full_segmentation_needs_the_published_share_of_the_scores(scales, least):
    schedule = ScaleSchedule(scales)
    share = scores(cut_at(schedule, 1)) / schedule.length**2
    assert share == pytest.approx(least, abs=5e-4)


@pytest.mark.parametrize("preset", ["d16", "d20", "d24", "d30", "d36-s"])
def test_training_on_ascend_wastes_few_scores(preset):
    config = TransformerConfig.preset(preset)
    width = config.width // config.heads
    backend = BackendConfig("ascend", ms.float16, "segments")
    attend = build(config.schedule, config.heads, width, config.qk_l2_norm, backend)
    used = sum(Segment(*call).scores for call in attend.plans[-1])
    most = 0.69 if config.shared_adaln else 0.66  # 512 px, 256 px
    assert used / config.schedule.length**2 <= most
    assert len(attend.plans[-1]) < len(config.schedule)  # coarse scales share a launch


schedules = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=7).map(
    lambda steps: ScaleSchedule(
        tuple(itertools.accumulate(steps, lambda a, b: (a[0] + b[0], a[1] + b[1]), initial=(1, 1)))
    )
)


@given(schedules, st.floats(0, 1e5), st.booleans())
def test_a_cut_covers_every_query_once_and_every_key_it_sees(schedule, launch, banded):
    plan = cut(schedule, scores_and(launch), banded)
    assert [s.begin for s in plan] == [0, *(s.end for s in plan[:-1])]
    assert plan[-1].end == schedule.length
    for segment in plan:
        visible = schedule.visible[segment.begin : segment.end]
        assert not visible[:, segment.end :].any()
        assert segment.masked or visible[:, : segment.end].all()
        queries, keys = np.indices((segment.end - segment.begin, segment.end))
        banded_out = segment.masked & (keys - queries > segment.reach)
        assert not visible[:, : segment.end][banded_out].any()
        assert segment.scores == banded_out.size - banded_out.sum()


@given(schedules, st.floats(0, 1e5))
def test_no_other_cut_is_cheaper(schedule, launch):
    cost = scores_and(launch)
    best = cost(cut(schedule, cost))
    assert all(best <= cost(cut_at(schedule, k + 1)) for k in range(len(schedule)))


def test_free_launches_cut_everywhere_and_dear_ones_nowhere():
    schedule = ScaleSchedule()
    assert len(cut(schedule, scores_and(0))) == len(schedule)
    assert len(cut(schedule, scores_and(1e9))) == 1


@pytest.mark.parametrize(
    ("preset", "calls", "count"),
    [
        ("d16", "cheapest", 1),
        ("d36-s", "cheapest", 1),
        ("d16", "banded", 1),
        ("d16", "masked", 1),
        ("d16", "segments", 3),
        ("d36-s", "segments", 5),
    ],
)
def test_ascend_trains_in_one_call_unless_it_is_told_to_cut(preset, calls, count):
    """Cutting moves more memory than the scores that it saves take, at 256 and at 512 px."""
    config = TransformerConfig.preset(preset)
    backend = BackendConfig("ascend", ms.float16, calls)
    attend = build(config.schedule, config.heads, 64, config.qk_l2_norm, backend)
    assert len(attend.plans[-1]) == count


def test_a_device_names_the_ways_to_attend_that_it_has():
    schedule = ScaleSchedule()
    found = {
        (name, head_width): build(
            schedule, 4, head_width, True, BackendConfig(name, dtype)
        ).candidates
        for name, dtype, head_width in (
            ("ascend", ms.float16, 64),
            ("portable", ms.float32, 64),
            ("auto", ms.float32, 24),  # no multiple of 16: not the C++ kernels'
        )
    }
    assert found == {
        ("ascend", 64): ("segments", "banded", "masked"),
        ("portable", 64): ("segments", "masked"),
        ("auto", 24): ("segments", "masked"),
    }


def test_a_cut_by_few_scores_and_the_whole_mask_are_not_the_same_work():
    attend = build(ScaleSchedule(), 4, 64, True, BackendConfig("ascend", ms.float16))
    work = {}
    for name in attend.candidates:
        attend.use(name)
        work[name] = sum(Segment(*call).scores for call in attend.plans[-1])
    assert work["segments"] < work["banded"] < work["masked"] == 680**2


def test_calls_that_a_device_does_not_have_are_an_error_that_names_its_own():
    with pytest.raises(InputError, match="'banded'; expected one of cheapest, segments, masked"):
        build(ScaleSchedule(), 4, 64, True, BackendConfig("portable", calls="banded"))
    with pytest.raises(InputError, match="'fewest'; expected one of cheapest, auto, segments, "):
        BackendConfig(calls="fewest")


# ---------------------------------------------------------------- the portable backend
SEEDS = [pytest.param(n, marks=[] if n < 4 else pytest.mark.slow) for n in range(20)]


@pytest.mark.parametrize("seed", SEEDS)
def test_portable_segments_equal_the_full_mask_forward_and_gradient(monkeypatch, seed):
    rng = np.random.default_rng(seed)
    sizes = list(itertools.accumulate(rng.integers(0, 4, (5, 2)), initial=np.array([1, 1])))
    schedule = ScaleSchedule(tuple((int(y), int(x)) for y, x in sizes))
    shape = (2, schedule.length, 32)
    *tensors, d_y = (Tensor(rng.standard_normal(shape).astype(np.float32)) for _ in range(4))
    results = []
    monkeypatch.setattr(portable, "_LAUNCH", 10.0 ** rng.uniform(0, 4))
    for calls in ("segments", "masked"):
        attend = build(schedule, 2, 16, False, BackendConfig("portable", calls=calls))

        def all_scales(q, k, v, attend=attend):
            return attend(q, k, v, 0.25, None, ())[0]

        results.append(value_and_gradients(all_scales, tensors, [d_y]))
    assert len(attend.plans[-1]) == 1
    assert_all_close(*results, 1e-5)


def test_the_first_scales_alone_attend_as_they_do_among_all(monkeypatch):
    monkeypatch.setattr(portable, "_LAUNCH", 10.0)
    schedule, rng = ScaleSchedule((1, 2, 3, 4)), np.random.default_rng(0)
    attend = build(schedule, 2, 16, True, BackendConfig("portable"))
    q, k, v = (rng.standard_normal((2, 30, 32)).astype(np.float32) for _ in range(3))
    scale = Tensor(np.full((1, 2, 1, 1), 4, np.float32))
    whole = attend(*map(Tensor, (q, k, v)), scale, None, ())[0].asnumpy()
    for end in schedule.offsets[1:]:
        part = attend(*(Tensor(x[:, :end]) for x in (q, k, v)), scale, None, ())[0].asnumpy()
        np.testing.assert_allclose(part, whole[:, :end], atol=1e-6)


# ---------------------------------------------------------------- the choice of a backend
@pytest.mark.parametrize(
    ("target", "name", "dtype", "fused"),
    [
        ("CPU", "auto", ms.float16, False),
        ("Ascend", "auto", ms.float16, True),
        ("Ascend", "auto", ms.bfloat16, True),
        ("Ascend", "auto", ms.float32, False),
        ("Ascend", "portable", ms.float16, False),
        ("CPU", "ascend", ms.float16, True),
    ],
)
def test_the_backend_follows_device_and_dtype_unless_it_is_named(
    monkeypatch, target, name, dtype, fused
):
    monkeypatch.setattr(ms, "get_context", lambda _: target)
    assert BackendConfig(name, dtype).fused is fused


def test_an_unknown_backend_is_an_error_that_lists_the_known():
    with pytest.raises(InputError, match="'cuda'; expected one of auto, ascend, portable"):
        BackendConfig("cuda")


def test_an_unknown_device_is_an_error_that_lists_the_known():
    with pytest.raises(InputError, match=f"'h100'; expected one of {', '.join(DEVICES)}"):
        device("h100")


# ---------------------------------------------------------------- the cache
def after(model, scales: int, batch: int = 2) -> tuple[Cache, tuple]:
    """A cache of so many scales, and the model's condition."""
    class_bc, modulations = model.condition(model.check_labels(LABELS[:batch]))
    schedule, rng, cache = model.config.schedule, np.random.default_rng(0), None
    for k in range(scales):
        inputs = rng.standard_normal((batch, schedule.tokens[k], model.config.latent_channels))
        inputs_blz = Tensor(inputs.astype(np.float32)) if k else None
        _, cache = model.extend(k, inputs_blz, class_bc, modulations, cache)
    return cache, (class_bc, modulations)


@pytest.mark.parametrize(
    ("held", "batch", "k", "tokens", "message"),
    [
        (3, 2, 3, 9, "cache is full: it holds all 3 scales"),
        (1, 1, 1, 4, "batch of 2; expected 1"),
        (1, 2, 2, 9, "holds 1 scales; scale 2 expects 2"),
        (1, 2, 1, 9, r"shape \(2, 9, 8\); expected \(2, 4, 8\)"),
    ],
    ids=["a full cache", "another batch", "a scale out of turn", "tokens of another scale"],
)
def test_what_cannot_follow_a_cache_is_refused(model, held, batch, k, tokens, message):
    cache, _ = after(model, held)
    _, condition = after(model, 0, batch)
    with pytest.raises(InputError, match=message):
        model.extend(k, Tensor(np.zeros((batch, tokens, 8), np.float32)), *condition, cache)


@pytest.mark.parametrize("index", [None, 2])
def test_tokens_that_the_schedule_does_not_have_are_an_error_that_names_both(index):
    attend = build(ScaleSchedule((1, 2, 3)), 2, 16, False)
    x = Tensor(np.zeros((1, 7, 32), np.float32))
    with pytest.raises(InputError, match=r"7 tokens; expected (14|9), those of (the|scale 2)"):
        attend(x, x, x, 0.25, index, ())


def test_the_first_images_of_a_cache_go_on_as_they_would_alone(model):
    cache, (class_bc, modulations) = after(model, 2)
    rng = np.random.default_rng(1)
    inputs = rng.standard_normal((2, 9, model.config.latent_channels)).astype(np.float32)
    both, _ = model.extend(2, Tensor(inputs), class_bc, modulations, cache)
    one = tuple(m[:1] for m in modulations)
    alone, _ = model.extend(2, Tensor(inputs[:1]), class_bc[:1], one, cache.first(1))
    np.testing.assert_allclose(alone.asnumpy(), both.asnumpy()[:1], atol=1e-5)
