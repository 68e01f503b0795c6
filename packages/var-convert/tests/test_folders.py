"""Weights in several files: indices with shards, and folders as the hub lays them out."""

import json
import shutil

import pytest
import tiny
from safetensors.torch import load_file, save_file
from var_convert import convert, inspect, verify
from var_convert.cli import main
from var_convert.formats import folders
from var_tokenizer.common import InputError

torch = pytest.importorskip("torch")


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(folders, "SHARD_BYTES", 20_000)


@pytest.fixture
def hub(files, tmp_path):
    return convert(files[".pth"], tmp_path / "hub").target


def test_a_folder_holds_what_the_hubs_mixin_reads(hub, files):
    config = json.loads((hub / "config.json").read_text())
    assert config["patch_nums"] == [1, 2, 3] and config["embed_dim"] == 32
    assert (config["num_classes"], config["depth"], config["num_heads"]) == (5, 2, 2)
    assert not config["shared_aln"] and config["attn_l2_norm"]
    state = torch.load(files[".pth"], weights_only=True)
    held = load_file(hub / "model.safetensors")
    assert held.keys() == state.keys()  # for load_state_dict(strict=True)
    assert all(torch.equal(held[name], state[name]) for name in state)


@pytest.mark.parametrize(("count", "stated"), [(4, 4), (1, 1), (3, 0)])
def test_a_tokenizers_folder_names_its_shared_convolutions(save_pth, tmp_path, count, stated):
    path, _ = save_pth(tiny.tokenizer(phi_count=count), change=_published(count))
    folder = convert(path, tmp_path / "hub").target
    config = json.loads((folder / "config.json").read_text())
    assert config["share_quant_resi"] == stated
    assert (config["ch"], config["z_channels"], config["vocab_size"]) == (32, 8, 32)
    assert config["v_patch_nums"] == [1, 2, 3] and config["using_znorm"] is False


def _published(count):
    own = "quant_resi." if count == 3 else "quant_resi.qresi_ls."
    return lambda state: {n.replace("quant_resi.qresi_ls.", own): t for n, t in state.items()}


def test_large_models_are_written_in_shards(small_shards, files, tmp_path):
    for target in (tmp_path / "hub", tmp_path / "a" / "model.safetensors.index.json"):
        convert(files[".safetensors"], target)
        folder = tmp_path / "hub" if target.suffix != ".json" else target.parent
        shards = sorted(folder.glob("model-*-of-*.safetensors"))
        assert len(shards) > 2 and not (folder / "model.safetensors").exists()
        assert all(shard.stat().st_size < 40_000 for shard in shards)
        assert verify(files[".pth"], target).agrees()
        again = convert(target, tmp_path / "again.safetensors", force=True).target
        assert again.read_bytes() == files[".safetensors"].read_bytes()


def test_the_config_beside_foreign_weights_says_what_they_leave_open(save_pth, tmp_path):
    _, state = save_pth(tiny.tokenizer())
    config = {"v_patch_nums": [1, 2, [3, 4]], "using_znorm": True}
    _lay_out(tmp_path / "vae", state, config)
    found = inspect(tmp_path / "vae")
    assert found.config.scales == (1, 2, (3, 4)) and found.config.using_znorm
    assert found.assumed == ()
    _, state = save_pth(tiny.transformer(heads=4, qk_l2_norm=False))
    _lay_out(tmp_path / "var", state, {"num_heads": 4})
    assert inspect(tmp_path / "var").config.heads == 4
    assert inspect(tmp_path / "var").assumed == ()


def test_a_file_that_is_named_has_the_config_beside_it(save_pth, files, tmp_path, refused):
    _, state = save_pth(tiny.tokenizer())
    state["quantize.ema_vocab_hit_SV"].zero_()
    config = {"v_patch_nums": [1, 2, 4], "using_znorm": True}
    _lay_out(tmp_path / "vae", state, config)
    found = inspect(tmp_path / "vae" / "model.safetensors")
    assert found.config.scales == (1, 2, 4) and found.config.using_znorm
    for name in ("model.safetensors", "other.safetensors"):  # the folder does not say which
        save_file(state, tmp_path / "vae" / name)
    assert "name its file" in refused(tmp_path / "vae", tmp_path / "x.ckpt")
    found = inspect(tmp_path / "vae" / "other.safetensors")
    assert found.config.scales == (1, 2, 4) and found.config.using_znorm
    (tmp_path / "vae" / "config.json").write_text(json.dumps(config | {"using_znorm": "False"}))
    message = refused(tmp_path / "vae" / "other.safetensors", tmp_path / "x.ckpt")
    assert "using_znorm is 'False'; expected True or False" in message


