"""Trainings that change their framework: checkpoints <-> a PyTorch trainer's file."""

import copy
import dataclasses

import numpy as np
import pytest
import tiny
from var_convert import convert_training, inspect
from var_convert.cli import main
from var_tokenizer.common import InputError, Snapshot, read_snapshot, write_snapshot

torch = pytest.importorskip("torch")

from var_convert.reference import TorchTransformer  # noqa: E402

CONFIG = tiny.transformer(depth=1)
STEPS = 3


def is_decayed(name, parameter):
    return parameter.ndim > 1 and not any(
        part in name for part in ("pos_", "lvl_embed", "scale_mul", "ada_gss")
    )


def groups(model, how):
    """Parameters as trainers give them to AdamW."""
    named = dict(model.named_parameters())
    if how == "all":
        return list(named.values())
    if how == "named":
        return list(named.items())
    decayed = [n for n, p in named.items() if is_decayed(n, p)]
    rest = [n for n in named if n not in decayed]
    return [
        {"params": [named[n] for n in rest], "weight_decay": 0.0},
        {"params": [named[n] for n in decayed], "weight_decay": 0.05},
    ]


@pytest.fixture(scope="module")
def trained(random_model):
    """A model after a few steps, and its AdamW, for each way to group the parameters."""

    def train(how):
        model = copy.deepcopy(random_model(CONFIG)).requires_grad_(True)
        adamw = torch.optim.AdamW(groups(model, how), 1e-3, (0.9, 0.95), weight_decay=0.05)
        noise = torch.Generator().manual_seed(0)
        length = CONFIG.schedule.length - 1
        inputs = torch.randn(2, length, CONFIG.latent_channels, generator=noise)
        for _ in range(STEPS):
            adamw.zero_grad()
            model(torch.tensor([0, 1]), inputs).square().mean().backward()
            adamw.step()
        return model, adamw

    return {how: train(how) for how in ("all", "named", "groups")}


def content(model, adamw):
    return {"model": model.state_dict(), "optimizer": adamw.state_dict(), "step": STEPS + 1}


def saved(tmp_path, what, name="trainer.pth"):
    torch.save(what, tmp_path / name)
    return tmp_path / name


def snapshot_of(folder):
    (path,) = folder.glob("checkpoints/transformer/step-*.safetensors")
    return path, read_snapshot(path)


WRAPPED = {
    "as documented": lambda c: c,
    "state_dict": lambda c: {
        "state_dict": c["model"],
        "optimizer_state_dict": c["optimizer"],
        "global_step": c["step"],
        "epoch": 2,
    },
    "the released trainer's": lambda c: {
        "trainer": {"var_wo_ddp": c["model"], "var_opt": {"optimizer": c["optimizer"]}},
        "step": c["step"],
    },
    "distributed": lambda c: {**c, "model": {f"module.{n}": t for n, t in c["model"].items()}},
}


@pytest.mark.parametrize("wrapped", WRAPPED)
@pytest.mark.parametrize("how", ["all", "named", "groups"])
def test_a_trainers_file_becomes_a_checkpoint_with_every_moment(trained, tmp_path, how, wrapped):
    model, adamw = trained[how]
    path = saved(tmp_path, WRAPPED[wrapped](content(model, adamw)))
    result = convert_training(path, tmp_path / "run")
    found_path, found = snapshot_of(tmp_path / "run")
    assert result.target == found_path and result.step == found.step == STEPS + 1
    arrays = dict(found.arrays)
    for name, parameter in model.named_parameters():
        state = adamw.state[parameter]
        for prefix, tensor in (
            ("transformer/", parameter),
            ("optimizer/first_moment.", state["exp_avg"]),
            ("optimizer/second_moment.", state["exp_avg_sq"]),
        ):
            array = arrays.pop(f"{prefix}{name}")
            np.testing.assert_array_equal(array, tensor.detach().numpy())
    assert not arrays
    assert found.state["stage"]["optimizer"]["skipped"] == 1
    assert inspect(found_path).config == CONFIG


def test_a_checkpoint_becomes_a_file_that_pytorch_loads_with_every_moment(trained, tmp_path):
    model, adamw = trained["groups"]
    convert_training(saved(tmp_path, content(model, adamw)), tmp_path / "run")
    path, _ = snapshot_of(tmp_path / "run")
    back = tmp_path / "back.pth"
    assert main(["training", str(path), str(back)]) == 0
    loaded = torch.load(back, weights_only=True)
    assert list(loaded) == ["model", "optimizer", "step"] and loaded["step"] == STEPS + 1
    other = TorchTransformer(CONFIG)
    other.load_state_dict(loaded["model"], strict=True)
    again = torch.optim.AdamW(groups(other, "groups"))
    again.load_state_dict(loaded["optimizer"])
    for ours, theirs in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        for name, value in adamw.state[theirs].items():
            assert torch.equal(again.state[ours][name], value), name
    for ours, theirs in zip(again.param_groups, adamw.param_groups, strict=True):
        for name in ("lr", "betas", "eps", "weight_decay", "amsgrad"):
            assert ours[name] == theirs[name], name


def test_averaged_weights_go_both_ways(trained, tmp_path):
    model, adamw = trained["all"]
    ema = {n: t + 1 if t.is_floating_point() else t for n, t in model.state_dict().items()}
    ema |= {n: t for n, t in model.state_dict().items() if "bias_for" in n or "zero_k" in n}
    path = saved(tmp_path, content(model, adamw) | {"ema": ema})
    assert convert_training(path, tmp_path / "run").averaged
    found_path, found = snapshot_of(tmp_path / "run")
    for name, parameter in model.named_parameters():
        expected = parameter.detach().numpy() + 1
        np.testing.assert_array_equal(found.arrays[f"ema/ema.{name}"], expected)
    assert convert_training(found_path, tmp_path / "back.pth").averaged
    loaded = torch.load(tmp_path / "back.pth", weights_only=True)
    assert all(torch.equal(loaded["ema"][name], tensor) for name, tensor in ema.items())


