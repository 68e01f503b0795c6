"""Every kind of file that the field writes is read, converted and verified: one line a kind."""

import argparse
import json
import shutil
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mindspore
import numpy as np
import pytest
import tiny
from safetensors.torch import save_file
from var_convert import convert, inspect, verify
from var_convert.formats import folders

torch = pytest.importorskip("torch")

CONFIGS = {"var": tiny.transformer(), "vae": tiny.tokenizer()}
CONVERTED = ("native.safetensors", "plain.pth")


@dataclass(frozen=True)
class Material:
    """The PyTorch reference of one model, a folder to write to, and its plain .pth."""

    model: Any
    other: Any
    folder: Path

    @property
    def state(self) -> dict[str, Any]:
        return dict(self.model.state_dict())

    @property
    def plain(self) -> Path:
        return self.folder / "plain.pth"


@dataclass(frozen=True)
class Kind:
    """write: makes the file and returns its path. chosen: what a reader has to say besides."""

    write: Callable[[Material], Path]
    chosen: dict[str, Any] = field(default_factory=dict)
    of: tuple[str, ...] = ("var", "vae")


def saved(name: str, wrap: Callable[[Material], Any], **options: Any) -> Callable[[Material], Path]:
    def write(m: Material) -> Path:
        torch.save(wrap(m), m.folder / name, **options)
        return m.folder / name

    return write


def prefixed(prefix: str, state: dict[str, Any]) -> dict[str, Any]:
    return {prefix + name: tensor for name, tensor in state.items()}


def named(prefix: str) -> Callable[[Material], Path]:
    return saved("model.pth", lambda m: prefixed(prefix, m.state))


def under(*keys: str, **beside: Any) -> Callable[[Material], Any]:
    def wrap(m: Material) -> Any:
        held: Any = m.state
        for key in reversed(keys):
            held = {**beside, key: held}
        return held

    return wrap


def through(name: str) -> Callable[[Material], Path]:
    return lambda m: convert(m.plain, m.folder / name).target


def compiled_blocks(m: Material) -> dict[str, Any]:
    parts = {name: name.split(".") for name in m.state}
    return {
        ".".join([*p[:2], "_orig_mod", *p[2:]]) if p[0] in ("blocks", "encoder") else name: t
        for (name, t), p in zip(m.state.items(), parts.values(), strict=True)
    }


def wrapped(wrap: Callable[[Any], Any]) -> Callable[[Material], Any]:
    return lambda m: wrap(m.model).state_dict()


def trainer(m: Material) -> Any:
    kinds = {"TorchTokenizer": "vae_local", "TorchTransformer": "var_wo_ddp"}
    held = {kinds[type(model).__name__]: model.state_dict() for model in (m.model, m.other)}
    return {"epoch": 3, "iter": 0, "args": {"depth": 16}, "trainer": held}


def with_optimizer(m: Material) -> Any:
    parameters = [torch.nn.Parameter(p.detach().clone()) for p in m.model.parameters()]
    optimizer = torch.optim.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = {"model_state_dict": m.state, "optimizer_state_dict": optimizer.state_dict()}
    return {**state, "epoch": 3, "loss": torch.tensor(6.5)}


LIGHTNING = {
    "epoch": 3,
    "global_step": 100,
    "pytorch-lightning_version": "2.4.0",
    "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(6.5)}},
    "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
}


def mindspore_file(tensors: dict[str, Any], path: Path) -> Path:
    held = [{"name": n, "data": mindspore.Tensor(t.numpy())} for n, t in tensors.items()]
    mindspore.save_checkpoint(held, str(path))
    return path


def of_the_mindspore_trainer(m: Material) -> Path:
    state = {n: t for n, t in m.state.items() if "zero_k_bias" not in n and "attn_bias" not in n}
    if "lvl_1L" in state:
        state["lvl_1L"] = state["lvl_1L"].to(torch.int32)
    return mindspore_file(prefixed("var.", state), m.folder / "model.ckpt")


def with_moments(m: Material) -> Path:
    moments = prefixed("adam_m.", m.state) | prefixed("adam_v.", m.state)
    counters = {"global_step": torch.tensor(7), "learning_rate": torch.tensor(1e-4)}
    return mindspore_file({**m.state, **moments, **counters}, m.folder / "model.ckpt")


def foreign_safetensors(m: Material, name: str = "model.safetensors", prefix: str = "") -> Path:
    path = m.folder / name
    path.parent.mkdir(exist_ok=True)
    save_file({n: t.contiguous() for n, t in prefixed(prefix, m.state).items()}, path)
    return path


