"""Nothing changes on the way from format to format."""

import dataclasses
import itertools
import os
import shlex
from pathlib import Path

import mindspore
import numpy as np
import peers
import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file
from var_convert import convert, inspect
from var_convert.cli import main
from var_tokenizer import SCALES_256, SCALES_512, Tokenizer, TokenizerConfig
from var_tokenizer.common import InputError, open_checkpoint
from var_transformer import Transformer, TransformerConfig, check_pair

torch = pytest.importorskip("torch")

TOKENIZER, TRANSFORMER = tiny.tokenizer(), tiny.transformer()

CONFIGS = {
    "tokenizer": TOKENIZER,
    "one shared convolution": tiny.tokenizer(phi_count=1),
    "a convolution each": tiny.tokenizer(phi_count=3),
    "one level": tiny.tokenizer(channel_multipliers=(1,)),
    "transformer": TRANSFORMER,
    "shared AdaLN": tiny.transformer(shared_adaln=True),
    "without QK-L2": tiny.transformer(heads=1, qk_l2_norm=False),
    "512 px": tiny.transformer(depth=1, scales=SCALES_512),
}


def identical(a: dict, b: dict) -> bool:
    """Names, types, shapes and bits (so that -0.0 and NaN count too)."""
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype
        and torch.equal(a[name].view(torch.uint8), b[name].view(torch.uint8))
        for name in a
    )


def around(path, **choices):
    """.pth -> .safetensors -> .ckpt -> .pth; the state dict at the end."""
    stops = [path, *(path.with_name(n) for n in ("b.safetensors", "c.ckpt", "d.pth"))]
    for source, target in itertools.pairwise(stops):
        convert(source, target, force=True, **(choices if source == path else {}))
    return torch.load(stops[-1], weights_only=True)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_round_trip_through_all_three_formats_is_bit_identical(save_pth, config):
    path, state = save_pth(config)
    assert identical(around(path), state)


def test_a_lookup_by_angle_is_told_once_and_kept_in_every_format(save_pth):
    path, _ = save_pth(TOKENIZER)
    assert not inspect(path).config.using_znorm
    around(path, using_znorm=True)
    for name in ("b.safetensors", "c.ckpt", "d.pth"):
        config = tiny.tokenizer(using_znorm=True)
        assert inspect(path.with_name(name)).config == config


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("config", [TOKENIZER, TRANSFORMER], ids=["vae", "var"])
def test_round_trip_keeps_the_element_type(save_pth, config, dtype):
    def change(state):
        return {n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()}

    path, state = save_pth(config, change=change)
    assert identical(around(path), state)


def published(count):
    """Renames the shared convolutions as the published code spells them for ``count``."""
    to = "quant_resi.qresi." if count == 1 else "quant_resi."
    old = "quant_resi.qresi_ls.0." if count == 1 else "quant_resi.qresi_ls."
    return lambda state: {name.replace(old, to): tensor for name, tensor in state.items()}


@pytest.mark.parametrize("count", [1, 3])
def test_shared_convolutions_are_spelled_in_one_way_in_native_files_alone(save_pth, count):
    config = tiny.tokenizer(phi_count=count)
    path, state = save_pth(config, change=published(count))
    assert any("qresi_ls" not in name and "quant_resi" in name for name in state)
    native = convert(path, path.with_suffix(".safetensors")).target
    found = open_checkpoint(native, "tokenizer", TokenizerConfig)
    assert found.config == config
    assert sum("quant_resi.qresi_ls." in name for name in found.tensors) == 2 * count
    back = convert(native, path.with_name("back.pth")).target
    assert torch.load(back, weights_only=True).keys() == state.keys()
    assert identical(around(path), state)


@pytest.mark.parametrize("config", [TOKENIZER, TRANSFORMER], ids=["vae", "var"])
def test_the_last_pth_loads_strictly(save_pth, random_model, config):
    path, state = save_pth(config)
    fresh = random_model(config, seed=1)
    fresh.load_state_dict(around(path), strict=True)
    assert identical(dict(fresh.state_dict()), state)