def test_a_file_that_says_all_of_itself_needs_no_config(hub, files, tmp_path):
    shutil.copy(files[".safetensors"], tmp_path / "m.safetensors")
    (tmp_path / "config.json").write_text("of another program")
    assert verify(tmp_path / "m.safetensors", files[".pth"]).agrees()
    assert inspect(hub / "model.safetensors").assumed == ()


def _lay_out(folder, state, config):
    folder.mkdir()
    save_file({n: t.contiguous() for n, t in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))


BAD_CONFIGS = {
    "no JSON": "{",
    "a list": "[]",
    "deep": "[" * 100_000,
    "a name twice": '{"a": 1, "a": 2}',
    "scales that are text": '{"patch_nums": "123"}',
    "scales that shrink": '{"patch_nums": [3, 2, 1]}',
    "vast scales": '{"patch_nums": [1, 1000000000]}',
    "scales of nothing": '{"patch_nums": 3}',
    "heads of text": '{"num_heads": "many"}',
    "escape sequences": '{"num_heads": "\\u001b[2J"}',
    "our own notes, wrong": '{"var_mindspore": {"format": "var-mindspore", "kind": "x"}}',
}


@pytest.mark.parametrize("text", BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_an_unusable_config_is_refused(refused, files, tmp_path, text):
    folder = tmp_path / "hub"
    folder.mkdir()
    state = torch.load(files[".pth"], weights_only=True)
    save_file(dict(state), folder / "model.safetensors")
    (folder / "config.json").write_text(text)
    message = refused(folder, tmp_path / "o.ckpt")
    assert str(folder) in message and message.isprintable() and len(message) < 3000


BAD_PLACES = [
    "../model.safetensors",
    "/etc/passwd",
    "",
    "..",
    "a/b.safetensors",
    "\x1b[2J",
    3,
    None,
]


@pytest.mark.parametrize("place", BAD_PLACES)
def test_an_index_names_nothing_but_files_beside_it(refused, files, tmp_path, place):
    shutil.copy(files[".safetensors"], tmp_path / "model.safetensors")
    (tmp_path / "a").mkdir()
    index = tmp_path / "a" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"head.bias": place}}))
    message = refused(index, tmp_path / "o.ckpt")
    assert "weight_map" in message and message.isprintable()


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_an_unusable_index_is_refused(refused, tmp_path, content):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(content)
    assert str(index) in refused(index, tmp_path / "o.ckpt")


def test_an_index_that_names_itself_is_refused(refused, tmp_path):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"head.bias": index.name}}))
    refused(index, tmp_path / "o.ckpt")


def test_a_missing_shard_and_a_misplaced_tensor_are_named(small_shards, refused, files, tmp_path):
    index = convert(files[".pth"], tmp_path / "model.safetensors.index.json").target
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    text = index.read_text()
    content = json.loads(text)
    name = next(n for n, place in content["weight_map"].items() if place == shards[0].name)
    content["weight_map"][name] = shards[1].name
    index.write_text(json.dumps(content))
    assert name in refused(index, tmp_path / "o.ckpt")
    index.write_text(text)
    shards[0].unlink()
    assert shards[0].name in refused(index, tmp_path / "o.ckpt")


def test_a_folder_of_several_models_or_none_is_refused(refused, files, tmp_path):
    folder = tmp_path / "several"
    folder.mkdir()
    assert "without weights" in refused(folder, tmp_path / "o.ckpt")
    for name in ("var_d16.pth", "var_d20.pth"):
        shutil.copy(files[".pth"], folder / name)
    message = refused(folder, tmp_path / "o.ckpt")
    assert "var_d16.pth, var_d20.pth" in message


def test_a_folder_or_an_index_is_replaced_only_by_force(small_shards, refused, files, tmp_path):
    index = tmp_path / "m.safetensors.index.json"
    for target, former in ((tmp_path / "hub", "config.json"), (index, index.name)):
        convert(files[".pth"], target)
        assert former in refused(files[".pth"], target)
        assert main([str(files[".pth"]), str(target), "--force"]) == 0
    index.unlink()
    assert "m-0000" in refused(files[".pth"], index)


def test_a_folder_with_other_weights_is_left_alone(refused, files, tmp_path):
    folder = tmp_path / "hub"
    folder.mkdir()
    shutil.copy(files[".ckpt"], folder / "mine.ckpt")
    assert "mine.ckpt" in refused(files[".pth"], folder)
    assert "mine.ckpt" in refused(files[".pth"], folder, "--force")


def test_a_folder_that_cannot_be_finished_leaves_nothing(files, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folders, "write_safetensors", full)
    for target in (tmp_path / "hub", tmp_path / "m.safetensors.index.json"):
        with pytest.raises(InputError, match="No space left"):
            convert(files[".pth"], target)
    assert list(tmp_path.iterdir()) == []
