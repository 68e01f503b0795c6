"""Batches that are read ahead are those that a step would have read itself, traces included."""

import threading
import time
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import tiny
from image_tree import write_image_tree
from var_tokenizer import Tokenizer
from var_tokenizer.common import InputError
from var_train.data import image_sources, loader
from var_train.data.batches import step_indices
from var_train.data.crops import draw_place
from var_train.data.image_sources import (
    ImageFolder,
    ImageSet,
    ReadImages,
    load_image_tree,
    read_images,
)
from var_train.data.loader import Loader
from var_train.data.token_sources import EncodedImages
from var_train.losses.discriminator import AdversaryConfig
from var_train.reports.metrics_log import MetricsLog
from var_train.reports.tokenizer_quality import measure_reconstructions, measure_tokenizer
from var_train.training.loop import LoopConfig, train_stage
from var_train.training.tokenizer_stage import TokenizerStageConfig, TokenizerTraining
from var_train.training.transformer_stage import TransformerStageConfig, TransformerTraining
from var_transformer import Transformer

SIZE = (6, 6)
BATCH = 5
processors = pytest.mark.parametrize("processors", [1, 7])


class Readable:
    """A source that a loader reads ahead of."""

    read = None
    bytes_each = 100
    processor_seconds = 0.0


def loader_of(prepare, steps: int = 100, source: object = Readable) -> Loader:
    return Loader(source, prepare, steps, images=4)