def foreign_shards(m: Material, folder: Path, suffix: str = ".safetensors") -> Path:
    folder.mkdir(exist_ok=True)
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    names, places = list(m.state), {}
    for i in range(3):
        part = {name: m.state[name].contiguous() for name in names[i::3]}
        place = f"{stem}-0000{i + 1}-of-00003{suffix}"
        save_file(part, folder / place) if suffix == ".safetensors" else torch.save(
            part, folder / place
        )
        places |= dict.fromkeys(part, place)
    index = folder / f"{stem}{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": places}))
    return index


def hub(m: Material, write: Callable[[Material, Path], Any]) -> Path:
    folder = m.folder / "hub"
    folder.mkdir()
    write(m, folder)
    (folder / "config.json").write_text(json.dumps({"depth": 2, "model_type": "var"}))
    (folder / "README.md").write_text("# A model card")
    return folder


def of_the_mixin(m: Material) -> Path:
    mixin = pytest.importorskip("huggingface_hub").PyTorchModelHubMixin

    class OnTheHub(type(m.model), mixin):  # type: ignore[misc]
        def __init__(self, patch_nums: tuple[int, ...] = (1, 2, 3)) -> None:
            super().__init__(m.model.config)

    model = OnTheHub(patch_nums=(1, 2, 3))
    model.load_state_dict(m.state)
    model.save_pretrained(m.folder / "mixin")
    return m.folder / "mixin"


def our_shards(m: Material) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folders, "SHARD_BYTES", 50_000)
        return convert(m.plain, m.folder / "model.safetensors.index.json").target


def our_sharded_folder(m: Material) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folders, "SHARD_BYTES", 50_000)
        return convert(m.plain, m.folder / "sharded").target


def ours_in_a_trainer(m: Material) -> Path:
    native = convert(m.plain, m.folder / "again.pth", scales=(1, 2, 3)).target
    state = torch.load(native, weights_only=True)
    torch.save({"model": state}, m.folder / "wrapped.pth")
    return m.folder / "wrapped.pth"


def cast(dtype: Any) -> Callable[[Material], Any]:
    return lambda m: {n: t.to(dtype) if t.is_floating_point() else t for n, t in m.state.items()}


NAMESPACE = argparse.Namespace(depth=16, lr=1e-4, nested=argparse.Namespace(a=[1, None]))
SCALARS = {"best": np.float64(6.5), "step": np.int64(7), "curve": np.arange(3.0)}

