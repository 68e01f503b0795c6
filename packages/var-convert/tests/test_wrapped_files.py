"""What a trainer puts around the weights, or beside them, changes nothing."""

import argparse
import logging
import shutil
from collections import OrderedDict

import mindspore
import numpy as np
import pytest
import tiny
from var_convert import convert, inspect, verify
from var_convert.cli import main
from var_convert.opened_model import open_model
from var_tokenizer.common import InputError

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def states(random_model):
    """State dicts of a tokenizer and of two transformers, with their checksums."""
    return {
        "vae": dict(random_model(tiny.tokenizer()).state_dict()),
        "var": dict(random_model(tiny.transformer()).state_dict()),
        "ema": dict(random_model(tiny.transformer(), seed=1).state_dict()),
    }


@pytest.fixture
def checksum(tmp_path):
    def of(state):
        torch.save(state, tmp_path / "plain.pth")
        return inspect(tmp_path / "plain.pth").checksum

    return of


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def inside(part, state):
    """With ``part`` after the number of each block, as for blocks compiled one by one."""
    parts = {name: name.split(".") for name in state}
    return {
        ".".join([*p[:2], part, *p[2:]]) if p[0] == "blocks" else name: state[name]
        for name, p in parts.items()
    }


PREFIXES = ["module.", "_orig_mod.", "_orig_mod.module.", "ema.", "var.", "module.module.", "a.b."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("kind", ["vae", "var"])
def test_a_prefix_that_all_names_share_is_taken_off_and_logged(
    states, checksum, tmp_path, caplog, kind, prefix
):
    caplog.set_level(logging.INFO)
    torch.save(prefixed(prefix, states[kind]), tmp_path / "a.pth")
    assert inspect(tmp_path / "a.pth").checksum == checksum(states[kind])
    assert f"took {prefix} off the names" in caplog.text
    names = {tensor.name for tensor in inspect(tmp_path / "a.pth").tensors}
    assert names == {prefix + name for name in states[kind]}


@pytest.mark.parametrize("part", ["_orig_mod", "module", "_fsdp_wrapped_module"])
def test_a_wrapper_inside_names_is_taken_off(states, checksum, tmp_path, part):
    torch.save(prefixed("module.", inside(part, states["var"])), tmp_path / "a.pth")
    assert inspect(tmp_path / "a.pth").checksum == checksum(states["var"])


def test_a_prefix_that_not_all_names_share_is_refused(states, tmp_path):
    for name in ("module.head.bias", "head.bias"):
        state = prefixed("module." if name == "head.bias" else "", states["var"])
        torch.save({**state, name: torch.zeros(32)}, tmp_path / "a.pth")
        with pytest.raises(
            InputError, match=r"head\.bias.*(names|unexpected)|unexpected.*head\.bias"
        ):
            inspect(tmp_path / "a.pth")


def test_a_tensor_under_two_names_is_refused(states, tmp_path):
    state = states["var"] | {"blocks.0.module.ffn.fc1.bias": torch.zeros(128)}
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(InputError, match="two names"):
        inspect(tmp_path / "a.pth")


WRAPPERS = [
    *("model", "ema", "model_ema", "state_dict", "model_state_dict", "module"),
    *("trainer.var_wo_ddp", "trainer.var", "checkpoint.model.state"),
]


@pytest.mark.parametrize("key", WRAPPERS)
def test_a_state_dict_is_found_under_any_key(states, checksum, tmp_path, key):
    held = states["var"]
    for part in reversed(key.split(".")):
        held = {"epoch": 3, part: held, "lr": [1e-4]}
    torch.save(held, tmp_path / "a.pth")
    assert inspect(tmp_path / "a.pth").checksum == checksum(states["var"])
    last = key.split(".")[-1]
    assert inspect(tmp_path / "a.pth", key=last).checksum == checksum(states["var"])
    assert inspect(tmp_path / "a.pth", key=key).checksum == checksum(states["var"])


def test_several_models_ask_for_a_key_and_list_what_there_is(states, checksum, tmp_path, refused):
    path = tmp_path / "a.pth"
    held = {"model": states["var"], "ema": {"module": states["ema"]}, "vae": states["vae"]}
    torch.save(held, path)
    message = refused(path, tmp_path / "o.ckpt")
    there = "model (transformer), ema.module (transformer), vae (tokenizer)"
    assert there in message and "--key" in message
    assert there in refused(path, tmp_path / "o.ckpt", "--key", "best")
    assert "--key" in refused(path, tmp_path / "o.ckpt", "--only", "transformer")
    for key, kind in (("model", "var"), ("ema.module", "ema"), ("module", "ema"), ("vae", "vae")):
        assert main([str(path), str(tmp_path / "o.ckpt"), "--key", key, "--force"]) == 0
        assert inspect(tmp_path / "o.ckpt").checksum == checksum(states[kind])
        assert main(["verify", str(path), str(tmp_path / "o.ckpt"), "--key", key]) == 0
    assert inspect(path, only="tokenizer").checksum == checksum(states["vae"])


def test_models_of_one_state_dict_are_told_apart_by_their_prefix(states, checksum, tmp_path):
    held = prefixed("vae.", states["vae"]) | prefixed("module.var.", states["var"])
    torch.save({"state_dict": held}, tmp_path / "a.pth")
    for key, kind in (("vae", "vae"), ("module.var", "var"), ("state_dict.vae", "vae")):
        assert inspect(tmp_path / "a.pth", key=key).checksum == checksum(states[kind])
    assert inspect(tmp_path / "a.pth", only="tokenizer").config.scales == (1, 2, 3)


def test_a_file_of_one_model_refuses_a_key_that_it_does_not_have(states, tmp_path):
    torch.save(states["var"], tmp_path / "a.pth")
    with pytest.raises(InputError, match="nothing under the key 'ema'"):
        inspect(tmp_path / "a.pth", key="ema")


def test_optimizer_state_and_counters_are_no_model(states, checksum, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    tensors = {
        **prefixed("var.", states["var"]),
        **prefixed("adam_m.var.", states["ema"]),
        **prefixed("adam_v.var.", states["ema"]),
        "global_step": torch.tensor(7),
        "learning_rate": torch.tensor(1e-4),
    }
    parameters = [{"name": n, "data": mindspore.Tensor(t.numpy())} for n, t in tensors.items()]
    mindspore.save_checkpoint(parameters, str(tmp_path / "a.ckpt"))
    torch.save(
        {"n_averaged": torch.tensor(7), **prefixed("module.", states["var"])}, tmp_path / "b.pth"
    )
    assert inspect(tmp_path / "a.ckpt").checksum == checksum(states["var"])
    assert "left out adam_m." in caplog.text
    assert inspect(tmp_path / "b.pth").checksum == checksum(states["var"])


def test_what_trainers_save_beside_the_weights_is_let_through(states, checksum, tmp_path):
    beside = {
        "args": argparse.Namespace(depth=16, nested=argparse.Namespace(lr=np.float64(1e-4))),
        "best": np.float32(6.5),
        "step": np.int64(7),
        "curve": np.arange(3.0),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1.0}]},
        "rng": torch.get_rng_state(),
    }
    for legacy in (False, True):
        torch.save(
            {**beside, "model": states["var"]},
            tmp_path / "a.pth",
            _use_new_zipfile_serialization=not legacy,
        )
        assert inspect(tmp_path / "a.pth").checksum == checksum(states["var"])


