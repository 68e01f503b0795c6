"""A transformer that stays in its file computes what one in memory does."""

import os
import shutil

import numpy as np
import pytest
from command_line import call, start, words
from mindspore import Tensor
from safetensors.numpy import load_file
from var_tokenizer.common import (
    INT8_NOTE,
    INT8_SCALES,
    InputError,
    read_picture,
    rounded_to_int8,
    row_scales,
    write_checkpoint,
)
from var_transformer import (
    Refiner,
    StoredTransformer,
    Transformer,
    box_mask,
    edit,
    generate,
    large_weights,
)
from var_transformer.model.operators import kernels


@pytest.fixture(autouse=True)
def _with_kernels():
    if kernels() is None:
        pytest.skip("needs the kernels")


def save_as(model, dtype, path):
    """Writes the weights in a type, int8 for the large ones."""
    tensors, note = model.published_tensors(), None
    if dtype == "int8":
        note = INT8_NOTE
        for name in large_weights(model.config):
            scales = tensors[name + INT8_SCALES] = row_scales(tensors[name])
            tensors[name] = rounded_to_int8(tensors[name], scales[:, None])
    elif dtype != "float32":
        tensors = {name: array.astype(dtype) for name, array in tensors.items()}
    write_checkpoint(path, "transformer", model.config, tensors, note)


@pytest.fixture(params=[{}, {"shared_adaln": True}, {"qk_l2_norm": False}], ids=str)
def each(request, make_model):
    return make_model(**request.param)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_its_logits_are_those_of_the_file_in_memory(each, dtype, tmp_path):
    save_as(each, dtype, path := tmp_path / "m.safetensors")
    labels, rng, config = np.array([1, 5, 0]), np.random.default_rng(0), each.config
    passes = []
    for model in (Transformer.load(path), StoredTransformer.load(path)):
        passes.append((model, *model.condition(labels), None))
    for k, tokens in enumerate(config.schedule.tokens):
        inputs = None
        if k:
            inputs = Tensor(rng.standard_normal((3, tokens, config.latent_channels), np.float32))
        logits = []
        for i, (model, class_bc, modulations, cache) in enumerate(passes):
            logits_blv, cache = model.extend(k, inputs, class_bc, modulations, cache)
            passes[i] = model, class_bc, modulations, cache
            logits.append(logits_blv.asnumpy())
        np.testing.assert_allclose(*logits, atol=1e-5 * np.abs(logits[0]).max())


def test_it_leaves_out_the_same_tokens(model, tokenizer, pair):
    stored = StoredTransformer.load(pair / "m.safetensors")
    settings = {"cfg": 3.0, "pruned": (0.5, 0.4), "guided_scales": (0, 1)}
    one, other = (generate(m, tokenizer, [1, 4], **settings).ids for m in (model, stored))
    np.testing.assert_array_equal(np.concatenate(one, 1), np.concatenate(other, 1))


def test_it_draws_refines_and_edits_the_same_tokens(model, smaller, tokenizer, pair):
    stored = StoredTransformer.load(pair / "m.safetensors")
    mask_yx = box_mask((0, 0, 3, 6), 6, 6)
    image = np.random.default_rng(1).uniform(-1, 1, (3, 6, 6)).astype(np.float32)
    results = []
    for each in (model, stored):
        drawn = generate(each, tokenizer, [0, 3], cfg=2.0, guided_scales=(0, 1), seed=3)
        refined = generate(each, tokenizer, [2], refiner=Refiner(smaller, 1))
        results.append([*drawn.ids, *refined.ids, *edit(each, tokenizer, image, mask_yx, 1).ids])
    for ours, expected in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_low_memory_gives_a_command_the_same_pictures(pair, tmp_path):
    for out, options in (("ordinary", ()), ("low", ("--low-memory",))):
        assert call("sample", *words(pair, tmp_path / out, classes="1,2"), *options) == 0
    for name in ("000000_1.png", "000001_2.png"):
        pictures = [np.asarray(read_picture(tmp_path / o / name)) for o in ("ordinary", "low")]
        np.testing.assert_array_equal(*pictures)


