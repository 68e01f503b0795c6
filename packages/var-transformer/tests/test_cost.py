"""What a step and a generation cost, on paper: against the model itself and a count by hand."""

import re
from functools import partial

import mindspore as ms
import numpy as np
import pytest
from command_line import call
from mindspore import Tensor
from var_tokenizer import TokenizerConfig
from var_transformer import BackendConfig, Transformer, TransformerConfig
from var_transformer.attention import PortableAttention
from var_transformer.attention.devices import device
from var_transformer.attention.segments import Plan, Segment, cut_at, forward_work
from var_transformer.cost import parts as cost
from var_transformer.cost.memory import least_memory, most_images, step_memory
from var_transformer.model import operators as fast

PRESETS = ("d16", "d20", "d24", "d30", "d36-s")
ASCEND = device("ascend-910b")


def named(parts: list[cost.Part]) -> dict[str, cost.Part]:
    return {part.name: part for part in parts}


def masked(config: TransformerConfig) -> Plan:
    return (Segment(0, config.schedule.length, True, config.schedule.length - 1),)


def test_products_of_a_training_step_of_d16_are_those_counted_by_hand():
    parts = named(cost.training_step(D16, 96, masked(D16), ASCEND))
    tokens = 96 * 680
    assert parts["qkv"].madds == 3 * 16 * tokens * 1024 * 3072
    assert parts["projection"].madds == 3 * 16 * tokens * 1024 * 1024
    assert parts["feed-forward"].madds == 3 * 16 * tokens * 2 * 1024 * 4096
    # two products forward, five backward; each 680 x 680 x 64 a head, 16 heads
    assert parts["attention"].madds == 16 * 96 * 7 * 680 * 680 * 64 * 16
    assert parts["head"].madds == 3 * (tokens * 1024 * 4096 + 96 * 1024 * 2048)
    assert parts["AdaLN vectors"].madds == 3 * 16 * 96 * 1024 * 6144


D16 = TransformerConfig.preset("d16")


def test_d16_has_the_published_count_of_parameters():
    assert cost.parameter_count(D16) == pytest.approx(310e6, rel=0.01)


@pytest.mark.parametrize("changes", [{}, {"shared_adaln": True}, {"qk_l2_norm": False}])
def test_parameters_are_as_many_as_the_model_has(make_config, changes):
    config = make_config(**changes)
    weights = Transformer(config, None).get_parameters()
    assert cost.parameter_count(config) == sum(p.size for p in weights)


def test_products_of_a_pass_are_those_that_the_model_multiplies(monkeypatch, make_config):
    counted = {"linear": 0, "attention": 0}

    def linear(self, x, weight_oi, bias_o):
        counted["linear"] += x.size * weight_oi.shape[0]
        return apply_linear(self, x, weight_oi, bias_o)

    def attend(self, q, k, v, segment):
        counted["attention"] += 2 * q.size * k.shape[2]
        return apply_attention(self, q, k, v, segment)

    apply_linear, apply_attention = fast.Linear.construct, PortableAttention.attend
    monkeypatch.setattr(fast.Linear, "construct", linear)
    monkeypatch.setattr(PortableAttention, "attend", attend)
    config, batch = make_config(), 3
    model = Transformer(config, backend=BackendConfig("portable"))
    rest = config.schedule.length - config.schedule.tokens[0]
    inputs = Tensor(np.zeros((batch, rest, config.latent_channels), np.float32))
    model.construct(Tensor(np.zeros(batch, np.int32)), inputs)

    plan = tuple(Segment(*call) for call in model.blocks[0].attn.attend.plans[-1])
    scores = forward_work(plan).scores
    assert counted["attention"] == config.depth * 2 * scores * batch * config.width
    parts = cost.training_step(config, batch, plan, ASCEND)
    linear_madds = sum(part.madds for part in parts if part.name != "attention") / 3
    # the first scale has no input; on paper it has one
    unread = batch * config.schedule.tokens[0] * config.latent_channels * config.width
    assert counted["linear"] == linear_madds - unread


@pytest.mark.parametrize("preset", PRESETS)
def test_a_generation_multiplies_what_all_scales_at_once_do(preset):
    """With the cache nothing is computed twice, and no score is masked."""
    config = TransformerConfig.preset(preset)
    everywhere = cut_at(config.schedule, 1)
    images = 8
    step = named(cost.training_step(config, 2 * images, everywhere, ASCEND))
    codec = TokenizerConfig(scales=config.scales)
    generation = named(cost.generation(config, codec, images, True, ASCEND))
    for part in ("qkv", "projection", "feed-forward"):
        assert generation[part].madds == pytest.approx(step[part].madds / 3)
    assert generation["attention"].madds == pytest.approx(step["attention"].madds / 3.5)
    assert generation["attention"].launches == len(config.schedule) * config.depth


