import numpy as np
import pytest
from PIL import Image
from var_tokenizer.common import InputError, save_png
from var_train.reports.image_sheets import (
    CELL,
    GUTTER,
    MARGIN,
    reconstruction_sheet,
    sample_grid,
)


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
    found = cells(sample_grid(flat_images(values), ["cat", "dog"], columns=3), 2, 3)
    expected = np.rint(values * 255).reshape(2, 3, 1, 1, 1)
    np.testing.assert_array_equal(found, np.broadcast_to(expected, found.shape))


def test_small_images_are_enlarged_by_whole_factors_without_blur():
    image = np.random.default_rng(0).random((1, 3, 8, 16))
    found = cells(sample_grid(image, ["cat"], columns=1), 1, 1, cell=(64, 128))[0, 0]
    expected = np.rint(image[0].transpose(1, 2, 0) * 255).repeat(8, axis=0).repeat(8, axis=1)
    np.testing.assert_array_equal(found, expected)


def test_large_images_keep_their_size():
    sheet = sample_grid(flat_images([0.5], (100, 80)), ["cat"], columns=1)
    assert (cells(sheet, 1, 1, cell=(100, 80)) == 128).all()


def test_every_row_has_its_label_to_the_left():
    sheet = sample_grid(flat_images([0.0, 0.0]), ["cat", "a longer name"], columns=1)
    labels = sheet[:, : -(CELL + MARGIN)]
    first, second = labels[MARGIN : MARGIN + CELL], labels[MARGIN + CELL + GUTTER : -MARGIN]
    inked = [int((part.min(axis=(0, 2)) < 128).sum()) for part in (first, second)]
    assert 0 < inked[0] < inked[1]
    assert labels[:, :MARGIN].min() == 255  # the longest label has room


@pytest.mark.parametrize(("labels", "columns"), [(["a"], 2), (["a", "b"], 2), ([], 2), (["a"], 0)])
def test_a_grid_that_its_images_do_not_fill_is_refused(labels, columns):
    with pytest.raises(InputError, match="3 images for"):
        sample_grid(flat_images([0, 0, 0]), labels, columns)


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
    sheet = sample_grid(flat_images([0.3]), ["cat"], columns=1)
    path = tmp_path / "new" / "samples.png"
    save_png(sheet, path)
    with Image.open(path) as read:
        assert read.format == "PNG"
        np.testing.assert_array_equal(np.asarray(read), sheet)
    assert list(path.parent.iterdir()) == [path]


def test_a_class_whose_name_is_not_utf_8_has_a_caption():
    images = np.zeros((1, 3, 8, 8), np.float32)
    escaped = sample_grid(images, ["d\\xf6g"], 1)
    np.testing.assert_array_equal(sample_grid(images, ["d\udcf6g"], 1), escaped)
