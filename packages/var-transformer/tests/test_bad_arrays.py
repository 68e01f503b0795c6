"""Arrays and settings without a meaning: each is an error that names the field and its value."""

import numpy as np
import pytest
from mindspore import Tensor
from var_tokenizer.common import InputError
from var_transformer import Sampler, Transformer, box_mask, edit, generate, tokens_to_redraw
from var_transformer.generation.filters import draw, softmax

LABELS = np.array([1, 4, 1])
INPUTS = np.random.default_rng(0).standard_normal((3, 13, 8)).astype(np.float32)
IMAGE = np.random.default_rng(0).uniform(-1, 1, (3, 6, 6)).astype(np.float32)
LARGE = np.zeros((3, 8, 8), np.float32)
MASK = box_mask((0, 0, 3, 6), 6, 6)
NAN = float("nan")


def with_one(array, value):
    changed = np.array(array)
    changed.reshape(-1)[-1] = value
    return changed


BAD_LABELS = [
    (np.array([1.0, 2.0]), r"labels have shape \(2,\) and dtype float64; expected \(B,\) ints"),
    (np.array([1.9]), r"labels have shape \(1,\) and dtype float64; expected \(B,\) ints"),
    (np.array([True]), r"labels have shape \(1,\) and dtype bool; expected \(B,\) ints"),
    (np.array([], np.int32), "labels are empty; expected at least one"),
    (np.array([2**32]), "labels hold 4294967296; expected 0 to 4"),
    (np.array([1, 6]), "labels hold 6; expected 0 to 4"),
    (np.array([-1]), "labels hold -1; expected 0 to 4"),
]


@pytest.mark.parametrize(("labels", "message"), BAD_LABELS)
def test_a_model_refuses_labels_that_are_no_classes(model, labels, message):
    with pytest.raises(InputError, match=message):
        model.logits(labels, INPUTS[: len(labels)])
    with pytest.raises(InputError, match=message):
        model.condition(labels)


@pytest.mark.parametrize(("labels", "message"), BAD_LABELS)
def test_labels_that_are_no_classes_are_refused(model, tokenizer, no_model_runs, labels, message):
    with pytest.raises(InputError, match=message):
        generate(model, tokenizer, labels)
    with pytest.raises(InputError, match=message):
        edit(model, tokenizer, IMAGE, MASK, labels)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (with_one(INPUTS, np.nan), "inputs hold NaN; expected finite floats, as Tokenizer.teacher"),
        (with_one(INPUTS, np.inf), r"inputs lie in \[.*, inf\]; expected finite floats"),
        (INPUTS > 0, "inputs have dtype bool; expected finite floats"),
        (INPUTS.astype(np.int32), "inputs have dtype int32; expected finite floats"),
        (INPUTS[:1], r"inputs have shape \(1, 13, 8\); expected \(3, 13, 8\)"),
        (INPUTS[..., :7], r"inputs have shape \(3, 13, 7\); expected \(3, 13, 8\)"),
    ],
)
def test_inputs_that_no_tokenizer_gives_are_refused(model, inputs, message):
    for array in (inputs, Tensor(inputs)):
        with pytest.raises(InputError, match=message):
            model.logits(LABELS, array)