# ---------------------------------------------------------------- memory
def test_the_weights_in_a_step_are_those_counted_by_hand():
    count = 4 * cost.parameter_count(D16)
    # masters, two moments, a copy of the gradients; copies for products, and their gradients
    assert step_memory(D16, 96).weights == 5 * count
    assert step_memory(D16, 96, itemsize=4).weights == 6 * count
    assert step_memory(D16, 96, averages=True).weights == 6 * count
    assert step_memory(D16, 96, shards=8).weights == (2 + 3 / 8) * count


@pytest.mark.parametrize("preset", PRESETS)
def test_recomputed_blocks_keep_a_tenth_and_no_form_gets_below_the_least(preset):
    config = TransformerConfig.preset(preset)
    kept, again = (step_memory(config, 8, recompute=on) for on in (False, True))
    assert again.blocks < kept.blocks / 10
    assert least_memory(config, 8) < again.total < kept.total
    assert least_memory(config, 8, shards=8) < step_memory(config, 8, 2, True, shards=8).total


def test_memory_grows_by_the_same_for_each_image():
    totals = [step_memory(D16, images).total for images in (8, 9, 10)]
    assert totals[1] - totals[0] == pytest.approx(totals[2] - totals[1])
    assert totals[1] > totals[0]


def test_the_roofline_is_the_slower_of_products_and_bytes():
    products, moved = cost.Part("a", madds=ASCEND.flops), cost.Part("b", bytes=1e12)
    assert products.seconds(ASCEND) == 2
    assert moved.seconds(ASCEND) == 1e12 / ASCEND.bandwidth


# ---------------------------------------------------------------- the command
def run(capsys, *arguments: str) -> str:
    assert call("cost", *arguments) == 0
    return capsys.readouterr().out


def cells(out: str, name: str) -> list[str]:
    (row,) = (line for line in out.splitlines() if name in line and "->" not in line)
    return [cell.strip().replace(",", "") for cell in row.split("│")[2:]]


@pytest.mark.parametrize(
    ("preset", "batch", "published"),
    [("d16", "96", "published: 1.7"), ("d36-s", "8", "published: -")],
)
def test_a_published_step_is_named_beside_that_on_paper(capsys, preset, batch, published):
    out = run(capsys, "--preset", preset, "--batch", batch)
    assert published in out
    assert ("0.32" in out) == (preset == "d16")


@pytest.mark.parametrize("preset", PRESETS)
def test_training_takes_the_cut_of_the_least_time_on_paper(capsys, preset):
    out = run(capsys, "--preset", preset)
    names = ("masked ", "one banded call", "as trained", "cut everywhere")
    roofline = {name: float(cells(out, name)[4]) for name in names}
    assert roofline["as trained"] == min(roofline.values())
    assert roofline["cut everywhere"] > roofline["masked "] > roofline["one banded call"]
    assert float(cells(out, "one banded call")[2]) < 0.86


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "d17"), "d17"),
        (("--device", "h100"), "device is 'h100'; expected one of ascend-910b"),
        (("--batch", "0"), "batch is 0; expected an integer of at least 1"),
        (("--images", "-1"), "images is -1; expected an integer of at least 1"),
    ],
)
def test_bad_input_ends_with_2_and_one_line(capsys, caplog, arguments, message):
    assert call("cost", *arguments) == 2 and capsys.readouterr() == ("", "")
    (shown,) = caplog.messages
    assert message in shown


def test_the_memory_of_a_step_is_said_with_recompute_and_without(capsys):
    out = run(capsys, "--preset", "d16", "--batch", "96")
    kept, again = map(float, cells(out, "kept by the blocks")[:2])
    assert 40 < kept < 45 and 3 < again < 5
    assert "fits into 55.9 of 59.6 GiB" in out
    assert "does not fit -> fits into 55.9 of 59.6 GiB" in run(capsys, "--batch", "128")


def test_the_batch_that_fits_is_named_with_recompute_and_without(capsys):
    words = " ".join(run(capsys, "--preset", "d16").split())
    found = re.search(r"at most a batch of (\d+) -> (\d+)", words)
    for most, recompute in zip(map(int, found.groups()), (False, True), strict=True):
        usable = ASCEND.memory * 15 / 16
        assert step_memory(D16, most, recompute=recompute).total <= usable
        assert step_memory(D16, most + 1, recompute=recompute).total > usable
    for batch, expected in ((found[1], "fits into"), (found[2], "does not fit -> fits into")):
        assert expected in " ".join(run(capsys, "--batch", batch).split())


def test_no_image_at_once_fits_where_the_weights_do_not(capsys):
    assert most_images(partial(least_memory, D16), 2**30) == 0
    assert most_images(partial(least_memory, D16), 2**40, most=7) == 7
    assert "at most a batch of 0" in run(capsys, "--preset", "d30", "--device", "ascend-910a")


def test_the_portable_device_is_priced_too(capsys):
    out = run(capsys, "--device", "cpu", "--batch", "2")
    assert "on cpu" in out and "at least" in out
    assert ms.get_context("device_target") == "CPU"
