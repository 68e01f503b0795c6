"""After conversion the MindSpore models compute what the PyTorch reference computes."""

import dataclasses
import subprocess
import sys

import pytest
import tiny
from var_convert import ForwardDifference, IdDifference, compare_ids, convert, verify
from var_convert.cli import main
from var_tokenizer import SCALES_256, SCALES_512, TokenizerConfig
from var_transformer import TransformerConfig

torch = pytest.importorskip("torch")

slow = pytest.mark.slow
TOKENIZER, TRANSFORMER = tiny.tokenizer(), tiny.transformer()
TOKENIZERS = [
    pytest.param(tiny.tokenizer(channel_multipliers=(1,), phi_count=3), id="a convolution each"),
    pytest.param(TOKENIZER, id="4 shared convolutions", marks=slow),
    pytest.param(tiny.tokenizer(phi_count=1), id="1 shared convolution", marks=slow),
    pytest.param(tiny.tokenizer(scales=SCALES_256), id="256 px", marks=slow),
    pytest.param(tiny.tokenizer(scales=SCALES_512), id="512 px", marks=slow),
]


def reduced(name):
    """A preset at an eighth of its depth and a quarter of its heads, each of width 16."""
    preset = TransformerConfig.preset(name)
    heads = preset.heads // 4
    return dataclasses.replace(preset, depth=preset.depth // 8, heads=heads, width=16 * heads)


PRESETS = {name: reduced(name) for name in ("d16", "d20", "d24", "d30", "d36-s")}
TRANSFORMERS = [
    pytest.param(TRANSFORMER, id="own AdaLN, QK-L2"),
    pytest.param(
        tiny.transformer(shared_adaln=True, heads=1, qk_l2_norm=False),
        id="shared AdaLN, no QK-L2",
    ),
    pytest.param(tiny.transformer(heads=1, qk_l2_norm=False), id="no QK-L2", marks=slow),
    pytest.param(tiny.transformer(shared_adaln=True), id="shared AdaLN, QK-L2", marks=slow),
    *(pytest.param(config, id=f"{name} reduced", marks=slow) for name, config in PRESETS.items()),
]


@pytest.mark.parametrize("config", TOKENIZERS)
def test_the_tokenizers_ids_images_and_inputs_agree(save_pth, config):
    path, _ = save_pth(config)
    native = convert(path, path.with_suffix(".safetensors"), scales=config.scales).target
    forward = verify(path, native, forward=True).forward
    assert forward.ids.unexplained == 0
    assert forward.images <= 1e-4
    assert forward.teacher_inputs <= 1e-4


@pytest.mark.parametrize("config", TRANSFORMERS)
def test_the_transformers_logits_and_generated_images_agree(save_pth, config):
    path, _ = save_pth(config)
    native = convert(path, path.with_suffix(".safetensors")).target
    forward = verify(path, native, forward=True).forward
    assert forward.logits <= 1e-3
    assert forward.ids.differing == 0
    assert forward.images <= 1e-4


@slow
@pytest.mark.parametrize("config", [TokenizerConfig(), TransformerConfig.preset("d16")])
def test_models_of_published_size_agree(save_pth, config):
    """In a process of its own: MindSpore keeps the gigabytes that it once took."""
    path, _ = save_pth(config)
    native = convert(path, path.with_suffix(".safetensors")).target
    command = [sys.executable, "-m", "var_convert.cli", "verify", path, native, "--forward"]
    assert subprocess.run(command, check=False).returncode == 0


@slow
def test_verify_forward_exits_with_1_where_the_models_differ(save_pth, capsys):
    path, _ = save_pth(TRANSFORMER)

    def sharper(state):
        return {n: t * 1.5 if n.endswith("scale_mul_1H11") else t for n, t in state.items()}

    other, _ = save_pth(TRANSFORMER, name="other.pth", change=sharper)
    assert main(["verify", str(path), str(other), "--tolerance", "9", "--forward"]) == 1
    assert "logits" in capsys.readouterr().out


SAME = ForwardDifference(IdDifference(9, 0, 0), 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "change, agrees",
    [
        ({"ids": IdDifference(9, 3, 0)}, True),
        ({"ids": IdDifference(9, 3, 1)}, False),
        ({"images": 9e-5}, True),
        ({"images": 2e-4}, False),
        ({"teacher_inputs": 2e-4}, False),
        ({"logits": 9e-4}, True),
        ({"logits": 2e-3}, False),
        ({"logits": float("nan")}, False),
    ],
)
def test_forward_passes_agree_within_the_limits_of_parity(change, agrees):
    assert dataclasses.replace(SAME, **change).agrees == agrees


def test_a_first_difference_is_explained_by_a_near_tie_alone():
    expected = [torch.tensor([[1]]), torch.tensor([[1, 2, 3, 4]])]
    found = [torch.tensor([[1]]), torch.tensor([[1, 2, 0, 0]])]
    clear, near = torch.tensor([[1.0]]), torch.tensor([[1.0, 1.0, 1e-6, 0.5]])
    gaps = [clear.numpy(), near.numpy()]
    assert dataclasses.astuple(compare_ids(expected, found, gaps)) == (5, 2, 1)
    assert dataclasses.astuple(compare_ids(expected, found)) == (5, 2, 2)


def test_differences_after_a_near_tie_are_not_counted_against_it():
    expected, found = [[[1]], [[1, 2, 3, 4]]], [[[0]], [[4, 3, 2, 1]]]
    tied = [torch.tensor([[1e-6]]).numpy(), torch.ones(1, 4).numpy()]
    assert dataclasses.astuple(compare_ids(expected, found, tied)) == (5, 5, 0)
    clear = [torch.tensor([[1.0]]).numpy(), torch.ones(1, 4).numpy()]
    assert dataclasses.astuple(compare_ids(expected, found, clear)) == (5, 5, 1)
