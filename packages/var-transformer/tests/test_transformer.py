import dataclasses
import json
import math

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from var_tokenizer import Tokenizer
from var_tokenizer.common import InputError
from var_transformer import Transformer, TransformerConfig, check_pair, generate, transformer_shapes
from var_transformer.model import operators as fast

LABELS = np.array([0, 3, 5])


def inputs_for(model, batch=3, seed=0):
    length = model.config.schedule.length - model.config.schedule.tokens[0]
    shape = (batch, length, model.config.latent_channels)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "depth", "width", "tokens", "shared"),
    [
        ("d16", 16, 1024, 680, False),
        ("d20", 20, 1280, 680, False),
        ("d24", 24, 1536, 680, False),
        ("d30", 30, 1920, 680, False),
        ("d36-s", 36, 2304, 2240, True),
    ],
)
def test_presets_are_the_published_sizes(name, depth, width, tokens, shared):
    config = TransformerConfig.preset(name)
    assert (config.depth, config.width, config.heads) == (depth, width, depth)
    assert (config.schedule.length, config.shared_adaln) == (tokens, shared)
    assert config.drop_path == pytest.approx(0.1 * depth / 24)


def test_an_unknown_preset_is_an_error_that_lists_the_known():
    with pytest.raises(InputError, match=r"d17.*d16, d20, d24, d30, d36-s"):
        TransformerConfig.preset("d17")


@pytest.mark.parametrize(
    ("field", "value"),
    [("depth", 0), ("width", -64), ("heads", 3), ("num_classes", 0), ("scales", (2, 1))],
)
def test_an_impossible_configuration_is_an_error_that_names_the_field(make_config, field, value):
    with pytest.raises(InputError, match=field):
        make_config(**{field: value})


def test_a_token_is_predicted_from_coarser_scales_only(model):
    inputs = inputs_for(model)
    schedule = model.config.schedule
    before = np.asarray(model.logits(LABELS, inputs))
    changed = inputs.copy()
    changed[:, schedule.offsets[2] - 1 :] += 1  # what is read at the last scale
    after = np.asarray(model.logits(LABELS, changed))
    np.testing.assert_array_equal(before[:, : schedule.offsets[2]], after[:, : schedule.offsets[2]])
    assert np.abs(before - after)[:, schedule.offsets[2] :].max() > 1e-3


@pytest.mark.parametrize("shared_adaln", [False, True])
@pytest.mark.parametrize("qk_l2_norm", [False, True])
def test_scale_by_scale_equals_all_at_once(make_config, shared_adaln, qk_l2_norm):
    model = Transformer(make_config(shared_adaln=shared_adaln, qk_l2_norm=qk_l2_norm), seed=3)
    inputs = inputs_for(model)
    schedule = model.config.schedule
    expected = np.asarray(model.logits(LABELS, inputs))
    class_bc, modulations = model.condition(model.check_labels(LABELS))
    cache, got = None, []
    for k in range(len(schedule)):
        begin, end = schedule.offsets[k] - 1, schedule.offsets[k + 1] - 1
        inputs_blz = Tensor(inputs[:, begin:end]) if k else None
        logits, cache = model.extend(k, inputs_blz, class_bc, modulations, cache)
        got.append(np.asarray(logits))
    np.testing.assert_allclose(np.concatenate(got, 1), expected, atol=1e-5)


def test_the_label_changes_the_logits(model):
    inputs = inputs_for(model, batch=1)
    a, b = (np.asarray(model.logits(np.array([label]), inputs)) for label in (1, 2))
    assert np.abs(a - b).max() > 1e-3