KINDS = {
    "a state dict": Kind(saved("model.pth", lambda m: m.model.state_dict())),
    "a dict of tensors": Kind(saved("model.pth", lambda m: m.state)),
    "of PyTorch before 1.6": Kind(
        saved("model.pth", lambda m: m.state, _use_new_zipfile_serialization=False)
    ),
    ".pt": Kind(saved("model.pt", lambda m: m.state)),
    ".bin": Kind(saved("pytorch_model.bin", lambda m: m.state)),
    ".pth.tar": Kind(saved("checkpoint.pth.tar", under("state_dict", epoch=90))),
    ".PTH": Kind(saved("MODEL.PTH", lambda m: m.state)),
    "without a suffix": Kind(saved("model", lambda m: m.state)),
    "PyTorch under the name of safetensors": Kind(saved("a.safetensors", lambda m: m.state)),
    "parameters": Kind(
        saved("model.pth", lambda m: OrderedDict(m.model.named_parameters()) | m.state)
    ),
    "float64": Kind(saved("model.pth", cast(torch.float64))),
    "DataParallel": Kind(saved("model.pth", wrapped(torch.nn.DataParallel))),
    "compiled": Kind(named("_orig_mod.")),  # torch.compile takes eight seconds to import
    "compiled DataParallel": Kind(named("_orig_mod.module.")),
    "blocks compiled one by one": Kind(saved("model.pth", compiled_blocks)),
    "FSDP": Kind(named("_fsdp_wrapped_module.")),
    "an averaged model": Kind(saved("model.pth", wrapped(torch.optim.swa_utils.AveragedModel))),
    "names after ema.": Kind(named("ema.")),
    "names after var.": Kind(named("var.")),
    "under model": Kind(saved("model.pth", under("model"))),
    "under ema": Kind(saved("model.pth", under("ema", step=3))),
    "under model_ema": Kind(saved("model.pth", under("model_ema"))),
    "under state_dict": Kind(saved("model.pth", under("state_dict"))),
    "under module": Kind(saved("mp_rank_00_model_states.pt", under("module"))),
    "model and ema": Kind(
        saved("model.pth", lambda m: {"model": cast(torch.float16)(m), "ema": m.state}),
        {"key": "ema"},
    ),
    "with an optimizer": Kind(saved("model.pth", with_optimizer)),
    "Lightning": Kind(
        saved("last.ckpt", lambda m: {**LIGHTNING, "state_dict": prefixed("model.", m.state)})
    ),
    "of the published trainer": Kind(
        saved("ar-ckpt-last.pth", trainer), {"only": "transformer"}, of=("var",)
    ),
    "tokenizer of the published trainer": Kind(
        saved("ar-ckpt-last.pth", trainer), {"only": "tokenizer"}, of=("vae",)
    ),
    "a fine-tune without guidance": Kind(
        saved("cca.pth", under("trainer", "var_wo_ddp", beta=0.02)), of=("var",)
    ),
    "with argparse.Namespace": Kind(saved("model.pth", under("model", args=NAMESPACE))),
    "with NumPy's scalars": Kind(saved("model.pth", under("model", **SCALARS))),
    "levels as int32": Kind(
        saved("model.pth", lambda m: m.state | {"lvl_1L": m.state["lvl_1L"].int()}), of=("var",)
    ),
    "without derived buffers": Kind(
        saved("model.pth", lambda m: dict(m.model.named_parameters())),
        {"scales": (1, 2, 3)},
        of=("var",),
    ),
    "a native .pth": Kind(through("native.pth")),
    "a native .pth, wrapped": Kind(ours_in_a_trainer),
    "MindSpore": Kind(lambda m: mindspore_file(m.state, m.folder / "model.ckpt")),
    "of the MindSpore trainer": Kind(of_the_mindspore_trainer),
    "MindSpore with an optimizer": Kind(with_moments),
    "a native .ckpt": Kind(through("native2.ckpt")),
    "MindSpore under another name": Kind(
        lambda m: mindspore_file(m.state, m.folder / "m.ckpt").rename(m.folder / "m.bin")
    ),
    "native": Kind(through("native2.safetensors")),
    "safetensors": Kind(foreign_safetensors),
    "safetensors with a prefix": Kind(lambda m: foreign_safetensors(m, prefix="module.")),
    "shards": Kind(lambda m: foreign_shards(m, m.folder / "shards")),
    "shards of PyTorch": Kind(lambda m: foreign_shards(m, m.folder / "shards", ".bin")),
    "native shards": Kind(our_shards),
    "a folder of the hub": Kind(
        lambda m: hub(m, lambda m, _: foreign_safetensors(m, "hub/model.safetensors"))
    ),
    "a folder of the hub with PyTorch's": Kind(
        lambda m: hub(m, lambda m, f: torch.save(m.state, f / "pytorch_model.bin"))
    ),
    "a folder of the hub with both": Kind(
        lambda m: hub(
            m,
            lambda m, f: (
                foreign_safetensors(m, "hub/model.safetensors"),
                shutil.copy(m.plain, f / "pytorch_model.bin"),
            ),
        )
    ),
    "a folder of the hub with shards": Kind(lambda m: hub(m, foreign_shards)),
    "PyTorchModelHubMixin": Kind(of_the_mixin),
    "a native folder": Kind(through("folder")),
    "a native folder with shards": Kind(our_sharded_folder),
}
CASES = [(kind, which) for kind in KINDS for which in KINDS[kind].of]


@pytest.fixture(scope="module")
def models(random_model):
    return {which: random_model(config) for which, config in CONFIGS.items()}


def test_the_table_has_at_least_thirty_kinds():
    assert len(KINDS) >= 30


@pytest.mark.parametrize(("name", "which"), CASES)
def test_a_kind_of_file_is_read_converted_and_verified(models, tmp_path, name, which):
    other = models["vae" if which == "var" else "var"]
    material = Material(models[which], other, tmp_path)
    torch.save(material.state, material.plain)
    expected = inspect(material.plain)
    kind = KINDS[name]
    path = kind.write(material)
    found = inspect(path, **kind.chosen)
    assert (found.checksum, found.config) == (expected.checksum, expected.config)
    for target in CONVERTED:
        target = convert(path, tmp_path / "converted" / target, **kind.chosen).target
        assert inspect(target).checksum == expected.checksum
        assert verify(path, target, **kind.chosen).agrees()
    back = torch.load(tmp_path / "converted" / "plain.pth", weights_only=True)
    assert back.keys() == material.state.keys()
