import numpy as np
import pytest
from var_tokenizer import InputError
from var_transformer import generate

LABELS = np.array([1, 4, 1])


def test_a_generation_has_one_image_a_label_and_ids_of_every_scale(model, tokenizer):
    out = generate(model, tokenizer, LABELS, seed=5)
    assert out.images.shape == (3, 3, *tokenizer.config.image_size)
    assert out.images.min() >= 0 and out.images.max() <= 1
    assert [ids.shape for ids in out.ids] == [(3, 1), (3, 4), (3, 9)]


def test_the_images_are_the_decoded_ids(model, tokenizer):
    out = generate(model, tokenizer, LABELS, seed=5)
    np.testing.assert_allclose(
        out.images, (np.asarray(tokenizer.decode(out.ids)) + 1) / 2, atol=1e-5
    )


def test_the_same_seed_repeats_a_generation_and_another_does_not(model, tokenizer):
    first, second, third = (generate(model, tokenizer, LABELS, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.images, second.images)
    assert any((a != b).any() for a, b in zip(first.ids, third.ids, strict=True))


def test_images_of_one_label_in_a_batch_differ(model, tokenizer):
    out = generate(model, tokenizer, np.array([2, 2]), seed=0)
    assert any((ids[0] != ids[1]).any() for ids in out.ids)


def test_top_k_of_1_takes_the_likeliest_token_whatever_the_seed(model, tokenizer):
    first, second = (generate(model, tokenizer, LABELS, cfg=0, top_k=1, seed=s) for s in (1, 2))
    inputs = np.asarray(tokenizer.teacher_inputs(first.ids))
    logits = np.asarray(model.logits(LABELS, inputs))
    np.testing.assert_array_equal(logits.argmax(-1), np.concatenate(first.ids, 1))
    np.testing.assert_array_equal(first.images, second.images)


def test_guidance_grows_linearly_over_the_scales(model, tokenizer):
    out = generate(model, tokenizer, LABELS, cfg=3.0, top_k=1)
    inputs = np.asarray(tokenizer.teacher_inputs(out.ids))
    conditional = np.asarray(model.logits(LABELS, inputs))
    free = np.asarray(model.logits(np.full(3, 5), inputs))
    strength = 3.0 * model.config.schedule.scale_of_token[:, None] / 2
    guided = (1 + strength) * conditional - strength * free
    np.testing.assert_array_equal(guided.argmax(-1), np.concatenate(out.ids, 1))


def test_more_smooth_keeps_the_range_and_is_seeded(model, tokenizer):
    first, second = (
        generate(model, tokenizer, LABELS, seed=1, more_smooth=True).images for _ in range(2)
    )
    np.testing.assert_array_equal(first, second)
    assert first.min() >= 0 and first.max() <= 1


@pytest.mark.parametrize(
    ("argument", "value"), [("cfg", -1.0), ("cfg", float("nan")), ("top_p", 1.5), ("top_k", 33)]
)
def test_a_sampler_setting_out_of_range_is_an_error_that_names_it(
    model, tokenizer, argument, value
):
    with pytest.raises(InputError, match=argument):
        generate(model, tokenizer, LABELS, **{argument: value})


def teacher_forced(model, tokenizer, ids, labels):
    return np.asarray(model.logits(labels, np.asarray(tokenizer.teacher_inputs(ids))))


def test_scales_after_the_last_guided_one_skip_the_unconditional_half(
    model, tokenizer, monkeypatch
):
    rows = []
    extend = model.extend

    def counted(scale, inputs_blz, class_bc, modulations, cache):
        rows.append(class_bc.shape[0])
        return extend(scale, inputs_blz, class_bc, modulations, cache)

    monkeypatch.setattr(model, "extend", counted)
    out = generate(
        model, tokenizer, LABELS, cfg=3.0, top_k=1, guidance="constant", guided_scales=(1,)
    )
    assert rows == [6, 6, 3]
    conditional = teacher_forced(model, tokenizer, out.ids, LABELS)
    free = teacher_forced(model, tokenizer, out.ids, np.full(3, 5))
    strength = np.where(model.config.schedule.scale_of_token == 1, 3.0, 0.0)[:, None]
    guided = (1 + strength) * conditional - strength * free
    np.testing.assert_array_equal(guided.argmax(-1), np.concatenate(out.ids, 1))


def test_an_image_depends_on_its_number_and_not_on_its_place(model, tokenizer):
    out = generate(model, tokenizer, LABELS, seed=5)
    turned = generate(model, tokenizer, LABELS[::-1].copy(), seed=5, numbers=[2, 1, 0])
    for a, b in zip(out.ids, turned.ids, strict=True):
        np.testing.assert_array_equal(a, b[::-1])


def test_on_scale_sees_the_picture_after_every_scale(model, tokenizer):
    seen = []
    out = generate(model, tokenizer, LABELS, seed=5, on_scale=lambda k, x: seen.append((k, x)))
    assert [k for k, _ in seen] == [0, 1, 2]
    for (_, images), expected in zip(seen, tokenizer.decode_progressive(out.ids), strict=True):
        np.testing.assert_allclose(images, (expected.asnumpy() + 1) / 2, atol=1e-5)
    np.testing.assert_array_equal(seen[-1][1], out.images)


@pytest.mark.parametrize(
    ("argument", "value"), [("seed", -1), ("seed", 0.5), ("numbers", [0, 1, -2]), ("numbers", [0])]
)
def test_a_bad_seed_or_number_is_an_error_that_names_it(model, tokenizer, argument, value):
    with pytest.raises(InputError, match=argument):
        generate(model, tokenizer, LABELS, **{argument: value})
