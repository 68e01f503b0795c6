"""Random crops as published: where they lie, what they hold, and that resumed runs repeat them."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny
from image_tree import random_image
from PIL import Image
from var_tokenizer import Tokenizer
from var_train.data.crops import crops_of, draw_place
from var_train.data.image_sources import ImageFolder, ImageSet, load_image_tree
from var_train.reports.metrics_log import MetricsLog
from var_train.training.loop import LoopConfig, train_stage
from var_train.training.tokenizer_stage import TokenizerStageConfig, TokenizerTraining

LANCZOS = Image.Resampling.LANCZOS
BOTH_WAYS = pytest.mark.parametrize(
    ("rows", "columns", "resized"), [(300, 400, (384, 288)), (400, 300, (288, 384))]
)


def picture(rows: int, columns: int) -> Image.Image:
    return Image.fromarray(random_image(0, (rows, columns)))


@BOTH_WAYS
@pytest.mark.parametrize("place", [(0.0, 0.0), (0.999, 0.999), (0.25, 0.75)])
def test_a_crop_is_pillows_own_of_the_shorter_side_at_288(rows, columns, resized, place):
    [found] = map(np.asarray, crops_of(picture(rows, columns), (256, 256), [place]))
    whole = np.asarray(picture(rows, columns).resize(resized, LANCZOS))
    top, left = (int(p * (n - 256 + 1)) for p, n in zip(place, whole.shape[:2], strict=True))
    np.testing.assert_array_equal(found, whole[top : top + 256, left : left + 256])


@BOTH_WAYS
def test_without_a_place_the_crop_is_in_the_centre(rows, columns, resized):
    left, top = (side // 2 - 128 for side in resized)
    expected = picture(rows, columns).resize(resized, LANCZOS)
    expected = expected.crop((left, top, left + 256, top + 256))
    assert crops_of(picture(rows, columns), (256, 256), [None]) == [expected]


def test_places_reach_every_row_and_column_alike():
    """33 x 129 crops of 300 x 400: the upper left corners of 20,000 draws."""
    yx_2n = np.array([draw_place(0, step, 7) for step in range(20_000)]).T
    for places_n, count in zip(yx_2n, (33, 129), strict=True):
        hits = np.bincount((places_n * count).astype(int), minlength=count)
        assert len(hits) == count and abs(hits / (20_000 / count) - 1).max() < 0.45


def test_a_place_depends_on_seed_step_and_image_alone():
    assert draw_place(3, 5, 7) == draw_place(3, 5, np.int64(7))
    others = {draw_place(*at) for at in ((3, 5, 8), (3, 6, 7), (4, 5, 7), (5, 3, 7), (3, 5, 7))}
    assert len(others) == 5


@pytest.mark.parametrize("size", [(1, 30_000), (30_000, 1), (1, 1), (7, 500)])
@pytest.mark.parametrize("image_size", [(32, 32), (8, 48), (48, 8)])
def test_a_thin_or_tiny_picture_is_cropped_without_growing_large(size, image_size, monkeypatch):
    seen = []
    resize = Image.Image.resize

    def noting(self, size, *arguments):
        seen.append(size)
        return resize(self, size, *arguments)

    monkeypatch.setattr(Image.Image, "resize", noting)
    [found] = crops_of(picture(*size), image_size, [(0.9, 0.9)])
    assert found.size == image_size[::-1]
    assert max(max(sides) for sides in seen) <= 16 * 54


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """Images of three sizes, training and validation, none of them square."""
    root = tmp_path_factory.mktemp("crops")
    for split, count in (("train", 6), ("val", 3)):
        (root / split / "cat").mkdir(parents=True)
        for n in range(count):
            size = ((9, 12), (20, 9), (31, 17))[n % 3]
            pixels = random_image(n, size)
            Image.fromarray(pixels).save(root / split / "cat" / f"{n}.png")
    return root


@pytest.mark.parametrize("memory_limit", [2**30, 0], ids=["memory", "lazy"])
def test_training_images_are_cropped_where_asked_and_validation_images_at_the_centre(
    tree, memory_limit
):
    size = (6, 8)
    train, val = load_image_tree(tree, size, memory_limit=memory_limit, random_crops=True)
    place_of = partial(draw_place, 0, 3)
    pixels_byxc, _ = train.batch([4, 1], np.array([True, False]), place_of)
    first, second = (Image.open(tree / "train" / "cat" / f"{n}.png") for n in (4, 1))
    [expected] = crops_of(first, size, [draw_place(0, 3, 4)])
    np.testing.assert_array_equal(pixels_byxc[0], np.asarray(expected)[:, ::-1])
    [expected] = crops_of(second, size, [draw_place(0, 3, 1)])
    np.testing.assert_array_equal(pixels_byxc[1], expected)
    third = Image.open(tree / "val" / "cat" / "2.png")
    np.testing.assert_array_equal(val.batch([2])[0], crops_of(third, size, [None]))
    assert isinstance(train, ImageFolder)
    assert isinstance(val, ImageSet if memory_limit else ImageFolder)


class Recording:
    """A source that keeps what each batch held."""

    def __init__(self, source: ImageFolder, kept: list[np.ndarray]) -> None:
        self.source, self.kept = source, kept
        self.labels_n, self.classes = source.labels_n, source.classes

    def __len__(self) -> int:
        return len(self.source)

    def batch(self, *arguments):
        found = self.source.batch(*arguments)
        self.kept.append(found[0].copy())
        return found


@pytest.mark.slow
def test_a_resumed_run_sees_the_crops_that_it_would_have_seen(tree, tmp_path):
    def train(folder: str, fails_at: int | None = None) -> list[np.ndarray]:
        tokenizer = Tokenizer(tiny.tokenizer(), 0)
        images, val = load_image_tree(tree, (6, 6), random_crops=True)
        kept: list[np.ndarray] = []
        config = TokenizerStageConfig(epochs=4, batch=4)
        stage = TokenizerTraining(tokenizer, Recording(images, kept), val, config, seed=1)
        step_of = stage.train_step

        def step(number: int):
            if number == fails_at:
                raise InterruptedError
            return step_of(number)

        stage.train_step = step
        out = tmp_path / folder
        train_stage(stage, out, MetricsLog(out, True), LoopConfig(checkpoint_every=1), {})
        return kept

    whole = train("whole")
    with pytest.raises(InterruptedError):
        train("stopped", fails_at=2)
    resumed = train("stopped")
    assert len(whole) == 6 and len(resumed) == 4
    np.testing.assert_array_equal(resumed, whole[2:])
    assert any((whole[0] != later).any() for later in whole[1:])