@pytest.mark.parametrize(
    ("scale", "inputs", "message"),
    [
        (3, INPUTS[:, :4], "scale is 3; expected an integer from 0 to 2"),
        (-1, INPUTS[:, :4], "scale is -1; expected an integer from 0 to 2"),
        (True, INPUTS[:, :4], "scale is True; expected an integer from 0 to 2"),
        (1, None, "inputs of scale 1 are None; expected them at every scale but 0"),
        (0, INPUTS[:, :1], "inputs of scale 0 are given; expected them at every scale but 0"),
        (1, INPUTS[:1, :4], r"inputs of scale 1 have shape \(1, 4, 8\); expected \(3, 4, 8\)"),
    ],
)
def test_a_scale_that_cannot_follow_is_refused(model, scale, inputs, message):
    condition = model.condition(LABELS)
    cache = model.extend(0, None, *condition, None)[1] if scale else None
    with pytest.raises(InputError, match=message):
        model.extend(scale, None if inputs is None else Tensor(inputs), *condition, cache)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cfg": NAN}, "cfg is nan; expected a number of at least 0"),
        ({"cfg": True}, "cfg is True; expected a number of at least 0"),
        ({"cfg": "4"}, "cfg is '4'; expected a number of at least 0"),
        ({"cfg": None}, "cfg is None; expected a number of at least 0"),
        ({"top_k": 1.9}, "top_k is 1.9; expected an integer"),
        ({"top_k": NAN}, "top_k is nan; expected an integer"),
        ({"top_k": True}, "top_k is True; expected an integer"),
        ({"top_k": (1, 2.5, 3)}, "top_k is 2.5; expected an integer"),
        ({"top_p": NAN}, "top_p is nan; expected a number from 0 to 1"),
        ({"top_p": True}, "top_p is True; expected a number from 0 to 1"),
        ({"top_p": "0.5"}, "top_p is '0.5'; expected a number from 0 to 1"),
        ({"top_p": (0.5, NAN, 0.5)}, "top_p is nan; expected a number from 0 to 1"),
        ({"temperature": NAN}, "temperature is nan; expected a number above 0"),
        ({"temperature": True}, "temperature is True; expected a number above 0"),
        ({"temperature": (1.0, 1.0, np.inf)}, "temperature is inf; expected a number above 0"),
        ({"guided_scales": (True,)}, "guided_scales is True; expected an integer of at least 0"),
        ({"guided_scales": (1.5,)}, "guided_scales is 1.5; expected an integer of at least 0"),
        ({"guided_scales": 2}, "guided_scales is 2; expected a tuple"),
        ({"more_smooth": "no"}, "more_smooth is 'no'; expected True or False"),
        ({"cfg": -0.5}, "cfg is -0.5; expected a number of at least 0"),
        ({"top_p": 1.01}, "top_p is 1.01; expected a number from 0 to 1"),
        ({"top_p": (0.5, -0.1)}, "top_p is -0.1; expected a number from 0 to 1"),
        ({"top_k": -1}, "top_k is -1; expected an integer of at least 0"),
        ({"temperature": 0.0}, "temperature is 0.0; expected a number above 0"),
        ({"guidance": "cubic"}, "guidance .*'cubic'; .* linear, constant, none"),
        ({"guided_scales": (-1,)}, "guided_scales is -1; expected an integer of at least 0"),
        ({"speed": 1.0}, "speed is 1.0; expected an integer from 0 to 5"),
        ({"speed": 6}, "speed is 6; expected an integer from 0 to 5"),
        ({"speed": -1}, "speed is -1; expected an integer from 0 to 5"),
        (
            {"speed": 2, "pruned": (0.5,)},
            r"speed is 2 and pruned is \(0.5,\); expected one of them",
        ),
        ({"speed": 2, "guided_scales": ()}, r"speed is 2 and guided_scales is \(\); expected one"),
        ({"more_smooth": NAN}, "more_smooth is nan; expected True or False"),
    ],
)
def test_settings_without_a_meaning_are_refused(model, tokenizer, no_model_runs, settings, message):
    with pytest.raises(InputError, match=message):
        Sampler(**settings)
    with pytest.raises(InputError, match=message):
        generate(model, tokenizer, LABELS, **settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": True}, "seed is True; expected an integer of at least 0"),
        ({"seed": NAN}, "seed is nan; expected an integer of at least 0"),
        ({"seed": -1}, "seed is -1; expected an integer of at least 0"),
        ({"seed": 0.5}, "seed is 0.5; expected an integer of at least 0"),
        ({"numbers": [0, 1, -2]}, "numbers is -2; expected an integer of at least 0"),
        ({"numbers": [0]}, "numbers has 1 entries; expected one for each label"),
        ({"top_k": 33}, "top_k is 33; expected 0 to 32, the vocabulary"),
        ({"numbers": [0, 1, True]}, "numbers is True; expected an integer of at least 0"),
        ({"numbers": [0, 1, 1.9]}, "numbers is 1.9; expected an integer of at least 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(model, tokenizer, no_model_runs, arguments, message):
    with pytest.raises(InputError, match=message):
        generate(model, tokenizer, LABELS, **arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": IMAGE.astype(np.uint8)}, r"pixels of the image have dtype uint8; .*\[-1, 1"),
        ({"image": (IMAGE + 1) * 127.5}, r"pixels of the image lie in .*; expected .*\[-1, 1\]"),
        ({"image": with_one(IMAGE, np.nan)}, r"pixels of the image hold NaN; expected .*\[-1, 1\]"),
        ({"image": np.zeros((3, 0, 6), np.float32)}, r"image has shape \(3, 0, 6\); expected"),
        ({"mask": MASK.astype(np.float32)}, "mask has dtype float32; expected bool"),
        ({"mask": MASK.astype(np.uint8)}, "mask has dtype uint8; expected bool"),
        ({"mask": np.ones((6, 5), bool)}, r"mask has shape \(6, 5\); expected \(6, 6\)"),
        ({"image": IMAGE[0]}, r"image has shape \(6, 6\); expected \(3, H, W"),
        ({"image": LARGE, "mask": LARGE[0] == 0}, r"\(1, 3, 8, 8\); expected \(B, 3, 6, 6\)"),
        ({"label": True}, "labels have shape .* and dtype bool"),
        ({"label": 1.9}, "labels have shape .* and dtype float64"),
        ({"sampler": Sampler(top_k=33)}, "top_k is 33; expected 0 to 32"),
    ],
)
def test_bad_input_of_edit_is_refused(model, tokenizer, no_model_runs, change, message):
    arguments = {"image": IMAGE, "mask": MASK, "label": 1} | change
    with pytest.raises(InputError, match=message):
        edit(model, tokenizer, **arguments)


def test_values_that_are_no_box_or_mask_are_refused(tokenizer):
    for box in ((0, 0, 2.5, 3), (0, 0, NAN, 3), (False, 0, 2, 3), (0, 0, 2)):
        with pytest.raises(InputError, match=r"box is .*; expected four integers"):
            box_mask(box, 6, 6)
    for box in ((0, 0, 0, 3), (0, 0, 7, 3), (-1, 0, 3, 3), (4, 0, 2, 3)):
        with pytest.raises(InputError, match=r"box is .*; expected \(y0, x0, y1, x1\) with"):
            box_mask(box, 6, 6)
    for mask, message in ((MASK * NAN, "dtype float64; expected bool"), (MASK[0], r"\(6,\)")):
        with pytest.raises(InputError, match=message):
            tokens_to_redraw(mask, tokenizer.schedule)


def test_logits_that_are_nan_draw_nothing():
    logits = np.zeros((1, 2, 4), np.float32)
    for value in (np.nan, np.inf):
        with (
            np.errstate(invalid="ignore"),
            pytest.raises(InputError, match="probabilities are NaN"),
        ):
            draw(softmax(with_one(logits, value)), np.zeros((1, 2)))
    assert draw(softmax(with_one(logits, -np.inf)), np.full((1, 2), 0.99)).tolist() == [[3, 2]]


def test_a_model_of_nan_weights_is_an_error_and_no_image(model, tokenizer, tmp_path):
    model.save(tmp_path / "m.safetensors")
    broken = Transformer.load(tmp_path / "m.safetensors")
    broken.head.bias.set_data(Tensor(np.full(32, np.nan, np.float32)))
    with pytest.raises(InputError, match="probabilities are NaN; expected finite logits"):
        generate(broken, tokenizer, LABELS)
