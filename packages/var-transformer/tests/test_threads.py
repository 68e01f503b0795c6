"""A model and a tokenizer that two threads of Python use at once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from var_tokenizer import Tokenizer
from var_transformer import Refiner, Sampler, Transformer, box_mask, edit, generate

LABELS = np.array([1, 4, 1])


def calls(model, tokenizer, smaller):
    """Name -> a call whose result does not depend on what else runs."""
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (3, 3, 6, 6)).astype(np.float32)
    ids = [rng.integers(0, 32, (3, n)) for n in (1, 4, 9)]
    inputs = rng.standard_normal((3, 13, 8)).astype(np.float32)
    mask = box_mask((0, 0, 3, 6), 6, 6)
    return {
        "guided": lambda: generate(model, tokenizer, LABELS, seed=1).images,
        "encode": lambda: np.concatenate([i.asnumpy() for i in tokenizer.encode(images)], 1),
        "cut": lambda: generate(model, tokenizer, LABELS, seed=2, guided_scales=(1,)).images,
        "decode": lambda: tokenizer.decode(ids).asnumpy(),
        "logits": lambda: model.logits(LABELS, inputs).asnumpy(),
        "edit": lambda: edit(model, tokenizer, images[0], mask, LABELS, Sampler(cfg=3.0)).images,
        "progressive": lambda: tokenizer.decode_progressive(ids)[0].asnumpy(),
        "refined": lambda: (
            generate(
                model, tokenizer, LABELS, seed=3, refiner=Refiner(smaller, 1), more_smooth=True
            ).images
        ),
        "teacher inputs": lambda: tokenizer.teacher_inputs(ids).asnumpy(),
    }


def wrong_ones(orders, todo, expected):
    """The names of the calls whose results differ from the expected, of a thread for each order."""
    together = threading.Barrier(len(orders))

    def work(order):
        together.wait()
        return [name for name in order if not np.array_equal(todo[name](), expected[name])]

    with ThreadPoolExecutor(len(orders)) as threads:
        return [name for wrong in threads.map(work, orders) for name in wrong]


@pytest.fixture(scope="module")
def expected(model, tokenizer, smaller):
    return {name: call() for name, call in calls(model, tokenizer, smaller).items()}


def test_two_threads_get_what_one_gets(model, tokenizer, smaller, expected):
    todo = calls(model, tokenizer, smaller)
    names = list(todo)
    orders = (names * 4, names[::-1] * 4)
    assert wrong_ones(orders, todo, expected) == []


def test_two_threads_whose_first_calls_compile_get_what_one_gets(
    model, tokenizer, smaller, expected, tmp_path
):
    parts = {"model": model, "tokenizer": tokenizer, "smaller": smaller}
    for name, part in parts.items():
        part.save(tmp_path / name)
        parts[name] = type(part).load(tmp_path / name)
    todo = calls(**parts)
    names = list(todo)
    assert wrong_ones((names, names[::-1]), todo, expected) == []


def test_two_threads_with_a_model_each_get_what_one_gets(
    model, tokenizer, smaller, expected, tmp_path
):
    model.save(tmp_path / "model")
    tokenizer.save(tmp_path / "tokenizer")
    own = Transformer.load(tmp_path / "model"), Tokenizer.load(tmp_path / "tokenizer")
    first, second = calls(model, tokenizer, smaller), calls(*own, smaller)
    todo = first | {f"own {name}": call for name, call in second.items()}
    results = expected | {f"own {name}": result for name, result in expected.items()}
    assert wrong_ones((list(first), [f"own {name}" for name in second]), todo, results) == []