def without(place, key):
    place = dict(place)
    del place[key]
    return place


def changed_state(adamw, change):
    state = copy.deepcopy(adamw.state_dict())
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: without(c, "optimizer"), "no state of an optimizer"),
        (lambda c: c["optimizer"]["state"].pop(0), "no exp_avg and exp_avg_sq of parameter 0"),
        (lambda c: c["optimizer"]["param_groups"][0]["params"].pop(), "parameters; expected"),
        (lambda c: c["optimizer"]["state"][0].update(step=torch.tensor(9.0)), "3 to 9 updates"),
        (lambda c: c["optimizer"]["state"][0].update(step=torch.tensor(1.5)), "step is 1.5"),
        (lambda c: c["optimizer"]["state"][0].update(exp_avg=7), "no exp_avg and exp_avg_sq"),
        (lambda c: c["optimizer"]["param_groups"][0].update(amsgrad=True), "amsgrad is True"),
        (lambda c: c["optimizer"].update(param_groups=3), "no param_groups"),
        *(
            (
                lambda c, name=name: c["optimizer"]["param_groups"][0].update(
                    {name: torch.zeros(2)}
                ),
                message,
            )
            for name, message in (
                ("amsgrad", "amsgrad is tensor"),
                ("weight_decay", "a Tensor where a number"),
                ("lr", "a Tensor where a number"),
            )
        ),
        (lambda c: c.update(step=1), "its step is 1 and that of its optimizer 3"),
        (lambda c: c.update(step="x"), "has a str where a number is expected"),
        (
            lambda c: c["optimizer"]["state"][0].update(exp_avg=torch.zeros(7)),
            "0 groups of its optimizer go on with a moment",
        ),
        (
            lambda c: c["optimizer"]["param_groups"].append(
                c["optimizer"]["param_groups"][0] | {"params": []}
            ),
            None,
        ),
    ],
)
def test_an_optimizer_that_is_not_the_models_is_refused(trained, tmp_path, change, message):
    found = copy.deepcopy(content(*trained["all"]))
    replaced = change(found)
    found = replaced if isinstance(replaced, dict) and "model" in replaced else found
    path = saved(tmp_path, found)
    if message is None:
        convert_training(path, tmp_path / "run")
        return
    with pytest.raises(InputError, match=message) as error:
        convert_training(path, tmp_path / "run")
    assert str(error.value).isprintable() and not (tmp_path / "run").exists()


def test_groups_that_do_not_tell_their_parameters_apart_are_refused(trained, tmp_path):
    model, _ = trained["all"]
    biases = [p for n, p in model.named_parameters() if n.endswith(("q_bias", "v_bias"))]
    rest = [p for p in model.parameters() if not any(p is bias for bias in biases)]
    first, second = ({"params": [bias]} for bias in biases)
    adamw = torch.optim.AdamW([first, second, {"params": rest}])
    for p in model.parameters():
        zeros = torch.zeros_like(p)
        adamw.state[p] = {"step": torch.tensor(1.0), "exp_avg": zeros, "exp_avg_sq": zeros}
    path = saved(tmp_path, content(model, adamw))
    with pytest.raises(InputError, match="groups of its optimizer go on with"):
        convert_training(path, tmp_path / "run")


def test_a_target_that_would_be_lost_or_mistaken_is_refused(trained, tmp_path, refused):
    path = saved(tmp_path, content(*trained["all"]))
    convert_training(path, tmp_path / "full")
    checkpoint, _ = snapshot_of(tmp_path / "full")
    assert "holds 1 checkpoint" in refused("training", path, tmp_path / "full")
    assert "give --force" in refused("training", checkpoint, path)
    for target in (tmp_path / "x.ckpt", tmp_path / "run" / "checkpoints" / "transformer"):
        assert "or the folder of a run" in refused("training", path, target)
    missing = tmp_path / "missing.pth"
    assert f"{missing}: cannot read this file" in refused("training", missing, tmp_path / "run")
    assert main(["training", str(checkpoint), str(path), "--force"]) == 0


@pytest.mark.parametrize("name", ["missing.pth", "folder", "a" * 300])
def test_a_source_that_is_no_file_is_refused(tmp_path, refused, name):
    (tmp_path / "folder").mkdir()
    assert name in refused("training", tmp_path / name, tmp_path / "run")


def test_checkpoints_that_cannot_change_are_refused(trained, tmp_path, refused):
    convert_training(saved(tmp_path, content(*trained["all"])), tmp_path / "full")
    path, found = snapshot_of(tmp_path / "full")
    unknown = found.state["stage"]["optimizer"] | {"undecayed": ["undecayed"]}
    said = []
    for changed in (
        dataclasses.replace(found, model={**found.model, "kind": "tokenizer"}),
        dataclasses.replace(found, state={"stage": {"optimizer": {"skipped": 0}}}),
        Snapshot(
            1, without(found.arrays, "optimizer/first_moment.head.bias"), found.state, found.model
        ),
        Snapshot(1, without(found.arrays, "transformer/head.bias"), found.state, found.model),
        dataclasses.replace(found, state={"stage": {"optimizer": unknown}}),
    ):
        write_snapshot(path, changed)
        said.append(refused("training", path, tmp_path / "x.pth"))
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    said.append(refused("training", path, tmp_path / "x.pth"))
    for line, expected in zip(
        said,
        (
            "of a tokenizer",
            "does not describe its",
            "1 missing",
            "missing",
            "no weight has",
            "damaged",
        ),
        strict=True,
    ):
        assert expected in line
