"""Editing: what stays, what is drawn."""

import numpy as np
import pytest
from var_tokenizer import ScaleSchedule
from var_transformer import Sampler, box_mask, edit, generate, tokens_to_redraw

LABELS = np.array([1, 4, 1])  # three, as in the other tests: shapes compile once
SIDE = 6


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).uniform(-1, 1, (3, SIDE, SIDE)).astype(np.float32)


def test_an_edit_that_keeps_every_pixel_is_the_reconstruction(model, tokenizer, image):
    seen = []
    mask = np.zeros((SIDE, SIDE), bool)
    out = edit(model, tokenizer, image, mask, 2, on_scale=lambda k, x: seen.append((k, x)))
    expected = tokenizer.decode(tokenizer.encode(image[None])).asnumpy()
    np.testing.assert_array_equal(out.images, (expected + 1) / 2)
    assert [k for k, _ in seen] == [0, 1, 2]


@pytest.mark.parametrize("more_smooth", [False, True])
def test_an_edit_that_keeps_nothing_is_plain_generation(model, tokenizer, image, more_smooth):
    mask = np.ones((SIDE, SIDE), bool)
    settings = {"cfg": 2.0, "top_p": 0.9, "more_smooth": more_smooth}
    out = edit(model, tokenizer, image, mask, LABELS, Sampler(**settings), seed=3)
    expected = generate(model, tokenizer, LABELS, seed=3, **settings)
    np.testing.assert_array_equal(out.images, expected.images)
    for got, ids in zip(out.ids, expected.ids, strict=True):
        np.testing.assert_array_equal(got, ids)


@pytest.mark.parametrize("more_smooth", [False, True])
def test_tokens_outside_the_mask_are_the_images_own(model, tokenizer, image, more_smooth):
    mask = box_mask((0, 0, 3, 6), SIDE, SIDE)
    sampler = Sampler(more_smooth=more_smooth)
    out = edit(model, tokenizer, image, mask, LABELS, sampler, seed=1)
    original = [ids.asnumpy() for ids in tokenizer.encode(image[None])]
    redrawn = tokens_to_redraw(mask, tokenizer.schedule)
    for got, ids, marked in zip(out.ids, original, redrawn, strict=True):
        assert (got[:, ~marked] == ids[:, ~marked]).all()
    assert any(
        (got[:, marked] != ids[:, marked]).any()
        for got, ids, marked in zip(out.ids, original, redrawn, strict=True)
    )


def test_a_token_is_redrawn_by_the_share_of_its_rectangle_inside_the_mask():
    schedule = ScaleSchedule((1, 2, (3, 4)))
    left = box_mask((0, 0, 12, 7), 12, 12)  # 7 of 12 columns
    marked = tokens_to_redraw(left, schedule)
    assert [m.tolist() for m in marked[:2]] == [[True], [True, False, True, False]]
    assert marked[2].reshape(3, 4).tolist() == [[True, True, True, False]] * 3
    point = box_mask((0, 0, 1, 1), 12, 12)
    assert [m.sum() for m in tokens_to_redraw(point, schedule)] == [0, 0, 1]
    for mask, expected in ((np.zeros((12, 12), bool), 0), (np.ones((12, 12), bool), 1)):
        assert [m.mean() for m in tokens_to_redraw(mask, schedule)] == [expected] * 3


def test_edit_stays_a_function_when_its_command_is_imported():
    import var_transformer
    import var_transformer.edit
    import var_transformer.edit.__main__

    assert var_transformer.edit is edit
