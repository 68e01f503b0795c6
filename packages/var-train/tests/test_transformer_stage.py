"""Training the transformer: exact in resumption, accumulation and loss."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
import tiny
from mindspore import ops
from var_tokenizer import Tokenizer
from var_tokenizer.common import InputError
from var_train.data.token_sources import TokenSet
from var_train.losses.token_loss import token_losses
from var_train.optimization.loss_scale import DTYPES, LossScale, PrecisionConfig
from var_train.training.transformer_stage import (
    TransformerStageConfig,
    TransformerTraining,
)
from var_transformer import BackendConfig, Transformer, TransformerConfig

HERE = str(Path(__file__).parent)
SCALES = (1, 2, (2, 3))
TOKENIZER = tiny.tokenizer(channel_multipliers=(1,), scales=SCALES)
MODEL = tiny.transformer(depth=1, num_classes=3, scales=SCALES)


def tokens(count: int, seed: int) -> TokenSet:
    """Each class has its own four tokens."""
    rng = np.random.default_rng(seed)
    labels_n = rng.integers(0, 3, count).astype(np.int32)
    drawn_2nl = rng.integers(0, 4, (2, count, MODEL.schedule.length))
    ids_nl, flipped_nl = (4 * labels_n[:, None] + drawn_2nl).astype(np.int32)
    return TokenSet(ids_nl, labels_n, flipped_nl)


TRAIN, VAL = tokens(30, 0), tokens(7, 1)


def training(
    stage: TransformerStageConfig, model: TransformerConfig = MODEL
) -> TransformerTraining:
    return TransformerTraining(
        Transformer(model, 0, BackendConfig(dtype=DTYPES[stage.precision.dtype])),
        Tokenizer(TOKENIZER, 0),
        TRAIN,
        VAL,
        stage,
        seed=0,
    )


def run(stage: TransformerTraining, begin: int, end: int) -> list[dict]:
    steps = [stage.train_step(step) for step in range(begin, end)]
    return [{k: v for k, v in s.items() if not k.startswith("seconds")} for s in steps]


def weights(stage: TransformerTraining) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in stage.state()[0].items()}


def test_a_resumed_run_gives_the_same_losses_and_weights():
    config = TransformerStageConfig(epochs=2, batch=8, ema=0.9, flip=True, samples_per_class=0)
    whole = training(config)
    assert whole.steps == 8  # 60 images
    run(whole, 0, 3)
    arrays, state = weights(whole), whole.state()[1]
    whole.validate(2)  # which leaves the training alone
    expected = run(whole, 3, 8)
    resumed = training(config)
    resumed.restore(arrays, state)
    assert run(resumed, 3, 8) == expected
    ours, theirs = weights(resumed), weights(whole)
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        np.testing.assert_array_equal(ours[name], array, name)


@pytest.mark.parametrize(("before", "after"), [(0.9, 0.0), (0.0, 0.9)])
def test_averages_that_only_a_checkpoint_or_only_a_run_has_are_refused(before, after):
    arrays, state = training(TransformerStageConfig(batch=8, ema=before)).state()
    with pytest.raises(InputError, match=f"ema is {after}, and the checkpoint has "):
        training(TransformerStageConfig(batch=8, ema=after)).restore(arrays, state)


@pytest.mark.slow
def test_the_graphs_of_a_step_copy_no_weight(tmp_path):
    code = "import test_transformer_stage as it; it.training(it.TransformerStageConfig(batch=8))"
    saving = {"MS_DEV_SAVE_GRAPHS": "2", "MS_DEV_SAVE_GRAPHS_PATH": str(tmp_path)}
    environment = os.environ | saving | {"PYTHONPATH": os.pathsep.join((HERE, *sys.path))}
    subprocess.run([sys.executable, "-c", f"{code}.train_step(0)"], env=environment, check=True)
    graphs = [path.read_text() for path in tmp_path.rglob("*_execute_*.ir")]
    graphs = [graph for graph in graphs if "attn.mat_qkv.weight" in graph]
    assert len(graphs) >= 2  # the gradients and the update
    assert not any("TensorMove(" in graph for graph in graphs)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [12, 11])
def test_a_batch_in_parts_takes_the_step_of_the_whole_batch(batch):
    once, parts = (training(TransformerStageConfig(batch=batch, accumulation=n)) for n in (1, 3))
    for ours, theirs in zip(run(parts, 0, 3), run(once, 0, 3), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)
    for name, array in weights(once).items():
        np.testing.assert_allclose(weights(parts)[name], array, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_recomputing_the_blocks_changes_no_number():
    kept, again = (training(TransformerStageConfig(batch=8, recompute=on)) for on in (False, True))
    assert run(again, 0, 3) == run(kept, 0, 3)


@pytest.mark.slow
def test_float16_products_follow_float32_with_float32_weights():
    mixed = training(TransformerStageConfig(batch=8, precision=PrecisionConfig("float16")))
    plain = run(training(TransformerStageConfig(batch=8)), 0, 3)
    for ours, theirs in zip(run(mixed, 0, 3), plain, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=2e-2)
        assert ours["gradient_norm"] != theirs["gradient_norm"]  # it does compute in halves
    assert {a.dtype for a in weights(mixed).values()} == {np.dtype(np.float32)}


@pytest.mark.slow
def test_a_step_that_overflows_is_skipped_and_counted():
    largest = PrecisionConfig("float16", loss_scale=2.0**24)
    stage = training(TransformerStageConfig(batch=8, precision=largest))
    before = weights(stage)
    first = stage.train_step(0)
    assert first["skipped_steps"] == 1 and "gradient_norm" not in first
    assert all((array == before[name]).all() for name, array in weights(stage).items())
    assert stage.train_step(1)["loss_scale"] == largest.loss_scale / 2


def test_averages_skip_a_step_that_overflows():
    largest = PrecisionConfig("float16", loss_scale=2.0**24)
    stage = training(TransformerStageConfig(batch=8, precision=largest, ema=0.9))
    before, step = weights(stage), 0
    while stage.train_step(step)["skipped_steps"] == step + 1:
        found = weights(stage)
        assert all((found[n] == array).all() for n, array in before.items())
        step += 1
    assert step > 0
    after = weights(stage)
    for name in (n for n in before if n.startswith("ema/")):
        new = after[name.replace("ema/ema.", "transformer/")]  # the first update keeps a tenth
        np.testing.assert_allclose(after[name], 0.1 * before[name] + 0.9 * new, atol=1e-6)


@pytest.mark.slow
def test_a_run_with_skipped_steps_resumes_at_any_step():
    """The averages, the moments, the loss scale and the counts of updates go on from each."""
    largest = PrecisionConfig("float16", loss_scale=2.0**24, growth_every=3)
    config = TransformerStageConfig(
        batch=10, epochs=3, precision=largest, ema=0.9, flip=True, progressive=0.6
    )
    whole, resumed = training(config), training(config)
    for step in range(whole.steps):
        arrays, state = weights(whole), whole.state()[1]
        expected = run(whole, step, step + 1)
        resumed.restore(arrays, state)
        assert run(resumed, step, step + 1) == expected
        ours, theirs = weights(resumed), weights(whole)
        for name, array in theirs.items():
            np.testing.assert_array_equal(ours[name], array, f"{name} after step {step}")
    assert 0 < expected[0]["skipped_steps"] < whole.steps


@pytest.mark.slow
def test_scales_join_one_after_another_and_all_are_trained_in_the_end():
    stage = training(
        TransformerStageConfig(
            epochs=2, batch=10, progressive=0.5, scale_weights=(1, 2, 3), samples_per_class=0
        )
    )
    steps = run(stage, 0, stage.steps)
    assert [step["scales"] for step in steps] == [2, 2, 2, 3, 3, 3]
    positions = Transformer(MODEL, 0).pos_1LC.asnumpy()
    moved = (stage.state()[0]["transformer/pos_1LC"] != positions).any((0, 2))
    assert moved.all()


@pytest.mark.slow
def test_training_lowers_the_validation_loss_of_every_scale():
    stage = training(TransformerStageConfig(epochs=20, batch=10, samples_per_class=2))
    before = stage.validate(0)
    run(stage, 0, stage.steps)
    after = stage.validate(stage.steps - 1)
    assert (np.array(after["scale_loss"]) < np.array(before["scale_loss"]) - 0.3).all()
    assert after["accuracy"] > before["accuracy"]
    assert after["samples"].dtype == np.uint8 and after["samples"].shape[2] == 3


@pytest.mark.parametrize("batch", [3, 7])
def test_a_validation_is_the_mean_over_its_images_whatever_the_batch(batch):
    model, tokenizer = Transformer(MODEL, 0), Tokenizer(TOKENIZER, 0)
    rng = np.random.default_rng(0)
    for parameter in model.get_parameters():  # published ones predict all tokens alike
        drawn = rng.standard_normal(parameter.shape) * 0.3
        ops.assign(parameter, ms.Tensor(drawn.astype(np.float32)))
    config = TransformerStageConfig(batch=batch, samples_per_class=0, scale_weights=(3, 2, 1))
    found = TransformerTraining(model, tokenizer, TRAIN, VAL, config, seed=0).validate(0)
    ids_bl, labels_b = VAL.batch(np.arange(len(VAL)))
    inputs_blz = tokenizer.teacher_inputs(MODEL.schedule.split(ids_bl))
    logits_blv = model.logits(labels_b, inputs_blz).asnumpy().astype(np.float64)
    logits_blv -= np.log(np.exp(logits_blv).sum(-1, keepdims=True))
    loss_bl = -np.take_along_axis(logits_blv, ids_bl[..., None], -1)[..., 0]
    hit_bl = logits_blv.argmax(-1) == ids_bl
    split = MODEL.schedule.split
    assert found["loss"] == pytest.approx(loss_bl.mean(), rel=1e-5)
    assert found["accuracy"] == pytest.approx(hit_bl.mean())
    assert found["scale_loss"] == pytest.approx([p.mean() for p in split(loss_bl)], rel=1e-5)
    assert found["scale_accuracy"] == pytest.approx([p.mean() for p in split(hit_bl)])


def test_the_loss_is_the_cross_entropy_with_smoothed_targets():
    rng = np.random.default_rng(0)
    logits_blv = rng.standard_normal((2, 3, 5)).astype(np.float32)
    ids_bl = rng.integers(0, 5, (2, 3)).astype(np.int32)
    logs_blv = logits_blv - np.log(np.exp(logits_blv).sum(-1, keepdims=True))
    targets_blv = 0.9 * np.eye(5)[ids_bl] + 0.1 / 5
    found = token_losses(ms.Tensor(logits_blv), ms.Tensor(ids_bl), 0.1).asnumpy()
    np.testing.assert_allclose(found, -(targets_blv * logs_blv).sum(-1), rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_losses_of_the_same_tokens_are_the_same_bits_at_every_call(smoothing):
    # MindSpore tries how many threads are fastest in a kernel's first calls, and goes on with that
    rng = np.random.default_rng(0)
    logits_blv = ms.Tensor(3 * rng.standard_normal((4, 5, 16)).astype(np.float32))
    ids_bl = ms.Tensor(rng.integers(0, 16, (4, 5)).astype(np.int32))

    @ms.jit
    def losses() -> ms.Tensor:
        return token_losses(logits_blv, ids_bl, smoothing)

    assert len({losses().asnumpy().tobytes() for _ in range(40)}) == 1


def test_the_loss_scale_halves_at_an_overflow_and_doubles_after_a_while():
    scale = LossScale(PrecisionConfig("float16", loss_scale=8, growth_every=2))
    seen = []
    for finite in (False, True, True, True, False, True):
        scale.follow(finite)
        seen.append(scale.value)
    assert seen == [4, 4, 8, 8, 4, 4]
    again = LossScale(PrecisionConfig("float16", growth_every=2))
    again.restore(scale.state())
    again.follow(True)
    assert again.value == 8
    other = LossScale(PrecisionConfig("bfloat16"))
    other.follow(False)
    assert other.value == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 31}, "batch is 31; expected at most 30"),
        ({"batch": 8, "accumulation": 9}, "batch is 8; expected at least 9"),
        ({"scale_weights": (1.0, 2.0)}, "scale_weights has 2 numbers; expected 3"),
        (
            {"progressive": 0.5, "progressive_start": 4},
            "progressive_start is 4; expected at most 3",
        ),
        ({"precision": PrecisionConfig("bfloat16")}, "dtype is bfloat16; expected float32 or"),
    ],
)
def test_settings_that_do_not_fit_are_refused_by_name_and_value(changes, message):
    with pytest.raises(InputError, match=message):
        training(TransformerStageConfig(**{"batch": 8, **changes}))


def test_a_flip_without_mirrored_tokens_is_refused():
    with pytest.raises(InputError, match="flip is True"):
        plain = dataclasses.replace(TRAIN, flipped_nl=None)
        stage = TransformerStageConfig(batch=8, flip=True)
        TransformerTraining(Transformer(MODEL, 0), Tokenizer(TOKENIZER, 0), plain, VAL, stage, 0)
