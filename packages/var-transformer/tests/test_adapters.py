"""LoRA adapters: files in the layout of peft, merging, and the low-rank path of training."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import tiny
from command_line import call, words
from hypothesis import given, settings
from hypothesis import strategies as st
from mindspore import ParameterTuple, Tensor, ops
from safetensors.numpy import load_file, save_file
from var_tokenizer.common import InputError
from var_transformer import (
    Adapter,
    LoraConfig,
    LowRankWeights,
    Transformer,
    WeightedAdapter,
    load_adapter,
    merge_adapters,
    read_adapters,
    save_adapter,
)
from var_transformer.adapters.adapter import Pair
from var_transformer.adapters.targets import targeted
from var_transformer.sample import SampleConfig, make_plan

CONFIG = tiny.transformer()
LORA = LoraConfig(rank=4, alpha=8.0)
LABELS = np.array([0, 4, 5], np.int32)  # 5 is no class, or the first new one
WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
PAIR = "base_model.model.blocks.0.attn.proj.lora_{}.weight"
ROWS = "base_model.model.class_emb.token_adapter.trainable_tokens_delta"


def base(seed: int = 0) -> Transformer:
    """A model whose gates are open, so that each weight matters."""
    return Transformer(CONFIG, seed, gate_gain=1.0)


def inputs(seed: int = 0) -> np.ndarray:
    shape = (len(LABELS), CONFIG.schedule.length - 1, CONFIG.latent_channels)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def trained(model: Transformer, lora: LoraConfig = LORA, seed: int = 1, classes=()):
    """The low-rank weights of ``model`` with values as of a training."""
    weights, rng = LowRankWeights(model, lora, seed, classes), np.random.default_rng(seed)
    for parameter in weights.parameters:
        drawn = 0.2 * rng.standard_normal(parameter.shape)
        ops.assign(parameter, Tensor(drawn.astype(np.float32)))
    return weights


def relative(ours, theirs) -> float:
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return np.abs(ours - theirs).max() / np.abs(theirs).max()


def adapter(seed: int = 1, classes: tuple[str, ...] = ()) -> Adapter:
    return trained(base(), LORA, seed, classes).adapter()


def arrays_of(model: Transformer) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in model.published_tensors().items()}


# ------------------------------------------------------------ the low-rank path
def test_merged_and_unmerged_logits_agree_within_a_millionth():
    model, whole = base(), base()
    weights = trained(model, replace(LORA, targets=("*",)), classes=("cat", "dog"))
    merge_adapters(whole, [WeightedAdapter(weights.adapter())])
    assert whole.config == model.config and whole.class_names == model.class_names
    ours, theirs = model.logits(LABELS, inputs()), whole.logits(LABELS, inputs())
    assert relative(ours, theirs) < 1e-6
    assert relative(ours, base().logits(LABELS, inputs())) > 1e-2  # the adapter does something


def test_gradients_follow_finite_differences_and_new_classes_have_their_own():
    model = base()
    weights = trained(model, replace(LORA, targets=("*",)), classes=("cat", "dog"))
    images = Tensor(inputs())
    direction = Tensor(np.random.default_rng(2).standard_normal((3, 14, 32)).astype(np.float32))

    def objective(labels_b, inputs_blz):
        return (model.construct(labels_b, inputs_blz) * direction).sum()

    of_parameters = ms.value_and_grad(objective, None, ParameterTuple(weights.parameters))

    @ms.jit
    def gradients(labels_b, inputs_blz):
        return of_parameters(labels_b, inputs_blz)

    labels = Tensor(LABELS)  # 5, the first new class, is among them, 6 is not
    _, found = gradients(labels, images)
    rng = np.random.default_rng(3)
    for parameter, gradient in zip(weights.parameters, found, strict=True):
        before, gradient_64 = parameter.asnumpy().copy(), gradient.asnumpy().astype(np.float64)
        step = rng.standard_normal(before.shape)
        step *= 1e-2 / np.linalg.norm(step)
        values = []
        for sign in (1, -1):
            ops.assign(parameter, Tensor((before + sign * step).astype(np.float32)))
            values.append(float(gradients(labels, images)[0]))
        ops.assign(parameter, Tensor(before))
        expected = (gradient_64 * step).sum()
        scale = np.linalg.norm(gradient_64) * 1e-2
        assert abs((values[0] - values[1]) / 2 - expected) < 2e-2 * scale + 2e-5, parameter.name
    rows_mc = found[-1].asnumpy()
    assert np.abs(rows_mc[0]).max() > 0 and np.abs(rows_mc[1]).max() == 0


def test_the_base_is_the_same_bit_for_bit_after_a_generation_with_the_sum():
    model, before = base(), arrays_of(base())
    weights = trained(model, classes=("cat",))
    rows_nc = model.class_emb.weight.asnumpy().copy()  # the new one's row is as it began
    logits = model.logits(LABELS, inputs()).asnumpy()
    whole = base()
    merge_adapters(whole, [WeightedAdapter(weights.adapter())])
    with weights.merged():
        class_bc, modulations = model.condition(LABELS)
        first, _ = model.extend(0, None, class_bc, modulations, None)
    expected, _ = whole.extend(0, None, *whole.condition(LABELS), None)
    assert (first.asnumpy() == expected.asnumpy()).all()
    now = {name: p.asnumpy() for name, p in model.parameters_and_names()}
    for name, array in (before | {"class_emb.weight": rows_nc}).items():
        np.testing.assert_array_equal(now[name], array, name)
    assert (model.logits(LABELS, inputs()).asnumpy() == logits).all()


def test_a_target_that_matches_nothing_and_a_rank_that_is_too_large_are_refused():
    with pytest.raises(InputError, match=r"targets holds fc3, which matches no affine map"):
        LowRankWeights(base(), LoraConfig(4, targets=("fc1", "fc3")), 0)
    with pytest.raises(InputError, match=r"rank is 9; expected at most 8, that of word_embed \(32"):
        LowRankWeights(base(), LoraConfig(9, targets=("word_embed",)), 0)
    with pytest.raises(InputError, match="rank is -1; expected"):
        LoraConfig(-1)
    with pytest.raises(InputError, match="targets is empty"):
        LoraConfig(4, targets=())


@pytest.mark.parametrize(
    ("pattern", "count"),
    [("proj", 2), ("attn.*", 4), ("blocks.1.*", 5), ("ada_lin", 3), ("head", 1), ("*", 13)],
)
def test_patterns_match_names_or_their_ends(pattern, count):
    weights = LowRankWeights(base(), LoraConfig(2, targets=(pattern,)), 0)
    assert len(weights.adapter().pairs) == count


# ------------------------------------------------------------ merging
def drawn(seed: int, patterns: tuple[str, ...]) -> Adapter:
    """Random pairs, of another rank for each map."""
    rng, pairs = np.random.default_rng(seed), {}
    for n, (name, (outputs, inputs_)) in enumerate(targeted(CONFIG, patterns).items()):
        shapes = ((1 + n % 4, inputs_), (outputs, 1 + n % 4))
        pairs[name] = Pair(*(rng.standard_normal(s).astype(np.float32) for s in shapes), 0.5 + n)
    return Adapter("drawn", pairs)


MERGED = Transformer(CONFIG, 0)
BEFORE = arrays_of(MERGED)


@settings(max_examples=15, deadline=None)
@given(st.floats(-3, 3), st.floats(-3, 3), st.integers(0, 5))
def test_merging_several_adapters_adds_their_weighted_products(first, second, seed):
    one, two = drawn(seed, ("attn.*", "fc1")), drawn(seed + 9, ("fc1", "head"))
    for name, parameter in MERGED.parameters_and_names():
        ops.assign(parameter, Tensor(BEFORE[name]))
    merge_adapters(MERGED, [WeightedAdapter(one, first), WeightedAdapter(two, second)])
    for name, array in MERGED.published_tensors().items():
        expected = BEFORE[name].astype(np.float64)
        for part, weight in ((one, first), (two, second)):
            pair = part.pairs.get(name.removesuffix(".weight"))
            if pair is not None:
                expected = expected + weight * pair.product()
        np.testing.assert_array_equal(array, expected.astype(np.float32), name)


def test_new_classes_of_several_adapters_come_one_after_another():
    model = base()
    parts = [adapter(1, ("cat",)), adapter(2, ("ant", "bee"))]
    merge_adapters(model, [WeightedAdapter(part, 0.5) for part in parts])
    assert model.class_names == ("0", "1", "2", "3", "4", "cat", "ant", "bee")
    table_nc, before_nc = model.class_emb.weight.asnumpy(), base().class_emb.weight.asnumpy()
    rows = np.concatenate([before_nc[:-1], *(part.class_rows_mc for part in parts), before_nc[-1:]])
    np.testing.assert_array_equal(table_nc, rows)  # whatever the weight


def test_adapters_that_train_the_same_class_are_refused():
    model, part = base(), WeightedAdapter(adapter(1, ("cat",)))
    with pytest.raises(InputError, match=r"both train the class cat; expected one of them"):
        merge_adapters(model, [part, part])
    merge_adapters(model, [part])
    with pytest.raises(InputError, match="brings the class cat, which the model has already"):
        merge_adapters(model, [part])


def test_an_adapter_of_another_architecture_is_refused_with_both_shapes():
    part = WeightedAdapter(adapter())
    for changes, said in (
        (
            {"width": 64},
            r"adapts blocks.0.attn.mat_qkv of shape \(96, 32\), which is \(192, 64\)",
        ),
        ({"depth": 1}, r"adapts blocks.1.attn.mat_qkv \(96, 32\), which the model of depth 1"),
    ):
        model = Transformer(tiny.transformer(**changes), 0)
        before = arrays_of(model)
        with pytest.raises(InputError, match=said):
            merge_adapters(model, [part])
        assert all((a == before[n]).all() for n, a in model.published_tensors().items())


def test_an_adapter_for_another_tokenizer_is_refused_and_for_other_weights_said(caplog):
    part, model = adapter(), base(seed=7)
    merge_adapters(model, [WeightedAdapter(part)])
    assert "was trained beside other weights than these" in caplog.text
    model.tokenizer_checksum = f"sha256:{'0' * 64}"
    with pytest.raises(InputError, match="expected the same tokenizer"):
        merge_adapters(model, [WeightedAdapter(replace(part, tokenizer=f"sha256:{'1' * 64}"))])


def test_a_sum_that_is_not_finite_is_refused():
    huge = Pair(np.full((1, 32), 1e30, np.float32), np.full((32, 1), 1e30, np.float32), 1.0)
    with pytest.raises(InputError, match=r"added to blocks.0.attn.proj.weight it is not finite"):
        merge_adapters(base(), [WeightedAdapter(Adapter("'a'", {"blocks.0.attn.proj": huge}))])


# ------------------------------------------------------------ commands
def test_sample_draws_a_new_class_by_its_name(pair, folder, tmp_path, no_model_runs):
    options = {"class-names": pair / "names.txt", "adapter": f"{folder}:0.5"}
    given = SampleConfig(
        tokenizer=pair / "t.safetensors",
        model=pair / "m.safetensors",
        class_names=options["class-names"],
        adapter=(options["adapter"],),
        out=tmp_path / "out",
        classes="gnu,cat 2",
    )
    plan = make_plan(given)
    assert plan.labels_n.tolist() == [4, 5] and plan.model.class_names[5] == "cat 2"
    expected = Transformer.load(pair / "m.safetensors")
    merge_adapters(expected, [WeightedAdapter(load_adapter(folder), 0.5)])
    for name, array in plan.model.published_tensors().items():
        np.testing.assert_array_equal(array, expected.published_tensors()[name], name)


def test_a_folder_of_samples_goes_on_with_the_same_adapters_alone(pair, folder, tmp_path, caplog):
    out = tmp_path / "out"
    adapted = ("--adapter", folder, "--adapter", f"{folder / WEIGHTS}:0.5")
    twice = call("sample", *words(pair, out, classes="0"), *adapted)
    assert twice == 2 and "both train the class cat 2" in caplog.text
    assert call("sample", *words(pair, out, classes="cat 2"), "--adapter", folder) == 0
    assert (out / "000000_5.png").exists()
    for other in ((), ("--adapter", f"{folder}:0.5")):
        caplog.clear()
        assert call("sample", *words(pair, out, classes="0"), *other) == 2
        assert "adapters is [" in caplog.text


# ------------------------------------------------------------ files
@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """An adapter with a new class, as peft lays it out."""
    path = tmp_path_factory.mktemp("adapter")
    save_adapter(adapter(1, ("cat 2",)), path, LORA.alpha, CONFIG.num_classes)
    return path


def test_a_saved_adapter_is_read_from_its_folder_from_its_file_and_from_that_alone(
    folder, tmp_path
):
    expected = adapter(1, ("cat 2",))
    alone = tmp_path / "alone.safetensors"
    shutil.copy(folder / WEIGHTS, alone)  # its settings are in its metadata
    for path in (folder, folder / WEIGHTS, alone):
        found = load_adapter(path)
        assert found.digest == expected.digest and found.base == expected.base
        assert found.class_names == ("cat 2",)
    told = json.loads((folder / SETTINGS).read_text())
    assert told["trainable_token_indices"] == {"class_emb": [5]} and told["r"] == 4
    one, half = read_adapters((str(folder), f"{alone}:-0.5"))
    assert (one.weight, half.weight) == (1.0, -0.5)


def changed(folder: Path, tmp_path: Path, arrays=None, **settings_) -> Path:
    """A copy without metadata, of other settings, and with other arrays or without some (None)."""
    told = json.loads((folder / SETTINGS).read_text()) | settings_
    held = load_file(folder / WEIGHTS) | (arrays or {})
    save_file({n: a for n, a in held.items() if a is not None}, tmp_path / WEIGHTS)
    (tmp_path / SETTINGS).write_text(json.dumps(told))
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_dora": True}, "use_dora is set, which asks for a variant"),
        ({"some_day": [1]}, "some_day is set"),
        ({"bias": "all"}, "bias is all; expected none"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is pissa"),
        ({"peft_type": "IA3"}, "peft_type is IA3; expected LORA"),
        ({"r": 0}, "r is 0; expected a whole number"),
        ({"r": 5}, r"lora_A \(4, 32\) and lora_B .* since r is 5"),
        ({"lora_alpha": "8"}, "lora_alpha is 8; expected a number"),
        ({"lora_alpha": 10**400}, "lora_alpha is 1000.*; expected a number, at most 1e"),
        ({"modules_to_save": ["head"]}, "modules_to_save is .*head.*; expected none, or class_emb"),
        ({"trainable_token_indices": None}, "trainable_token_indices is None; expected 1 num"),
        ({"arrays": {PAIR.format("B"): None}}, "has lora_A of blocks.0.attn.proj without lora_B"),
        ({"arrays": {"head.weight": np.ones((2, 2), np.float32)}}, "not one of LoRA's matrices"),
        ({"arrays": {PAIR.format("A"): np.full((4, 32), np.nan, np.float32)}}, "is not finite"),
        ({"arrays": {PAIR.format("A"): np.ones((3, 32), np.float32)}}, r"lora_A \(3, 32\)"),
        ({"arrays": {PAIR.format("A"): np.ones((4, 32), np.int32)}}, "dtype I32"),
        ({"arrays": {ROWS: np.ones(32, np.float32)}}, "expected rows of numbers"),
        (
            {"arrays": {PAIR.format("A").removeprefix("base_model.model."): np.ones((4, 32))}},
            "lora_A.weight with and without base_model.model.",
        ),
    ],
)
def test_what_is_damaged_or_not_done_here_is_refused_by_name(folder, tmp_path, changes, said):
    with pytest.raises(InputError, match=said):
        load_adapter(changed(folder, tmp_path, **changes))


def test_files_that_are_no_adapter_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match="no such file; expected an adapter"):
        load_adapter(tmp_path)
    save_file({"a": np.ones(2)}, tmp_path / WEIGHTS)
    with pytest.raises(InputError, match=f"{SETTINGS}.*cannot read this file"):
        load_adapter(tmp_path)
    (tmp_path / SETTINGS).write_text("[" * 9999)
    with pytest.raises(InputError, match="not the settings of an adapter"):
        load_adapter(tmp_path)
    for weight in ("nan", "1_0", "-inf", "1e999", "\u0661"):  # Python's float takes all of them
        with pytest.raises(InputError, match=f"the weight is {weight}; expected a finite number"):
            read_adapters((f"{folder}:{weight}",))
    with pytest.raises(InputError) as raised:
        read_adapters(("a" * 5000,))
    assert "File name too long; expected an adapter" in str(raised.value)
    assert len(str(raised.value)) < 1100
    model = Transformer(CONFIG, 0)
    model.save(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="not the settings of an adapter"):
        read_adapters((str(tmp_path / "model.safetensors"),))


@pytest.mark.parametrize("weight", ["0.5", "-1", "+2.", ".25", "1E-3"])
def test_a_weight_is_any_decimal_number(folder, weight):
    (found,) = read_adapters((f"{folder}:{weight}",))
    assert found.weight == float(weight)


def test_rslora_divides_by_the_root_of_the_rank(folder, tmp_path):
    found = load_adapter(changed(folder, tmp_path, use_rslora=True))
    assert {pair.scale for pair in found.pairs.values()} == {8.0 / 2}


def test_rows_that_replace_others_and_whole_tables_are_taken(folder, tmp_path):
    rows_nc = np.random.default_rng(0).standard_normal((8, 32)).astype(np.float32)
    before_nc = base().class_emb.weight.asnumpy()
    indices = {"trainable_token_indices": {"class_emb": [3, 5]}}
    found = load_adapter(changed(folder, tmp_path, {ROWS: rows_nc[:2]}, **indices))
    model = base()
    merge_adapters(model, [WeightedAdapter(found)])
    expected_nc = before_nc.copy()
    expected_nc[[3, 5]] = rows_nc[:2]  # 5 is no class
    np.testing.assert_array_equal(model.class_emb.weight.asnumpy(), expected_nc)
    table = {ROWS: None, "base_model.model.class_emb.weight": rows_nc}
    kept = {"modules_to_save": ["class_emb"], "trainable_token_indices": None}
    found = load_adapter(changed(folder, tmp_path, table, **kept))
    model = base()
    merge_adapters(model, [WeightedAdapter(found)])
    np.testing.assert_array_equal(model.class_emb.weight.asnumpy(), rows_nc)
    assert model.class_names == ("0", "1", "2", "3", "4", "5", "6")
    beyond = {"trainable_token_indices": {"class_emb": [3, 6]}}
    found = load_adapter(changed(folder, tmp_path, {ROWS: rows_nc[:2]}, **beyond))
    with pytest.raises(InputError, match="class 6, and the model has 5"):
        merge_adapters(base(), [WeightedAdapter(found)])