def test_initialization_follows_the_published_recipe(make_config):
    model = Transformer(make_config(depth=3, width=256, heads=4))
    weights = model.published_tensors()
    std = math.sqrt(1 / (3 * 256))
    modulation = weights["blocks.1.ada_lin.1.weight"].reshape(6, 256, 256)
    assert weights["blocks.0.attn.mat_qkv.weight"].std() == pytest.approx(std, rel=0.03)
    assert modulation[:2].std() == pytest.approx(1e-5 * std, rel=0.03)  # init_adaln_gamma
    assert modulation[2:].std() == pytest.approx(0.5 * std, rel=0.03)  # init_adaln
    assert weights["head.weight"].std() == pytest.approx(0.02 * std, rel=0.03)  # init_head
    residual = std / math.sqrt(2 * 3)
    assert weights["blocks.2.attn.proj.weight"].std() == pytest.approx(residual, rel=0.03)
    assert weights["blocks.2.ffn.fc2.weight"].std() == pytest.approx(residual, rel=0.03)
    np.testing.assert_allclose(weights["blocks.0.attn.scale_mul_1H11"], math.log(4), rtol=1e-6)
    assert not any(weights[n].any() for n in weights if n.endswith(("bias", "q_bias", "v_bias")))
    shared = Transformer(make_config(depth=3, width=256, heads=4, shared_adaln=True))
    offset_6c = shared.published_tensors()["blocks.1.ada_gss"][0, 0]
    assert offset_6c[:2].std() == pytest.approx(1e-5 / 16, rel=0.1)
    assert offset_6c[2:].std() == pytest.approx(0.5 / 16, rel=0.1)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(make_config):
    first, second, third = (Transformer(make_config(), seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.head.weight.asnumpy(), second.head.weight.asnumpy())
    assert (first.head.weight.asnumpy() != third.head.weight.asnumpy()).any()


def test_a_block_leaves_an_image_unchanged_when_its_paths_are_dropped(model):
    inputs = Tensor(inputs_for(model))
    labels = Tensor(LABELS.astype(np.int32))
    keep = np.ones((2, 2, 3, 1, 1), np.float32)
    kept = np.asarray(model.construct(labels, inputs, Tensor(keep)))
    np.testing.assert_allclose(kept, np.asarray(model.construct(labels, inputs)), atol=1e-5)
    keep[:, :, 0] = 0  # the first image skips everything
    dropped = np.asarray(model.construct(labels, inputs, Tensor(keep)))
    assert np.abs(dropped[0] - kept[0]).max() > 1e-3
    np.testing.assert_allclose(dropped[1:], kept[1:], atol=1e-5)


def test_a_saved_model_loads_to_the_same_weights(model, tmp_path):
    model.save(tmp_path / "a.safetensors")
    loaded = Transformer.load(tmp_path / "a.safetensors")
    assert loaded.config == model.config
    assert (loaded.class_names, loaded.tokenizer_checksum) == (None, None)
    loaded.save(tmp_path / "b.safetensors")
    a, b = load_file(tmp_path / "a.safetensors"), load_file(tmp_path / "b.safetensors")
    assert a.keys() == b.keys() and all((a[n] == b[n]).all() for n in a)


def test_a_tokenizer_file_is_not_a_transformer(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "t.safetensors")
    with pytest.raises(InputError, match="holds a tokenizer; expected a transformer"):
        Transformer.load(tmp_path / "t.safetensors")


def test_the_fast_gelu_is_the_tanh_form():
    x = np.linspace(-8, 8, 1001, dtype=np.float32)
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x.astype(np.float64) ** 3)
    expected = 0.5 * x * (1 + np.tanh(inner))
    np.testing.assert_allclose(fast.Gelu()(Tensor(x)).asnumpy(), expected, atol=1e-6)


def test_the_gradient_of_a_step_follows_a_finite_difference(model):
    inputs, labels = Tensor(inputs_for(model)), Tensor(LABELS.astype(np.int32))
    parameters = [p for p in model.trainable_params() if "blocks.0" in p.name]

    def loss_of(inputs_blz):
        return (model.construct(labels, inputs_blz) ** 2).mean()

    gradients = ms.value_and_grad(loss_of, None, parameters)(inputs)[1]
    rng = np.random.default_rng(0)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        start = parameter.asnumpy().copy()
        direction = rng.standard_normal(start.shape).astype(np.float32)
        direction *= 1e-2 / np.abs(direction).max()
        values = []
        for sign in (1, -1):
            parameter.set_data(Tensor(start + sign * direction))
            values.append(float(loss_of(inputs)))
        parameter.set_data(Tensor(start))
        slope = (values[0] - values[1]) / 2
        expected = float((gradient.asnumpy() * direction).sum())
        assert slope == pytest.approx(expected, rel=0.02, abs=2e-5), parameter.name


@pytest.mark.parametrize("used", [False, True])
def test_a_pair_is_checked_again_when_the_tokenizer_loads_weights(make_model, tokenizer, used):
    own = Tokenizer(tokenizer.config, seed=3)
    model = make_model()
    model.tokenizer_checksum = own.checksum()
    if used:
        generate(model, own, [0])
    check_pair(model, own)
    other = {p.name: ms.Parameter(p, name=p.name) for p in tokenizer.get_parameters()}
    ms.load_param_into_net(own, other)
    if used:  # a pass moves them to where its graph reads
        own.decode([np.zeros((1, n), np.int32) for n in own.schedule.tokens])
    with pytest.raises(InputError, match="expected the tokenizer that it was trained with"):
        check_pair(model, own)


def test_the_checksum_of_a_tokenizer_is_computed_once(make_model, tokenizer, monkeypatch):
    model, calls = make_model(), []
    model.tokenizer_checksum = tokenizer.checksum()
    monkeypatch.setattr(tokenizer, "_summed", None)
    summed = Tokenizer.checksum
    monkeypatch.setattr(Tokenizer, "checksum", lambda self: calls.append(1) or summed(self))
    for _ in range(3):
        check_pair(model, tokenizer)
    assert len(calls) == 1


def test_a_checksum_taken_anew_is_of_weights_assigned_in_place(make_model, tokenizer):
    own, model = Tokenizer(tokenizer.config, seed=3), make_model()
    model.tokenizer_checksum = own.checksum()
    check_pair(model, own)
    for parameter in own.get_parameters():
        ms.ops.assign(parameter, parameter + 1)  # as in training
    model.tokenizer_checksum = own.checksum()
    check_pair(model, own)


NAMES = ("cat", "dog", "\u732b", "tench, Tinca tinca", "dog")