def test_what_is_let_through_is_neither_called_nor_kept():
    from var_convert.formats import pth

    (namespace, *_) = pth._stand_ins()
    assert namespace is not argparse.Namespace
    made = namespace(1)
    made.__setstate__({"depth": 16})
    assert not vars(made)


def test_a_mapping_in_itself_is_read(states, checksum, tmp_path):
    held = {"model": states["var"]}
    held["itself"] = held
    torch.save(held, tmp_path / "a.pth")
    assert inspect(tmp_path / "a.pth").checksum == checksum(states["var"])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_levels_of_another_integer_type_are_read(states, checksum, tmp_path, dtype):
    levels = states["var"]["lvl_1L"].to(dtype)
    torch.save(states["var"] | {"lvl_1L": levels}, tmp_path / "a.pth")
    assert inspect(tmp_path / "a.pth").checksum == checksum(states["var"])
    back = convert(tmp_path / "a.pth", tmp_path / "b.pth").target
    assert torch.load(back)["lvl_1L"].dtype == torch.int64


@pytest.mark.parametrize("name", ["a.pt", "a.bin", "a.pth.tar", "A.PTH"])
def test_every_suffix_of_pytorch_is_written(states, tmp_path, name):
    torch.save(states["vae"], tmp_path / "source.pth")
    target = convert(tmp_path / "source.pth", tmp_path / name).target
    found = torch.load(target, weights_only=True)
    assert isinstance(found, OrderedDict) and found.keys() == states["vae"].keys()
    assert verify(tmp_path / "source.pth", target).agrees()


RELATIVES = {
    "text_proj_for_sos.ca.mat_kv.weight": "Infinity",
    "diffloss.net.input_proj.weight": "MAR",
    "tok_embeddings.weight": "LlamaGen",
    "t_embedder.mlp.0.weight": "DiT",
    "blocks.0.cross_attn.q.weight": "cross-attention",
    "encoder.conv_blocks.0.res.0.norm1.weight": "VQGAN",
}


@pytest.mark.parametrize("name", RELATIVES)
def test_a_relative_of_another_structure_is_refused_by_its_own_name(refused, tmp_path, name):
    state = {name: torch.zeros(3), "blocks.0.norm.weight": torch.zeros(3)}
    if RELATIVES[name] == "VQGAN":
        state = {name: torch.zeros(3), "quantize.embedding.weight": torch.zeros(3, 3)}
    for wrapped in (state, {"model": prefixed("module.", state)}):
        torch.save(wrapped, tmp_path / "a.pth")
        message = refused(tmp_path / "a.pth", tmp_path / "o.ckpt")
        assert RELATIVES[name] in message and "not supported" in message


def test_the_model_without_a_key_has_an_empty_one(states, checksum, tmp_path, refused):
    state = states["var"]
    others = {f"ema.{n}": t + 1 if n == "head.bias" else t for n, t in state.items()}
    torch.save(dict(state) | others, tmp_path / "m.pth")
    assert "one without a key (transformer; --key '')" in refused(
        tmp_path / "m.pth", tmp_path / "o.ckpt"
    )
    assert main([str(tmp_path / "m.pth"), str(tmp_path / "o.ckpt"), "--key", ""]) == 0
    assert inspect(tmp_path / "o.ckpt").checksum == checksum(states["var"])


def test_a_model_is_opened_once_for_several_questions(states, tmp_path):
    torch.save({"ema": prefixed("module.", states["ema"])}, tmp_path / "a.pth")
    shutil.copy(tmp_path / "a.pth", tmp_path / "b.bin")
    one, two = open_model(tmp_path / "a.pth"), open_model(tmp_path / "b.bin", key="ema")
    assert one.tensors.keys() == two.tensors.keys()
