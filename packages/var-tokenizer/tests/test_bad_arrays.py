"""Arrays without a meaning: each is an error that names the field, the value and the range."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from var_tokenizer.common import InputError, to_model_range

IMAGES = np.random.default_rng(0).uniform(-1, 1, (3, 3, 8, 8)).astype(np.float32)
IDS = [np.random.default_rng(k).integers(0, 32, (3, n)) for k, n in enumerate((1, 4, 16))]
WEIGHTS = np.full((3, 4, 32), 1 / 32, np.float32)
LATENT = np.random.default_rng(0).standard_normal((3, 4, 4, 8)).astype(np.float32)


def with_one(array, value):
    changed = np.array(array)
    changed.reshape(-1)[-1] = value
    return changed


@pytest.fixture
def nothing_runs(tokenizer, monkeypatch):
    def unexpected(*_args):
        raise AssertionError("a pass ran")

    for name in vars(tokenizer._compiled):
        if not name.startswith("_"):
            monkeypatch.setattr(tokenizer._compiled, name, unexpected)


@pytest.mark.parametrize("method", ["encode", "residual_vectors"])
@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.full((1, 3, 8, 8), 255, np.uint8), r"images have dtype uint8; .*\[-1, 1\].*read_ima"),
        (np.zeros((1, 3, 8, 8), bool), r"images have dtype bool; expected floats in \[-1, 1\]"),
        (np.zeros((1, 3, 8, 8), np.int64), "images have dtype int64; expected floats"),
        ((IMAGES + 1) * 127.5, r"images lie in \[.*, 25.*\]; expected \[-1, 1\]"),
        (IMAGES - 1, r"images lie in \[-.*\]; expected \[-1, 1\]"),
        (with_one(IMAGES, 1.01), r"images lie in .* 1.01\]; expected \[-1, 1\]"),
        (with_one(IMAGES, np.nan), r"images hold NaN; expected \[-1, 1\]"),
        (with_one(IMAGES, np.inf), r"images lie in .* inf\]; expected \[-1, 1\]"),
        (with_one(IMAGES, -np.inf), r"images lie in \[-inf.*; expected \[-1, 1\]"),
        (IMAGES[:0], r"images have shape \(0, 3, 8, 8\); expected \(B, 3, 8, 8\)"),
        (IMAGES[0], r"images have shape \(3, 8, 8\); expected \(B, 3, 8, 8\)"),
        (IMAGES[:, :, 1:], r"images have shape \(3, 3, 7, 8\); expected \(B, 3, 8, 8\)"),
        (IMAGES.transpose(0, 2, 3, 1), r"images have shape \(3, 8, 8, 3\); expected"),
    ],
)
def test_images_other_than_floats_in_the_model_range_are_refused(
    tokenizer, nothing_runs, method, images, message
):
    for array in (images, Tensor(images)) if images.size else (images,):
        with pytest.raises(InputError, match=message):
            getattr(tokenizer, method)(array)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, "bfloat16"])
def test_images_of_any_float_type_with_rounding_errors_are_accepted(tokenizer, dtype):
    white = to_model_range(np.full((3, 8, 8, 3), 255, np.uint8))
    images = np.float32(white * np.float32(1.000001))
    given = Tensor(images).astype(ms.bfloat16) if dtype == "bfloat16" else images.astype(dtype)
    for ours, theirs in zip(tokenizer.encode(given), tokenizer.encode(white), strict=True):
        np.testing.assert_array_equal(ours.asnumpy(), theirs.asnumpy())


@pytest.mark.parametrize("method", ["decode", "decode_progressive", "teacher_inputs"])
@pytest.mark.parametrize(
    ("scale", "ids", "message"),
    [
        (0, IDS[0][:1], r"ids of scale 1 have shape \(3, 4\); expected \(1, 4\)"),
        (1, IDS[1][:1], r"ids of scale 1 have shape \(1, 4\); expected \(3, 4\)"),
        (2, IDS[2][:2], r"ids of scale 2 have shape \(2, 16\); expected \(3, 16\)"),
        (1, IDS[1][:, :3], r"ids of scale 1 have shape \(3, 3\); expected \(3, 4\)"),
        (0, IDS[0][:0], r"ids of scale 0 have shape \(0, 1\); expected \(B, 1\)"),
        (1, IDS[1] + 0.9, "ids of scale 1 have dtype float64; expected integers from 0 to 31"),
        (1, IDS[1].astype(np.float32), "ids of scale 1 have dtype float32; expected integers"),
        (2, IDS[2] > 5, "ids of scale 2 have dtype bool; expected integers from 0 to 31"),
        (1, with_one(IDS[1].astype(np.float32), np.nan), "ids of scale 1 have dtype float32"),
        (1, with_one(IDS[1], 32), r"ids of scale 1 lie in \[.*, 32\]; expected \[0, 31\]"),
        (0, IDS[0] - 32, r"ids of scale 0 lie in \[-.*\]; expected \[0, 31\]"),
        (1, with_one(IDS[1], -1), r"ids of scale 1 lie in \[-1, .*\]; expected \[0, 31\]"),
        (1, with_one(IDS[1], 2**32), r"ids of scale 1 lie in .* 4294967296\]; expected \[0, 31"),
    ],
)
def test_ids_of_another_type_range_or_batch_are_refused(
    tokenizer, nothing_runs, method, scale, ids, message
):
    changed = [ids if k == scale else IDS[k] for k in range(3)]
    with pytest.raises(InputError, match=message):
        getattr(tokenizer, method)(changed)
    with pytest.raises(InputError, match="ids has 2 scales; expected 3"):
        getattr(tokenizer, method)(changed[:2])


@pytest.mark.parametrize(
    ("latent", "tokens", "scale", "message"),
    [
        (None, IDS[1], 3, "scale is 3; expected an integer from 0 to 2"),
        (None, IDS[1], -2, "scale is -2; expected an integer from 0 to 2"),
        (None, IDS[1], True, "scale is True; expected an integer from 0 to 2"),
        (None, IDS[1], 1.0, "scale is 1.0; expected an integer from 0 to 2"),
        (None, IDS[2], 1, r"ids of scale 1 have shape \(3, 16\); expected \(B, 4\)"),
        (None, IDS[1] / 2, 1, "ids of scale 1 have dtype float64; expected integers from 0 to 31"),
        (None, IDS[1] + 32, 1, r"ids of scale 1 lie in .*; expected \[0, 31\]"),
        (None, IDS[1] > 5, 1, "ids of scale 1 have dtype bool; expected integers from 0 to 31"),
        (None, WEIGHTS[:, :, :31], 1, r"weights of scale 1 have shape \(3, 4, 31\); .*\(B, 4, 32"),
        (None, WEIGHTS > 5, 1, "weights of scale 1 have dtype bool; expected finite floats"),
        (None, with_one(WEIGHTS, np.nan), 1, "weights of scale 1 hold NaN; expected finite floats"),
        (None, with_one(WEIGHTS, np.inf), 1, "weights of scale 1 lie in .*inf.*; expected finite"),
        (LATENT[:1], IDS[1], 1, r"ids of scale 1 have shape \(3, 4\); expected \(1, 4\)"),
        (LATENT[:1], WEIGHTS, 1, r"weights of scale 1 have shape \(3, 4, 32\); expected \(1, 4, 3"),
        (LATENT[:, :2], IDS[1], 1, r"latent maps have shape \(3, 2, 4, 8\); .*\(B, 4, 4, 8\)"),
        (with_one(LATENT, np.nan), IDS[1], 1, "latent maps hold NaN; expected finite floats"),
    ],
)
def test_scales_tokens_and_latent_maps_that_do_not_fit_are_refused(
    tokenizer, nothing_runs, latent, tokens, scale, message
):
    latent = None if latent is None else Tensor(latent)
    with pytest.raises(InputError, match=message):
        tokenizer.add_scale(latent, tokens, scale)


@pytest.mark.parametrize(
    ("latent", "message"),
    [
        (LATENT[0], r"latent maps have shape \(4, 4, 8\); expected \(B, 4, 4, 8\)"),
        (LATENT[:, :, :, :7], r"latent maps have shape \(3, 4, 4, 7\); expected \(B, 4, 4, 8\)"),
        (LATENT > 0, "latent maps have dtype bool; expected finite floats"),
        (with_one(LATENT, -np.inf), r"latent maps lie in \[-inf, .*\]; expected finite floats"),
    ],
)
def test_latent_maps_of_another_shape_or_type_are_refused(tokenizer, nothing_runs, latent, message):
    for read in (tokenizer.decode_latent, lambda x: tokenizer.scale_input(x, 1)):
        with pytest.raises(InputError, match=message):
            read(Tensor(latent))
    with pytest.raises(InputError, match="scale is 3; expected an integer from 0 to 2"):
        tokenizer.scale_input(Tensor(LATENT), 3)


def test_arrays_may_be_tensors_or_lists(tokenizer):
    expected = tokenizer.decode(IDS).asnumpy()
    for given in (
        [Tensor(i) for i in IDS],
        [i.tolist() for i in IDS],
        [i.astype("u2") for i in IDS],
    ):
        np.testing.assert_array_equal(tokenizer.decode(given).asnumpy(), expected)