@pytest.mark.slow
def test_a_command_in_little_memory_and_one_without_keep_graphs_of_their_own(pair, tmp_path):
    for out, options in (("low", ["--low-memory"]), ("ordinary", [])):
        given = words(pair, tmp_path / out, classes="1")
        process = start("sample", *given, *options, cache=tmp_path / "cache")
        assert process.wait() == 0
    assert len(list((tmp_path / "cache" / "var-mindspore").iterdir())) == 2


def test_a_file_that_is_written_to_is_refused_and_one_that_is_replaced_is_not(pair, tmp_path):
    path = shutil.copy(pair / "m.safetensors", tmp_path / "m.safetensors")
    stored = StoredTransformer.load(path)
    shutil.copy(pair / "m.safetensors", tmp_path / "other")
    (tmp_path / "other").replace(path)
    stored.condition([1])
    stored = StoredTransformer.load(path)
    with path.open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(InputError, match=r"m\.safetensors: became shorter"):
        stored.condition([1])
    shutil.copy(pair / "m.safetensors", tmp_path / "other").replace(path)
    stored = StoredTransformer.load(path)
    os.utime(path, (0, 0))
    with pytest.raises(InputError, match=r"m\.safetensors: was written to while it was in use"):
        stored.condition([1])


def test_what_it_cannot_do_is_refused_before_anything_is_read(pair, tmp_path, make_model, caplog):
    for option, value in (("adapter", "lora.safetensors"), ("dtype", "float16")):
        options = ("--low-memory", f"--{option}", value)
        assert call("sample", *words(pair, tmp_path / "out", classes="1"), *options) == 2
        assert f"low_memory is True and {option} is {value}; expected" in caplog.text
    make_model(heads=4).save(tmp_path / "narrow.safetensors")
    with pytest.raises(InputError, match=r"heads are 8 wide; expected .* a multiple of 16"):
        StoredTransformer.load(tmp_path / "narrow.safetensors")
    save_as(make_model(), "float64", tmp_path / "wide.safetensors")
    with pytest.raises(InputError, match="has dtype F64; expected one of F32, F16, BF16"):
        StoredTransformer.load(tmp_path / "wide.safetensors")


def test_small_weights_may_be_int8_too(model, tokenizer, tmp_path):
    save_as(model, "int8", path := tmp_path / "m.safetensors")
    tensors, name = load_file(path), "word_embed.weight"
    scales = tensors[name + INT8_SCALES] = row_scales(tensors[name])
    tensors[name] = rounded_to_int8(tensors[name], scales[:, None])
    write_checkpoint(path, "transformer", model.config, tensors, INT8_NOTE)
    models = Transformer.load(path), StoredTransformer.load(path)
    one, other = (generate(each, tokenizer, [1, 4], seed=2).ids for each in models)
    np.testing.assert_array_equal(np.concatenate(one, 1), np.concatenate(other, 1))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t, note: note.update(int8="2"), "int8 is 2 in its metadata; expected 1"),
        (lambda t, note: t.pop("head.weight.scales"), r"head\.weight is without scales"),
        (lambda t, note: t.update({"head.weight": t["head.bias"]}), "without a matrix of int8"),
        (lambda t, note: t.update({"head.weight.scales": t["head.bias"][:3]}), "F32 .3,.; exp"),
        (lambda t, note: t["head.weight.scales"].fill(np.nan), "hold nan to nan; expected finite"),
        (lambda t, note: t["head.weight.scales"].fill(0), "hold 0 to 0; expected finite numbers"),
        (lambda t, note: note.pop("int8"), "unexpected tensor"),
    ],
)
@pytest.mark.parametrize("kind", [Transformer, StoredTransformer])
def test_int8_that_is_damaged_is_refused_by_name(model, tmp_path, kind, change, said):
    save_as(model, "int8", path := tmp_path / "m.safetensors")
    tensors, note = load_file(path), dict(INT8_NOTE)
    change(tensors, note)
    write_checkpoint(path, "transformer", model.config, tensors, note)
    with pytest.raises(InputError, match=said):
        kind.load(path)
