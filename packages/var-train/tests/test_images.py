"""The images of a run: which random numbers they are drawn from, and the sheets that show them."""

import dataclasses
import itertools
import tracemalloc

import mindspore as ms
import numpy as np
import pytest
import tiny
from mindspore import ops
from PIL import Image
from var_tokenizer import Tokenizer
from var_tokenizer.common import InputError, save_png, to_pixels
from var_train.data.token_sources import TokenSet
from var_train.reports.images import (
    CELL,
    GUTTER,
    MARGIN,
    SamplingConfig,
    draw_grid,
    reconstruction_sheet,
    sample_grid,
    save_samples,
)
from var_train.training.transformer_stage import TransformerStageConfig, TransformerTraining
from var_transformer import Generation, Transformer, generate

SCALES = (1, 2, 4)
CLASSES = 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(tiny.tokenizer(channel_multipliers=(1,), scales=SCALES), 0)


@pytest.fixture(scope="module")
def model() -> Transformer:
    """One whose logits depend on the class, so that guidance changes what is drawn."""
    config = tiny.transformer(depth=1, num_classes=CLASSES, scales=SCALES)
    model, rng = Transformer(config, 0), np.random.default_rng(0)
    for parameter in model.get_parameters():
        drawn = rng.standard_normal(parameter.shape) * 0.3
        ops.assign(parameter, ms.Tensor(drawn.astype(np.float32)))
    return model


def drawn_alone(model, tokenizer, label: int, number: int, sampling: SamplingConfig, seed: int):
    """Image ``number`` by the documented rule, in a batch of its own."""
    settings = {"cfg": sampling.cfg, "top_k": sampling.top_k, "top_p": sampling.top_p}
    return generate(model, tokenizer, [label], seed=seed, numbers=[number], **settings).images[0]


