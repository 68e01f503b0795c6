"""Rate, decay, decayed set and initial gains of each preset, as numbers of the release.

With n = 1021 steps, the warmup has w = 20, and the plateau of lin0 ends at step 70:
p = (70 - 20) / (1021 - 1 - 20) = 0.05.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import tiny
from var_tokenizer import Tokenizer
from var_train.commands.models import build_transformer
from var_train.commands.presets import PRESETS, published_stage
from var_train.commands.run_config import TransformerSizeConfig, preset_defaults
from var_train.data.batches import steps_of
from var_train.optimization.adamw import AdamWConfig
from var_train.training.progressive import newest_weight, scales_in_training
from var_train.training.transformer_stage import is_decayed
from var_transformer import Transformer

# of steps 0, 1, w - 1, w, knee, knee + 1, n - 1
RATES = {
    "d16": (1.5e-6, 1.6425e-5, 2.85075e-4, 3e-4, 3e-4, 2.99715789e-4, 3e-5),
    "d20": (1.5e-6, 1.6425e-5, 2.85075e-4, 3e-4, 3e-4, 2.99715789e-4, 3e-5),
    "d24": (1.2e-6, 1.314e-5, 2.2806e-4, 2.4e-4, 2.4e-4, 2.39749895e-4, 2.4e-6),
    "d30": (1.6e-6, 1.752e-5, 3.0408e-4, 3.2e-4, 3.2e-4, 3.19666526e-4, 3.2e-6),
    "d36-s": (1.2e-6, 1.314e-5, 2.2806e-4, 2.4e-4, 2.4e-4, 2.39749895e-4, 2.4e-6),
}


@pytest.mark.parametrize("name", PRESETS)
def test_the_rate_is_the_released_one_at_every_corner(name):
    rates = [published_stage(name).adamw.rate(i, 1021) for i in (0, 1, 19, 20, 70, 71, 1020)]
    assert rates == pytest.approx(RATES[name], rel=1e-8)
    assert {published_stage(name).adamw.rate(i, 1021) for i in range(20, 71)} == {rates[3]}


@pytest.mark.parametrize(
    ("name", "at_steps"),
    [
        ("d16", (0.05,) * 6),
        ("d20", (0.05,) * 6),
        ("d24", (0.05,) * 6),
        # 0.05 + 0.03 * sin(pi * i / 2040) ** 2
        ("d30", (0.05, 0.0500000711, 0.0500256770, 0.0500284501, 0.0503472752, 0.08)),
        ("d36-s", (0.05, 0.0500000711, 0.0500256770, 0.0500284501, 0.0503472752, 0.08)),
    ],
)
def test_the_weight_decay_follows_half_a_cosine_over_all_steps(name, at_steps):
    decays = [published_stage(name).adamw.decay(i, 1021) for i in (0, 1, 19, 20, 70, 1020)]
    assert decays == pytest.approx(at_steps, rel=1e-8)


@pytest.mark.parametrize(
    ("name", "batch", "epochs", "steps", "warm"),
    [
        ("d16", 768, 200, 333_638, 6673),
        ("d20", 768, 250, 417_047, 8341),
        ("d24", 768, 350, 583_866, 11_677),
        ("d30", 1024, 350, 437_899, 8758),
        ("d36-s", 768, 350, 583_866, 11_677),
    ],
)
def test_on_imagenet_the_peak_is_reached_after_a_fiftieth_of_the_epochs(
    name, batch, epochs, steps, warm
):
    stage = published_stage(name)
    assert (stage.batch, stage.epochs, stage.adamw.betas) == (batch, epochs, (0.9, 0.95))
    assert steps_of(epochs, 1_281_167, batch) == steps
    rates = [stage.adamw.rate(step, steps) for step in (warm - 1, warm, warm + 1)]
    assert rates[0] < rates[1] == rates[2] == pytest.approx(stage.base_rate * batch / 256)


def test_a_run_of_two_steps_or_without_warmup_starts_at_the_peak_and_ends_at_its_end():
    config = AdamWConfig(learning_rate=1.0, warmup=0.0, final=0.1, rate_schedule="lin0")
    assert [config.rate(step, 2) for step in (0, 1)] == pytest.approx([1, 0.1])
    assert config.rate(0, 1) == 1


BLOCK = ("attn.mat_qkv.weight", "attn.proj.weight", "ffn.fc1.weight", "ffn.fc2.weight")
OUTSIDE = {"word_embed.weight", "class_emb.weight", "head.weight", "head_nm.ada_lin.1.weight"}
UNDECAYED = {"pos_start", "pos_1LC", "lvl_embed.weight"}
UNDECAYED_OF_BLOCK = ("attn.q_bias", "attn.v_bias", "attn.scale_mul_1H11", "attn.proj.bias")
UNDECAYED_OF_BLOCK += ("ffn.fc1.bias", "ffn.fc2.bias")


@pytest.mark.parametrize("shared", [False, True], ids=["d16 to d30", "d36-s"])
def test_matrices_and_classes_decay_positions_scales_gains_and_biases_do_not(shared):
    model = Transformer(tiny.transformer(shared_adaln=shared))
    decayed = {p.name for p in model.trainable_params() if is_decayed(p)}
    rest = {p.name for p in model.trainable_params()} - decayed
    of_blocks = {f"blocks.{i}.{name}" for i in (0, 1) for name in BLOCK}
    biases = {f"blocks.{i}.{name}" for i in (0, 1) for name in UNDECAYED_OF_BLOCK}
    biases |= UNDECAYED | {"word_embed.bias", "head.bias", "head_nm.ada_lin.1.bias"}
    if shared:
        of_blocks |= {"shared_ada_lin.1.weight"}
        biases |= {"shared_ada_lin.1.bias", "blocks.0.ada_gss", "blocks.1.ada_gss"}
    else:
        of_blocks |= {f"blocks.{i}.ada_lin.1.weight" for i in (0, 1)}
        biases |= {f"blocks.{i}.ada_lin.1.bias" for i in (0, 1)}
    assert decayed == OUTSIDE | of_blocks
    assert rest == biases


@pytest.mark.parametrize(
    ("name", "gain"),
    [("d16", 1e-3), ("d20", 1e-3), ("d24", 1e-4), ("d30", 1e-5), ("d36-s", 5e-6)],
)
def test_the_gates_of_a_new_model_start_with_the_released_gain(name, gain):
    run, tokenizer = preset_defaults(name), Tokenizer(tiny.tokenizer(), 0)
    size = TransformerSizeConfig(1, 128, 2, run.transformer.shared_adaln)
    model, _ = build_transformer(replace(run, transformer=size), tokenizer, ("cat", "dog"))
    weights = model.published_tensors()
    if name == "d36-s":
        modulation, std = weights["blocks.0.ada_gss"].reshape(6, -1), 128**-0.5
    else:
        modulation, std = weights["blocks.0.ada_lin.1.weight"].reshape(6, -1), math.sqrt(1 / 384)
    assert modulation[:2].std() == pytest.approx(gain * std, rel=0.15)
    assert modulation[2:].std() == pytest.approx(0.5 * std, rel=0.15)


def test_the_weight_of_a_new_scale_rises_over_a_300th_of_the_steps():
    """Of 3000 steps, two scales join in the first half, at steps 750 and 1500."""
    schedule = (3000, 4, 0.5, 2)
    counts = [scales_in_training(step, *schedule) for step in range(3000)]
    assert [counts.index(n) for n in (2, 3, 4)] == [0, 750, 1500]
    found = {step: newest_weight(step, *schedule) for step in range(3000)}
    risen = {joined + i: (i + 1) / 10 for joined in (750, 1500) for i in range(10)}
    assert found == pytest.approx({step: risen.get(step, 1.0) for step in range(3000)})
    assert {newest_weight(step, 3000, 4, 0.0, 2) for step in range(3000)} == {1.0}


def test_a_scale_that_joins_has_at_least_a_hundredth_of_its_weight():
    counts = np.array([scales_in_training(step, 60_000, 3, 0.5, 2) for step in range(60_000)])
    joined = int(np.argmax(counts == 3))
    rises = [newest_weight(joined + i, 60_000, 3, 0.5, 2) for i in (0, 1, 3, 199)]
    assert rises == pytest.approx([0.01, 0.01, 0.02, 1])
