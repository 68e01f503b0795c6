"""Shares of a batch: each image belongs to one worker, and means are those of the whole batch."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, local

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from var_tokenizer.common import InputError
from var_train.listing.source_errors import SourceError
from var_train.parallel import workers


def shares_of_all(batch: int, count: int, parts: int) -> list[list[workers.Share]]:
    """A list for each worker."""
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "size", lambda: count)
        for rank in range(count):
            patch.setattr(workers, "rank", lambda rank=rank: rank)
            found.append(workers.shares(batch, parts))
    return found


@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 5))
def test_each_image_of_a_batch_is_in_one_share_and_shares_are_about_equal(batch, count, parts):
    if batch < count * parts:
        with pytest.raises(InputError, match=f"batch is {batch}; expected at least"):
            shares_of_all(batch, count, parts)
        return
    found = shares_of_all(batch, count, parts)
    # in the order of the batch: all workers' first parts, all their second parts, ...
    in_order = [found[rank][part].images for part in range(parts) for rank in range(count)]
    indices = [np.arange(batch)[images] for images in in_order]
    np.testing.assert_array_equal(np.concatenate(indices), np.arange(batch))
    assert {len(i) for i in indices} <= {batch // (count * parts), -(-batch // (count * parts))}


@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 5))
def test_weighted_means_of_the_shares_have_the_mean_of_the_batch(batch, count, parts):
    batch = max(batch, count * parts)
    values_b = np.random.default_rng(batch).random(batch)
    found = [share for of_worker in shares_of_all(batch, count, parts) for share in of_worker]
    mean = np.mean([share.weight * values_b[share.images].mean() for share in found])
    assert mean == pytest.approx(values_b.mean(), rel=1e-12)
    if batch % (count * parts) == 0:
        assert {share.weight for share in found} == {1.0}  # changes no bit


def results_of(monkeypatch, worker: Callable[[int], str], count: int = 3) -> list[str]:
    """What ``worker(rank)`` returns on each of several workers, which are threads."""
    barrier, own = Barrier(count), local()
    given: list[np.ndarray] = [np.zeros(0)] * count

    def gather(array: np.ndarray) -> np.ndarray:
        given[own.rank] = array
        barrier.wait(60)
        rows = np.stack(given)
        barrier.wait(60)
        return rows

    def of_rank(rank: int) -> str:
        own.rank = rank
        return worker(rank)

    monkeypatch.setattr(workers, "gather", gather)
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(of_rank, range(count)))


def test_what_one_worker_raises_all_raise_with_its_words(monkeypatch):
    def worker(rank: int) -> str:
        with workers.raised_by_all(SourceError):
            pass
        with pytest.raises(SourceError) as raised, workers.raised_by_all(SourceError):
            if rank == 1:
                raise SourceError("a.tar: is gone; expected ü")
        return str(raised.value)

    assert {*results_of(monkeypatch, worker)} == {"a.tar: is gone; expected ü"}


def test_workers_that_have_found_other_data_are_refused_by_all(monkeypatch):
    def worker(rank: int) -> str:
        workers.check_alike({"the data": {"images": [3, 1]}, "weights": None})
        with pytest.raises(InputError) as raised:
            found = {"images": [3 - (rank == 2), 1]}
            workers.check_alike({"weights": None, "the data": found})
        return str(raised.value)

    (said,) = {*results_of(monkeypatch, worker)}
    assert said.startswith("the data: worker 2 has found other content than worker 0; expected")


def test_an_error_of_another_kind_is_raised_by_the_worker_that_has_it_alone():
    with pytest.raises(ValueError, match="mine"), workers.raised_by_all(SourceError):
        raise ValueError("mine")
