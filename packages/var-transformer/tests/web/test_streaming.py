"""A generation as a stream: in order, one at a time, and stopped between scales."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from var_transformer import Generation, generate
from var_transformer.web.streaming import Streamer, TimeOverError

SCALES = 5
LABELS = np.array([1, 4, 1])


def drawing(reached=None, slow=None):
    """Stands for a generation: notes each scale that it begins, takes 0.3 s for scale ``slow``."""

    def draw(on_scale):
        for k in range(SCALES):
            if reached is not None:
                reached.append(k)
            time.sleep(0.3 if k == slow else 0)
            on_scale(k, np.full((1, 3, 2, 2), k))
        return Generation(np.zeros((1, 3, 2, 2)), [])

    return draw


def test_it_yields_what_on_scale_of_a_generation_is_given(model, tokenizer):
    expected = []
    generate(model, tokenizer, LABELS, seed=5, on_scale=lambda k, x: expected.append((k, x)))
    streamer = Streamer(len(tokenizer.schedule), seconds=100)
    got = list(streamer.stream(lambda f: generate(model, tokenizer, LABELS, seed=5, on_scale=f)))
    assert [k for k, _ in got] == [k for k, _ in expected] == [0, 1, 2]
    for (_, images), (_, others) in zip(got, expected, strict=True):
        np.testing.assert_array_equal(images, others)


def test_a_closed_stream_stops_its_generation_before_the_next_scale():
    reached = []
    streamer = Streamer(SCALES, seconds=100)
    stream = streamer.stream(drawing(reached, slow=1))
    assert next(stream)[0] == 0
    stream.close()
    list(streamer.stream(drawing()))  # runs when the thread is free again
    assert reached in ([0], [0, 1])  # scale 1 had begun or not


def test_a_generation_stops_between_scales_when_its_time_is_over():
    reached, seen = [], []
    with pytest.raises(TimeOverError, match=r"stopped after scale 2 of 5: .* 0\.2 s"):
        for k, _ in Streamer(SCALES, seconds=0.2).stream(drawing(reached, slow=1)):
            seen.append(k)
    assert seen == [0, 1] == reached


def test_a_last_scale_that_ends_late_is_shown_all_the_same():
    stream = Streamer(SCALES, seconds=0.2).stream(drawing(slow=SCALES - 1))
    assert [k for k, _ in stream] == list(range(SCALES))


def test_what_a_generation_raises_reaches_the_reader_and_the_next_one_runs():
    def fails(_on_scale):
        raise ValueError("no such thing")

    streamer = Streamer(SCALES, seconds=100)
    with pytest.raises(ValueError, match="no such thing"):
        list(streamer.stream(fails))
    assert len(list(streamer.stream(drawing()))) == SCALES


def test_generations_run_one_after_another_in_the_same_thread():
    active, most, threads = [], [], set()

    def draw(on_scale):
        active.append(1)
        threads.add(threading.get_ident())
        for k in range(SCALES):
            most.append(len(active))
            time.sleep(0.01)
            on_scale(k, np.zeros((1, 3, 2, 2)))
        active.pop()

    streamer = Streamer(SCALES, seconds=100)
    with ThreadPoolExecutor(3) as readers:
        list(readers.map(lambda _: list(streamer.stream(draw)), range(3)))
    assert set(most) == {1} and len(most) == 3 * SCALES and len(threads) == 1
