"""The Inception v3 of FID becomes a file that var-train judges by, whole or not at all."""

import numpy as np
import pytest
from safetensors.numpy import load_file
from var_convert.cli import main
from var_tokenizer.common import inception_shapes

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def published():
    """A state dict as torchvision's module has it, with what only its training reads."""
    state = {name: torch.zeros(shape) for name, shape in inception_shapes(1008).items()}
    state["Mixed_7c.branch_pool.conv.weight"].normal_()
    state["Conv2d_1a_3x3.bn.num_batches_tracked"] = torch.tensor(0)
    return state | {"AuxLogits.fc.weight": torch.zeros(1000, 768)}


def test_the_network_of_2015_becomes_a_file_without_what_training_reads(
    tmp_path, published, caplog
):
    torch.save(published, tmp_path / "pt_inception.pth")
    assert main([str(tmp_path / "pt_inception.pth"), str(tmp_path / "inception.safetensors")]) == 0
    found = load_file(tmp_path / "inception.safetensors")
    assert {name: array.shape for name, array in found.items()} == inception_shapes(1008)
    assert all(np.array_equal(array, published[name].numpy()) for name, array in found.items())
    assert "pt_inception.pth: not pt_inception-2015-12-05-6726825d.pth" in caplog.text


def test_torchvisions_network_is_read_by_the_same_names(tmp_path, published, caplog):
    classifier = {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    torch.save(published | classifier, tmp_path / "inception_v3.pth")
    assert main([str(tmp_path / "inception_v3.pth"), str(tmp_path / "inception.safetensors")]) == 0
    assert load_file(tmp_path / "inception.safetensors")["fc.bias"].shape == (1000,)
    assert "not pt_inception" not in caplog.text


@pytest.mark.parametrize(
    ("changes", "target", "options", "message"),
    [
        ({"fc.weight": None}, "o.safetensors", [], "1 missing tensor(s): fc.weight"),
        ({"extra": torch.zeros(1)}, "o.safetensors", [], "1 unexpected tensor(s): extra"),
        ({"fc.bias": torch.full((1008,), torch.inf)}, "o.safetensors", [], "fc.bias holds NaN"),
        ({"fc.bias": torch.zeros(1008, dtype=torch.int32)}, "o.safetensors", [], "fc.bias is int"),
        ({}, "o.pth", [], "expected .safetensors"),
        ({}, "o.safetensors", ["--dtype", "float16"], "expected no option but --force"),
    ],
)
def test_a_network_that_is_not_whole_is_refused(
    refused, tmp_path, published, changes, target, options, message
):
    state = {name: tensor for name, tensor in (published | changes).items() if tensor is not None}
    torch.save(state, tmp_path / "inception.pth")
    assert message in refused(tmp_path / "inception.pth", tmp_path / target, *options)
    assert not (tmp_path / target).exists()