def test_a_file_carries_class_names_and_the_tokenizers_checksum(make_model, tokenizer, tmp_path):
    model = make_model()
    assert (model.class_names, model.tokenizer_checksum) == (None, None)
    model.class_names, model.tokenizer_checksum = NAMES, tokenizer.checksum()
    model.save(tmp_path / "a.safetensors")
    loaded = Transformer.load(tmp_path / "a.safetensors")
    assert (loaded.class_names, loaded.tokenizer_checksum) == (NAMES, tokenizer.checksum())


def with_metadata(path, model, **fields):
    """A file of the model whose metadata claims something else."""
    model.save(path)
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata() | fields
    save_file(load_file(path), path, metadata)
    return path


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("class_names", "[", "class_names"),
        ("class_names", "[" * 100_000, "class_names"),
        ("class_names", '"five "', "class_names is a str"),
        ("class_names", '{"a": 1}', "class_names is a dict"),
        ("class_names", '["a", "b"]', "class_names holds 2 names; expected 5"),
        ("class_names", '["a", "b", "c", "d", 5]', "class_names holds at 4"),
        ("class_names", '["a", "b", "", "d", "e"]', "class_names holds at 2"),
        ("class_names", json.dumps(["x" * 1001] * 5), "class_names holds at 0"),
        ("tokenizer", "sha256:0", "tokenizer in its metadata"),
        ("tokenizer", "\x1b[2J", "tokenizer in its metadata"),
    ],
)
def test_metadata_that_is_not_what_it_says_is_refused(model, tmp_path, field, value, message):
    path = with_metadata(tmp_path / "b.safetensors", model, **{field: value})
    with pytest.raises(InputError, match=message) as error:
        Transformer.load(path)
    assert "b.safetensors" in str(error.value) and str(error.value).isprintable()


DEEP = "[" * 100_000
CLAIMS = {
    "a vast width": (dict(width=2 * 10**9), "word_embed.weight"),
    "a vast depth": (dict(depth=10**9), "missing"),
    "a vast depth alone": (dict(depth=10**9, width=0, heads=0), "word_embed.weight"),
    "a vast vocabulary": (dict(vocab_size=10**12), "head.weight"),
    "vast codes": (dict(latent_channels=10**12), "word_embed.weight"),
    "many classes": (dict(num_classes=10**12), "class_emb.weight"),
    "many scales": (dict(scales=[1] * 10**6), "scales holds 1000000 sizes"),
    "a vast scale": (dict(scales=[10**9]), "tokens"),
    "a true depth": (dict(depth=True), "depth is True"),
    "no width": (dict(width=False), "width is False"),
    "a fraction": (dict(heads=2.0), "heads is 2.0"),
    "text": (dict(depth="2"), "depth is '2'"),
    "nothing": (dict(depth=None), "depth is None"),
    "a list": (dict(depth=[2]), r"depth is \(2,\)"),
    "a sharing that is text": (dict(shared_adaln="false"), "shared_adaln is 'false'"),
    "a norm that is a number": (dict(qk_l2_norm=1), "qk_l2_norm is 1"),
    "deep": (DEEP, "recursion"),
    "twice": ('{"depth": 2, "depth": 3}', "twice"),
    "escape sequences": (dict([("\x1b[2J", 1)]), "x1b"),
}


@pytest.mark.parametrize(("claim", "message"), CLAIMS.values(), ids=CLAIMS)
def test_claims_of_a_file_are_checked_first(model, tmp_path, monkeypatch, claim, message):
    if not isinstance(claim, str):
        claim = json.dumps(dataclasses.asdict(model.config) | claim)
    path = with_metadata(tmp_path / "bad.safetensors", model, config=claim)
    monkeypatch.setattr(Transformer, "__init__", None)  # fails the test if one is built
    with pytest.raises(InputError, match=message) as error:
        Transformer.load(path)
    shown = str(error.value)
    assert "bad.safetensors: " in shown and shown.isprintable() and len(shown) < 3000


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"shared_adaln": True},
        {"qk_l2_norm": False},
        {"depth": 1, "scales": (1, (1, 2), (3, 4))},
    ],
)
def test_transformer_shapes_are_those_of_a_built_transformer(make_config, change):
    config = make_config(**change)
    built = Transformer(config, seed=None).published_tensors()
    assert dict(transformer_shapes(config)) == {n: a.shape for n, a in built.items()}


def test_class_names_that_do_not_fit_are_not_saved(make_model, tmp_path):
    model = make_model()
    model.class_names = ("one", "two")
    with pytest.raises(InputError, match="holds 2 names; expected 5"):
        model.save(tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_another_tokenizer_of_the_same_shape_is_refused(make_model, tokenizer):
    model = make_model()
    model.tokenizer_checksum = tokenizer.checksum()
    other = Tokenizer(tokenizer.config, seed=1)
    check_pair(model, tokenizer)
    with pytest.raises(InputError, match="expected the tokenizer that it was trained with"):
        generate(model, other, [0])
    check_pair(model, tokenizer)
    check_pair(make_model(), other)  # it does not know its tokenizer