@pytest.fixture
def use_processors(monkeypatch):
    """As many loader threads as on a machine of so many processors."""

    def use(number: int) -> None:
        for module in (loader, image_sources):
            monkeypatch.setattr(module, "processor_count", lambda: number)

    return use


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two classes of seven images; in the first, two of them cannot be read."""
    write_image_tree(tmp_path / "tree", (9, 7), train=7, val=2, suffix="ppm")
    for n in (2, 3):
        (tmp_path / "tree" / "train" / "cat" / f"{n}.ppm").write_bytes(b"P6 truncated")
    return tmp_path / "tree"


def images_of(tree: Path) -> ImageFolder:
    images, _ = load_image_tree(tree, SIZE, memory_limit=0, random_crops=True)
    images.hashes_n = np.zeros(len(images), np.uint64)
    return images


# The order of what is prepared


def test_each_number_gives_its_own_result_in_any_order():
    found = loader_of(lambda n: n * n)
    order = [0, 1, 2, 7, 8, 3, 3, 99, 200, 0]
    assert [found.take(n) for n in order] == [n * n for n in order]
    found.close()


@processors
def test_no_more_is_prepared_than_fits(use_processors, processors, monkeypatch):
    use_processors(processors)
    for limit, ahead in ((2**30, max(2, -(-2 * processors // 4))), (400, 1), (1, 1)):
        monkeypatch.setattr(loader, "_MOST_BYTES", limit)
        started: list[int] = []
        found = loader_of(started.append)
        for n in range(6):
            found.take(n)
            assert max(started) <= n + ahead
        found.close()
        assert sorted(started) == list(range(len(started)))


def test_nothing_beyond_the_last_step_is_prepared():
    started: list[int] = []
    found = loader_of(started.append, steps=3)
    for n in range(3):
        found.take(n)
    found.close()
    assert sorted(started) == [0, 1, 2]


def test_a_source_in_memory_is_read_when_the_step_takes_it():
    threads: list[str] = []
    found = loader_of(lambda _: threads.append(threading.current_thread().name), source=object())
    found.take(0)
    assert threads == [threading.current_thread().name]


def test_an_error_is_raised_at_its_step_and_no_earlier():
    def prepare(n: int) -> int:
        if n == 2:
            raise InputError("the third")
        return n

    found = loader_of(prepare)
    assert [found.take(0), found.take(1)] == [0, 1]
    for _ in range(2):
        with pytest.raises(InputError, match="the third"):
            found.take(2)
    assert found.take(3) == 3
    found.close()


def test_no_thread_outlives_a_closed_loader_and_a_later_step_starts_them_again():
    found = loader_of(lambda n: time.sleep(0.01) or n)
    for n in (0, 5):
        assert found.take(n) == n
        found.close()
        assert not [t for t in threading.enumerate() if t.name.startswith("read ahead")]


# What is said where data takes long


def ticking(monkeypatch, of_a_step: int, of_a_call: int):
    """A clock that goes on by ``of_a_call`` when it is read; the result lets a step pass."""
    now = count(step=of_a_call)
    passed = [0]
    monkeypatch.setattr(loader.time, "perf_counter", lambda: next(now) + passed[0])

    def step() -> None:
        passed[0] += of_a_step

    return step


@pytest.mark.parametrize(
    ("spent", "said"),
    [
        (240.0, "data: 50 % of the step; 2 more core(s) or tokens (python -m var_train.tokenize)"),
        (40.0, "50 % of the step, and decoding takes 0.2 of 2 core(s); a faster disk or tokens"),
    ],
)
def test_what_would_help_is_said_once_where_half_of_a_step_waits(
    monkeypatch, caplog, use_processors, spent, said
):
    class Decoded:
        read = None
        remedy = EncodedImages.remedy
        taken = -1.0

        @property
        def processor_seconds(self) -> float:  # it is asked before and after the batches
            self.taken += 1
            return self.taken * spent

    use_processors(2)
    step = ticking(monkeypatch, of_a_step=0, of_a_call=4)
    found = loader_of(lambda n: n, source=Decoded())
    for n in range(70):
        found.take(n)
        step()
    found.close()
    (record,) = caplog.records
    assert said in record.message


def test_tokens_are_no_remedy_for_a_stage_that_trains_on_images(monkeypatch, caplog):
    ticking(monkeypatch, of_a_step=0, of_a_call=4)
    found = loader_of(lambda n: n)
    for n in range(30):
        found.take(n)
    found.close()
    assert "a faster disk would help" in caplog.text


def test_nothing_is_said_of_a_step_that_hardly_waits(monkeypatch, caplog):
    step = ticking(monkeypatch, of_a_step=25, of_a_call=1)
    found = loader_of(lambda n: n)
    for n in range(70):
        found.take(n)
        step()
    found.close()
    assert not caplog.records


# Images


def test_a_batch_that_no_step_took_leaves_no_trace(tree, caplog):
    images = images_of(tree)
    read = images.read(np.arange(14))
    assert not images.hashes_n.any() and not caplog.records
    read.take()
    assert np.flatnonzero(images.hashes_n == 0).tolist() == [2, 3]
    assert len(caplog.records) == 2


def taken(images: ImageFolder, order: list[int], caplog, ahead: bool = True):
    """Pixels, record and warnings after each of the steps that ``order`` takes."""

    def prepare(step: int):
        indices = step_indices(len(images), BATCH, seed=3, step=step)
        flip = np.random.default_rng(step).random(BATCH) < 0.5
        return read_images(images, indices, flip, partial(draw_place, 3, step))

    found = loader_of(prepare, 20, images if ahead else object())
    states = []
    for step in order:
        caplog.clear()
        batch = found.take(step)
        batch.take()
        said = [record.message for record in caplog.records]
        states.append((batch.pixels_byxc, batch.labels_b, images.hashes_n.copy(), said))
    found.close()
    return states


@processors
def test_every_step_has_the_images_record_and_warnings_that_it_would_have_without(
    tree, caplog, use_processors, processors
):
    expected = taken(images_of(tree), list(range(12)), caplog, ahead=False)
    assert any(said for *_, said in expected)
    use_processors(processors)
    found = taken(images_of(tree), list(range(12)), caplog)
    for ours, theirs in zip(found, expected, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)


@processors
def test_a_run_that_goes_on_in_mid_epoch_sees_the_same(tree, caplog, use_processors, processors):
    expected = taken(images_of(tree), list(range(12)), caplog)
    images = images_of(tree)
    taken(images, list(range(4)), caplog)
    use_processors(processors)
    resumed = images_of(tree)
    resumed.hashes_n = images.hashes_n
    found = taken(resumed, list(range(4, 12)), caplog)
    for ours, theirs in zip(found, expected[4:], strict=True):
        for one, other in zip(ours[:3], theirs[:3], strict=True):
            np.testing.assert_array_equal(one, other)


def test_an_image_that_was_replaced_is_refused_by_the_step_that_takes_it(tree, caplog):
    images = images_of(tree)
    first = set(step_indices(14, BATCH, 3, 0).tolist())
    second = step_indices(14, BATCH, 3, 1).tolist()
    replaced = next(i for i in second if i >= 7 and i not in first)
    images.hashes_n[replaced] = 1
    taken(images, [0], caplog)
    with pytest.raises(InputError, match=rf"dog/{replaced - 7}\.ppm: is another image"):
        taken(images, [0, 1], caplog)


def test_a_class_that_lost_all_its_images_is_named_by_the_step_that_takes_one(tree, caplog):
    images = images_of(tree)
    for path in (tree / "train" / "cat").iterdir():
        path.write_bytes(b"P6 truncated")
    read = images.read(np.array([7, 1]))
    with pytest.raises(InputError, match=r"cat: no readable image; expected at least one"):
        read.take()


# Held-out images


class Noting:
    """Images that are read, and whether those from the third on were."""

    bytes_each = 1

    def __init__(self) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (5, *SIZE, 3), dtype=np.uint8)
        self.memory = ImageSet(pixels, np.zeros(5, np.int32), ("a",))
        self.labels_n = self.memory.labels_n
        self.third = threading.Event()

    def __len__(self) -> int:
        return 5

    def read(self, indices, flip=None, place_of=None) -> ReadImages:
        if 2 in indices:
            self.third.set()
        return ReadImages(*self.memory.batch(indices))


def validated(tokenizer: Tokenizer, images: object) -> dict:
    model = Transformer(tiny.transformer(depth=1, num_classes=1), 0)
    source = EncodedImages(tokenizer, images)
    config = TransformerStageConfig(batch=2, samples_per_class=0)
    return TransformerTraining(model, tokenizer, source, source, config, 0).validate(0)


@pytest.mark.parametrize(
    "measure",
    [
        lambda tokenizer, images: measure_tokenizer(tokenizer, images, 2),
        pytest.param(
            lambda tokenizer, images: measure_reconstructions(tokenizer, images, 2),
            marks=pytest.mark.slow,
        ),
        pytest.param(validated, marks=pytest.mark.slow),
    ],
    ids=["evaluation", "reconstructions", "validation"],
)
def test_the_next_images_are_read_while_some_are_measured(monkeypatch, measure):
    tokenizer, images = Tokenizer(tiny.tokenizer(), 0), Noting()
    expected = measure(tokenizer, images.memory)
    encode = tokenizer.encode_sequence

    def encoded(images_bcyx: np.ndarray) -> np.ndarray:
        assert images.third.wait(60)
        return encode(images_bcyx)

    monkeypatch.setattr(tokenizer, "encode_sequence", encoded)
    assert measure(tokenizer, images) == expected


# Both stages


def stage_of(kind: str, images: ImageFolder):
    tokenizer = Tokenizer(tiny.tokenizer(), 0)
    if kind == "tokenizer":
        adversary = AdversaryConfig(weight=0.5, start=0.5, channels=32)
        config = TokenizerStageConfig(epochs=2, batch=4, flip=True, adversary=adversary)
        return TokenizerTraining(tokenizer, images, images, config, seed=1)
    config = TransformerStageConfig(
        epochs=2, batch=4, accumulation=2, flip=True, progressive=0.5, samples_per_class=0
    )
    source = EncodedImages(tokenizer, images)
    model = Transformer(tiny.transformer(depth=1, num_classes=2), 0)
    return TransformerTraining(model, tokenizer, source, source, config, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tokenizer", "transformer"])
def test_a_stage_that_is_resumed_in_mid_epoch_with_other_threads_ends_in_the_same_weights(
    tree, tmp_path, use_processors, kind
):
    def train(folder: str, fails_at: int | None = None) -> dict[str, np.ndarray]:
        stage = stage_of(kind, images_of(tree))
        step_of = stage.train_step

        def step(number: int):
            if number == fails_at:
                raise InterruptedError
            return step_of(number)

        stage.train_step = step
        out = tmp_path / folder
        metrics = MetricsLog(out, True)
        train_stage(stage, out, metrics, LoopConfig(checkpoint_every=1, validations=1), {})
        stage.close()
        return stage.state()[0]

    expected = train("whole")
    use_processors(1)
    with pytest.raises(InterruptedError):
        train("stopped", fails_at=2)
    use_processors(7)
    found = train("stopped")
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, name)