@pytest.mark.parametrize("batch", [2, 25])
def test_image_n_is_drawn_from_stream_n_of_the_seed_whatever_the_batch(
    model, tokenizer, tmp_path, batch
):
    sampling = SamplingConfig(per_class=3, cfg=1.0, top_k=9, batch=batch)
    images, labels = [], []

    def drawn(images_ncyx, label):
        images.append(images_ncyx)
        labels.append(label)

    path = tmp_path / "samples.png"
    save_samples(model, tokenizer, ["a", "b", "c"], sampling, 7, path, drawn)
    assert labels == [0, 1, 2] and [len(of_class) for of_class in images] == [3, 3, 3]
    alone = [drawn_alone(model, tokenizer, n // 3, n, sampling, 7) for n in range(9)]
    np.testing.assert_allclose(np.concatenate(images), np.stack(alone), atol=1e-5)
    assert min(np.abs(a - b).max() for a, b in itertools.pairwise(alone)) > 1e-3
    expected = grid_of(np.stack(alone), ["a", "b", "c"], 3).astype(int)
    assert np.abs(np.asarray(Image.open(path)) - expected).max() <= 1  # of 255: rounding


def grid(model, tokenizer, sampling: SamplingConfig) -> np.ndarray:
    """What a validation draws, two images of each class."""
    rng = np.random.default_rng(0)
    ids_nl = rng.integers(0, 16, (8, model.config.schedule.length)).astype(np.int32)
    tokens = TokenSet(ids_nl, (np.arange(8) % CLASSES).astype(np.int32))
    stage = TransformerStageConfig(batch=8, samples_per_class=2)
    training = TransformerTraining(model, tokenizer, tokens, tokens, stage, 7, sampling)
    return training.validate(0)["samples"]


def test_a_validations_grid_is_drawn_like_the_final_images(model, tokenizer):
    sampling = SamplingConfig(cfg=0.0, top_k=9, batch=4)
    alone = [drawn_alone(model, tokenizer, n // 2, n, sampling, 7) for n in range(6)]
    expected = grid_of(np.stack(alone), ["0", "1", "2"], 2).astype(int)
    found = grid(model, tokenizer, sampling)
    assert np.abs(found - expected).max() <= 1  # of 255: rounding
    other = grid(model, tokenizer, dataclasses.replace(sampling, cfg=1.5))
    assert np.abs(other - expected).max() > 1


@pytest.fixture
def drawing(monkeypatch) -> list[tuple[int, int]]:
    """Class and number of each image that would be drawn; it is 64 x 64, of its number's grey."""
    asked: list[tuple[int, int]] = []

    def drawn(_model, _tokenizer, labels, *, numbers, **_settings):
        asked.extend(zip(np.asarray(labels).tolist(), numbers, strict=True))
        images = np.zeros((len(labels), 3, 64, 64), np.float32)
        images += (np.reshape(numbers, (-1, 1, 1, 1)) % 256) / 255
        return Generation(images, [])

    monkeypatch.setattr("var_train.reports.images.generate", drawn)
    return asked


def test_samples_show_20_classes_of_10_images_and_only_these_are_drawn(
    model, tokenizer, tmp_path, drawing
):
    names = [f"class {n}" for n in range(1000)]
    sampling = SamplingConfig(per_class=50, batch=25)
    save_samples(model, tokenizer, names, sampling, 0, tmp_path / "samples.png")
    shown = np.unique(np.linspace(0, 999, 20).astype(int)).tolist()
    assert drawing == [(c, 50 * c + n) for c in shown for n in range(10)]
    found = cells(np.asarray(Image.open(tmp_path / "samples.png")), 20, 10)
    expected = np.array([[(50 * c + n) % 256 for n in range(10)] for c in shown])
    np.testing.assert_array_equal(found[:, :, 0, 0, 0], expected)


def test_memory_holds_a_batch_or_a_class_of_images_and_the_sheet(
    model, tokenizer, tmp_path, drawing
):
    image, sheet = 4 * 3 * 64 * 64, 3 * (20 * 68) * (10 * 68 + 100)
    sampling = SamplingConfig(per_class=60, batch=25)
    seen = []
    tracemalloc.start()
    try:
        save_samples(
            *(model, tokenizer, [str(n) for n in range(40)], sampling, 0, tmp_path / "s.png"),
            lambda images, label: seen.append(len(images)),
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seen == [60] * 40
    assert peak < 4 * 60 * image + 4 * sheet < 0.3 * 40 * 60 * image


def test_a_grid_of_a_validation_is_drawn_in_batches_that_fit(
    model, tokenizer, monkeypatch, drawing
):
    monkeypatch.setattr("var_tokenizer.common.memory.available_memory", lambda: 0)
    draw_grid(model, tokenizer, 2, SamplingConfig(), 7)
    assert drawing == [(n // 2, n) for n in range(6)]


def test_a_grid_without_memory_names_the_option_to_lower(model, tokenizer, monkeypatch):
    def none_left(*_, **__):
        raise RuntimeError("Device(id:0) memory isn't enough and alloc failed, kernel name: x")

    monkeypatch.setattr("var_train.reports.images.generate", none_left)
    with pytest.raises(InputError, match=r"drawing 4 images at once; expected --sampling\.batch b"):
        draw_grid(model, tokenizer, 2, SamplingConfig(batch=4), 7)


def grid_of(images_ncyx, row_labels, columns):
    """A grid of images in [0, 1]."""
    return sample_grid(to_pixels(images_ncyx), row_labels, columns)


def flat_images(values, size=(8, 8)):
    """One image of a single grey for each value: (N, 3, Y, X)."""
    return np.ones((1, 3, *size)) * np.reshape(values, (-1, 1, 1, 1))


def cells(sheet, rows, columns, cell=(CELL, CELL)):
    """Cell images (rows, columns, cell_y, cell_x, 3), found from the lower right corner."""
    pixels = sheet[:-MARGIN, :-MARGIN]
    step_y, step_x = cell[0] + GUTTER, cell[1] + GUTTER
    pixels = pixels[-(rows * step_y - GUTTER) :, -(columns * step_x - GUTTER) :]
    return np.array(
        [
            [
                pixels[row * step_y :, column * step_x :][: cell[0], : cell[1]]
                for column in range(columns)
            ]
            for row in range(rows)
        ]
    )


def test_a_grid_has_one_row_a_label_and_its_images_in_order():
    values = np.arange(6) / 5
    found = cells(grid_of(flat_images(values), ["cat", "dog"], columns=3), 2, 3)
    expected = np.rint(values * 255).reshape(2, 3, 1, 1, 1)
    np.testing.assert_array_equal(found, np.broadcast_to(expected, found.shape))


def test_small_images_are_enlarged_by_whole_factors_without_blur():
    image = np.random.default_rng(0).random((1, 3, 8, 16))
    found = cells(grid_of(image, ["cat"], columns=1), 1, 1, cell=(64, 128))[0, 0]
    expected = np.rint(image[0].transpose(1, 2, 0) * 255).repeat(8, axis=0).repeat(8, axis=1)
    np.testing.assert_array_equal(found, expected)


def test_large_images_keep_their_size():
    sheet = grid_of(flat_images([0.5], (100, 80)), ["cat"], columns=1)
    assert (cells(sheet, 1, 1, cell=(100, 80)) == 128).all()


def test_every_row_has_its_label_to_the_left():
    sheet = grid_of(flat_images([0.0, 0.0]), ["cat", "a longer name"], columns=1)
    labels = sheet[:, : -(CELL + MARGIN)]
    first, second = labels[MARGIN : MARGIN + CELL], labels[MARGIN + CELL + GUTTER : -MARGIN]
    inked = [int((part.min(axis=(0, 2)) < 128).sum()) for part in (first, second)]
    assert 0 < inked[0] < inked[1]
    assert labels[:, :MARGIN].min() == 255  # the longest label has room


@pytest.mark.parametrize(("labels", "columns"), [(["a"], 2), (["a", "b"], 2), ([], 2), (["a"], 0)])
def test_a_grid_that_its_images_do_not_fill_is_refused(labels, columns):
    with pytest.raises(InputError, match="3 images for"):
        grid_of(flat_images([0, 0, 0]), labels, columns)


def test_a_reconstruction_sheet_shows_original_reconstruction_and_every_scale():
    originals = flat_images([0.0, 0.2])
    progressive = [flat_images([0.4, 0.4]), flat_images([0.6, 0.8])]
    captions = ["original", "reconstruction", "after 1x1", "after 2x2"]
    found = cells(reconstruction_sheet(originals, progressive, captions), 4, 2)
    expected = np.rint(np.array([[0, 0.2], [0.6, 0.8], [0.4, 0.4], [0.6, 0.8]]) * 255)
    np.testing.assert_array_equal(found[:, :, 0, 0, 0], expected)


@pytest.mark.parametrize(("scales", "captions"), [(0, 2), (1, 2), (2, 5)])
def test_a_reconstruction_sheet_wants_a_caption_for_each_row(scales, captions):
    image = flat_images([0.0])
    with pytest.raises(InputError, match=f"{captions} captions for {scales} scales"):
        reconstruction_sheet(image, [image] * scales, ["x"] * captions)


def test_a_saved_sheet_reads_back_and_leaves_nothing_beside_it(tmp_path):
    sheet = grid_of(flat_images([0.3]), ["cat"], columns=1)
    path = tmp_path / "new" / "samples.png"
    save_png(sheet, path)
    with Image.open(path) as read:
        assert read.format == "PNG"
        np.testing.assert_array_equal(np.asarray(read), sheet)
    assert list(path.parent.iterdir()) == [path]


def test_a_class_whose_name_is_not_utf_8_has_a_caption():
    images = np.zeros((1, 3, 8, 8), np.float32)
    escaped = grid_of(images, ["d\\xf6g"], 1)
    np.testing.assert_array_equal(grid_of(images, ["d\udcf6g"], 1), escaped)