def test_a_native_transformer_holds_its_configuration_and_no_derived_buffers(save_pth):
    path, state = save_pth(TRANSFORMER)
    native = convert(path, path.with_suffix(".safetensors")).target
    found = open_checkpoint(native, "transformer", TransformerConfig)
    assert found.config == TRANSFORMER
    assert np.array_equal(found.read()["head.weight"], state["head.weight"].numpy())
    zeros = {f"blocks.{i}.attn.zero_k_bias" for i in range(2)}
    with safe_open(native, framework="numpy") as file:
        dropped = state.keys() - set(file.keys())
    assert dropped == {"lvl_1L", "attn_bias_for_masking"} | zeros


NOT_SQUARE = (1, (1, 2), (2, 4))


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".safetensors"])
@pytest.mark.parametrize("config", [TOKENIZER, TRANSFORMER], ids=["vae", "var"])
def test_a_schedule_given_once_is_kept_by_every_format(save_pth, config, suffix):
    config = dataclasses.replace(config, scales=NOT_SQUARE)
    path, _ = save_pth(config)
    target = path.with_name(f"target{suffix}")
    convert(path, target, scales=NOT_SQUARE)
    assert inspect(target).config == config


@pytest.mark.parametrize("name", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".safetensors"])
def test_dtype_rounds_as_pytorch_does(save_pth, name, suffix):
    path, state = save_pth(TRANSFORMER)
    dtype = getattr(torch, name)
    convert(path, path.with_name(f"half{suffix}"), dtype=name)
    convert(path.with_name(f"half{suffix}"), path.with_name("back.pth"))
    expected = {n: t.to(dtype) if t.is_floating_point() else t for n, t in state.items()}
    assert identical(torch.load(path.with_name("back.pth"), weights_only=True), expected)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    bits=st.lists(st.integers(0, 2**32 - 1), min_size=32, max_size=32),
    name=st.sampled_from(["float16", "bfloat16"]),
)
def test_any_float_rounds_as_pytorch_does(tmp_path_factory, random_model, bits, name):
    folder = tmp_path_factory.mktemp("cast")
    values = torch.from_numpy(np.array(bits, np.uint32).view(np.float32).copy())
    state = {**random_model(TRANSFORMER).state_dict(), "head.bias": values}
    torch.save(state, folder / "a.pth")
    convert(folder / "a.pth", folder / "b.pth", dtype=name)
    found = torch.load(folder / "b.pth", weights_only=True)["head.bias"]
    expected = values.to(getattr(torch, name))
    assert torch.equal(found.isnan(), expected.isnan())
    both = ~expected.isnan()
    assert torch.equal(found[both].view(torch.int16), expected[both].view(torch.int16))


transformer_configs = st.builds(
    lambda depth, heads, head_width, **rest: TransformerConfig(
        depth=depth, heads=heads, width=heads * head_width, **rest
    ),
    depth=st.integers(1, 3),
    heads=st.integers(1, 3),
    head_width=st.sampled_from([4, 8]),
    num_classes=st.integers(1, 9),
    vocab_size=st.integers(2, 20),
    latent_channels=st.integers(1, 6),
    scales=st.lists(st.integers(1, 5), min_size=1, max_size=5).map(sorted).map(tuple),
    shared_adaln=st.booleans(),
)
tokenizer_configs = st.builds(
    TokenizerConfig,
    vocab_size=st.integers(2, 20),
    latent_channels=st.integers(1, 6),
    channels=st.just(32),
    channel_multipliers=st.lists(st.integers(1, 2), min_size=1, max_size=3).map(tuple),
    res_blocks=st.integers(1, 2),
    phi_count=st.integers(1, 5),
    scales=st.integers(1, 10).map(lambda count: SCALES_256[:count]),
)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(config=st.one_of(transformer_configs, tokenizer_configs))
def test_any_architecture_is_read_from_names_and_shapes(tmp_path_factory, random_model, config):
    path = tmp_path_factory.mktemp("any") / "model.pth"
    torch.save(dict(random_model(config).state_dict()), path)
    assert inspect(path).config == config
    convert(path, path.with_suffix(".safetensors"))
    assert inspect(path.with_suffix(".safetensors")).config == config


@pytest.mark.parametrize("scales", [(1, 3, 5), (1, 2, 4, 7, 9, 10, 11, 12, 14, 15, 17)])
def test_a_trained_tokenizer_shows_its_schedule_in_its_statistics(save_pth, scales):
    def trained(state):
        hits = torch.rand(len(scales), 32)
        area = torch.tensor([float(s * s) for s in scales])[:, None]
        state["quantize.ema_vocab_hit_SV"] = hits / hits.sum(1, keepdim=True) * area * 768
        return state

    path, _ = save_pth(tiny.tokenizer(scales=scales), change=trained)
    assert inspect(path).config.scales == scales
    assert inspect(path).assumed == ()


