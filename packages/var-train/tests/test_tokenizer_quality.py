"""Figures of a tokenizer against their definitions."""

import numpy as np
import pytest
import tiny
from var_tokenizer import Tokenizer
from var_tokenizer.common import InputError, to_model_range
from var_train.data.image_sources import ImageSet
from var_train.reports.tokenizer_quality import measure_tokenizer


@pytest.mark.parametrize("side", [3, 4, 6])
def test_ssim_fits_its_windows_into_small_images(side):
    config = tiny.tokenizer(channel_multipliers=(1,), scales=(1, side))
    pixels = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    images = ImageSet(pixels, np.zeros(3, np.int32), ("a",))
    figures = measure_tokenizer(Tokenizer(config, 0), images, 2)
    assert figures.images == 3 and -1 <= figures.ssim <= 1


@pytest.mark.parametrize("batch", [2, 5])
def test_figures_are_means_over_the_images_whatever_the_batch(batch):
    tokenizer = Tokenizer(tiny.tokenizer(channel_multipliers=(1,), scales=(1, 8)), 0)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    images = ImageSet(pixels, np.zeros(5, np.int32), ("a",))
    figures = measure_tokenizer(tokenizer, images, batch)
    originals = to_model_range(pixels)
    ids = [np.asarray(i) for i in tokenizer.encode(originals)]
    error_n = ((np.asarray(tokenizer.decode(ids)) - originals).astype(np.float64) ** 2).mean(
        (1, 2, 3)
    )
    assert figures.psnr == pytest.approx((10 * np.log10(4 / error_n)).mean(), rel=1e-5)
    assert figures.scale_codes_used == [len(np.unique(i)) for i in ids]
    assert figures.codebook_usage == len(np.unique(np.concatenate(ids, 1))) / 32


def test_fid_of_one_image_is_refused_before_it_is_encoded(monkeypatch):
    tokenizer = Tokenizer(tiny.tokenizer(channel_multipliers=(1,), scales=(1, 8)), 0)
    monkeypatch.setattr(tokenizer, "encode", None)
    one = ImageSet(np.zeros((1, 8, 8, 3), np.uint8), np.zeros(1, np.int32), ("a",))
    with pytest.raises(InputError, match=r"1 real image\(s\)"):
        measure_tokenizer(tokenizer, one, 1, network=lambda x: (x,))