def test_a_state_dict_without_derived_buffers_is_completed(save_pth):
    derived = ("lvl_1L", "attn_bias_for_masking", "zero_k_bias")
    config = tiny.transformer(scales=SCALES_256, depth=1)
    path, state = save_pth(config)
    stripped = {n: t for n, t in state.items() if not n.endswith(derived)}
    torch.save(stripped, path)
    convert(path, path.with_name("whole.pth"))
    assert identical(torch.load(path.with_name("whole.pth"), weights_only=True), state)


def trainer_checkpoint(tmp_path, random_model, scales):
    vae = random_model(tiny.tokenizer(scales=scales)).state_dict()
    var = random_model(tiny.transformer(scales=scales)).state_dict()
    path = tmp_path / "ar-ckpt-last.pth"
    wrapped = {"epoch": 3, "trainer": {"config": {"lr": 1e-4}, "var_wo_ddp": var, "vae_local": vae}}
    torch.save(wrapped, path)
    return path, {"tokenizer": vae, "transformer": var}


@pytest.mark.parametrize("kind", ["tokenizer", "transformer"])
def test_only_chooses_a_model_of_a_trainer_checkpoint(tmp_path, random_model, kind):
    path, states = trainer_checkpoint(tmp_path, random_model, (1, 2, 3))
    assert identical(around(path, only=kind), dict(states[kind]))


def test_a_trainer_checkpoint_tells_the_tokenizer_its_schedule(tmp_path, random_model):
    path, _ = trainer_checkpoint(tmp_path, random_model, (1, 3, 4))
    found = inspect(path, only="tokenizer")
    assert (found.config.scales, found.assumed) == ((1, 3, 4), ())


@pytest.mark.parametrize("kind", ["vae", "var"])
@pytest.mark.parametrize("count", [4, 1, 3])
def test_the_peers_weights_come_back_and_load_strictly(peer, tmp_path, random_model, kind, count):
    config = tiny.tokenizer(phi_count=count) if kind == "vae" else TRANSFORMER
    if kind == "vae":
        state = peer.random_vae(peers.vae_spec(config))
    else:
        state = peer.random_var(peers.var_spec(config))
    torch.save(state, tmp_path / "peer.pth")
    back = around(tmp_path / "peer.pth")
    assert identical(back, state)
    model = random_model(config, seed=1)
    model.load_state_dict(back, strict=True)


def test_memory_that_the_page_cache_holds_does_not_refuse_a_ckpt(save_pth, monkeypatch):
    path, state = save_pth(TRANSFORMER)
    before = os.sysconf

    def one_free_page(name):
        return 1 if name == "SC_AVPHYS_PAGES" else before(name)

    monkeypatch.setattr(os, "sysconf", one_free_page)
    assert identical(around(path), state)


@pytest.mark.slow
@pytest.mark.parametrize("config", [TokenizerConfig(), TransformerConfig.preset("d16")])
def test_round_trip_at_published_size_is_bit_identical(save_pth, config):
    path, state = save_pth(config)
    assert identical(around(path), state)


def test_what_a_transformer_notes_survives_every_format(save_pth, tmp_path):
    names, checksum = ("cat", "\u732b", "a, b", '"', "dog"), "sha256:" + "0" * 64
    path, _ = save_pth(TRANSFORMER)
    model = Transformer.load(convert(path, tmp_path / "a.safetensors").target)
    model.class_names, model.tokenizer_checksum = names, checksum
    model.save(tmp_path / "a.safetensors")
    stops = [
        "a.safetensors",
        "b.pth",
        "c.ckpt",
        "d.safetensors",
        "e.ckpt",
        "f.pth",
        "g.safetensors",
    ]
    for source, target in itertools.pairwise(stops):
        convert(tmp_path / source, tmp_path / target)
        found = inspect(tmp_path / target)
        assert (found.class_names, found.tokenizer) == (names, checksum)
    loaded = Transformer.load(tmp_path / "g.safetensors")
    assert (loaded.class_names, loaded.tokenizer_checksum) == (names, checksum)


def test_published_weights_note_nothing(save_pth, tmp_path):
    path, _ = save_pth(TRANSFORMER)
    for file in (path, convert(path, tmp_path / "a.safetensors").target):
        found = inspect(file)
        assert (found.class_names, found.tokenizer, found.rounded_from) == (None, None, None)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_rounded_tokenizer_still_belongs_to_its_transformer(save_pth, tmp_path, dtype):
    path, _ = save_pth(TOKENIZER)
    whole = convert(path, tmp_path / "whole.safetensors").target
    config = tiny.transformer(scales=TOKENIZER.scales)
    model = Transformer(config)
    model.tokenizer_checksum = inspect(whole).checksum
    stops = [whole, *(tmp_path / f"half{suffix}" for suffix in (".pth", ".ckpt", ".safetensors"))]
    for source, target in itertools.pairwise(stops):
        convert(source, target, dtype=dtype)
        assert inspect(target).rounded_from == inspect(whole).checksum
    half = Tokenizer.load(stops[-1])
    assert half.checksum() != inspect(whole).checksum
    check_pair(model, half)
    wide = convert(stops[-1], tmp_path / "wide.safetensors", dtype="float32").target
    check_pair(model, Tokenizer.load(wide))
    half.save(tmp_path / "again.safetensors")
    check_pair(model, Tokenizer.load(tmp_path / "again.safetensors"))
    same = convert(whole, tmp_path / "same.safetensors", dtype="float32").target
    assert inspect(same).rounded_from is None
    with pytest.raises(InputError, match="expected the tokenizer that it was trained with"):
        check_pair(model, Tokenizer(TOKENIZER, seed=5))


@pytest.mark.parametrize("checked", [False, True])
def test_weights_loaded_over_rounded_ones_no_longer_belong(save_pth, tmp_path, checked):
    path, _ = save_pth(TOKENIZER)
    whole = convert(path, tmp_path / "whole.safetensors").target
    half = Tokenizer.load(convert(whole, tmp_path / "h.safetensors", dtype="float16").target)
    model = Transformer(tiny.transformer(scales=TOKENIZER.scales))
    model.tokenizer_checksum = inspect(whole).checksum
    if checked:
        check_pair(model, half)
    mindspore.load_param_into_net(half, Tokenizer(TOKENIZER, seed=5).parameters_dict())
    half.save(tmp_path / "other.safetensors")
    for other in (half, Tokenizer.load(tmp_path / "other.safetensors")):
        with pytest.raises(InputError, match="expected the tokenizer that it was trained with"):
            check_pair(model, other)


def legacy(path, state):
    torch.save(state, path.with_name("old.pth"), _use_new_zipfile_serialization=False)
    return path.with_name("old.pth")


def misnamed(path, _state):
    return path.rename(path.with_name("other.safetensors"))


def without_metadata(path, state):
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    save_file(arrays, path.with_name("hub.safetensors"), {"format": "pt"})
    return path.with_name("hub.safetensors")


def of_a_trainer(path, state):
    torch.save({"trainer": {"var_wo_ddp": state}}, path.with_name("ar-ckpt-best.pth"))
    return path.with_name("ar-ckpt-best.pth")


def mindspore_ckpt(path, _state):
    return convert(path, path.with_name("other.ckpt")).target


def mindspore_misnamed(path, state):
    return mindspore_ckpt(path, state).rename(path.with_name("other"))


def other_suffix(path, _state):
    return path.rename(path.with_name("pytorch model.bin"))


OTHERS = [legacy, misnamed, without_metadata, of_a_trainer, mindspore_ckpt, mindspore_misnamed]


@pytest.mark.parametrize("made", [*OTHERS, other_suffix])
def test_the_command_that_a_refusal_names_makes_the_file(save_pth, made):
    path, state = save_pth(TRANSFORMER)
    foreign = made(path, state)
    with pytest.raises(InputError, match="var-convert") as error:
        Transformer.load(foreign)
    *move, command = str(error.value).rpartition(": ")[2].split(" && ")
    if move:
        _, source, target = shlex.split(move[0])
        Path(source).rename(target)
    words = shlex.split(command)[1:]
    assert main(words) == 0
    loaded = Transformer.load(words[1])
    np.testing.assert_array_equal(loaded.head.bias.asnumpy(), state["head.bias"].numpy())
