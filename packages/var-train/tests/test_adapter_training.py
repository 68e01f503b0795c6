"""LoRA in the transformer's stage: exact in resumption, and the base stays as it is."""

import dataclasses
import logging
from pathlib import Path

import numpy as np
import pytest
import tiny
from image_tree import write_image_tree
from mindspore import Tensor
from var_tokenizer import Tokenizer
from var_tokenizer.common import InputError
from var_train import AdamWConfig, RunConfig, SamplingConfig, TokenSet, run_training
from var_train.commands.models import build_transformer
from var_train.training.adapter_training import AdapterTraining, new_classes
from var_train.training.transformer_stage import TransformerStageConfig
from var_transformer import (
    LoraConfig,
    Transformer,
    WeightedAdapter,
    load_adapter,
    merge_adapters,
)

SCALES = (1, 2, (2, 3))
TOKENIZER = tiny.tokenizer(channel_multipliers=(1,), scales=SCALES)
MODEL = tiny.transformer(depth=1, num_classes=2, scales=SCALES)
LORA = LoraConfig(rank=2, targets=("attn.*", "fc1", "fc2", "ada_lin", "head"))
STAGE = TransformerStageConfig(
    epochs=2, batch=8, optimizer=AdamWConfig(1e-2), lora=LORA, samples_per_class=0
)
CLASSES = ("new", "b")  # in the data; the model has a and b


def tokens(count: int, seed: int) -> TokenSet:
    """Each class has its own four tokens."""
    rng = np.random.default_rng(seed)
    labels_n = rng.integers(0, 2, count).astype(np.int32)
    ids_nl = 4 * labels_n[:, None] + rng.integers(0, 4, (count, MODEL.schedule.length))
    return TokenSet(ids_nl.astype(np.int32), labels_n)


TRAIN, VAL = tokens(32, 0), tokens(7, 1)


def base() -> Transformer:
    model = Transformer(MODEL, 0, gate_gain=1.0)
    model.class_names = ("a", "b")
    return model


def training(stage: TransformerStageConfig = STAGE, model: Transformer | None = None):
    tokenizer = Tokenizer(TOKENIZER, 0)
    return AdapterTraining(model or base(), tokenizer, TRAIN, VAL, stage, 0, CLASSES)


def run(stage: AdapterTraining, begin: int, end: int) -> list[dict]:
    steps = [stage.train_step(step) for step in range(begin, end)]
    return [{k: v for k, v in s.items() if not k.startswith("seconds")} for s in steps]


def held(stage: AdapterTraining) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in stage.state()[0].items()}


def test_a_run_resumed_at_any_step_gives_the_same_losses_and_adapter():
    config = dataclasses.replace(STAGE, ema=0.9)
    whole, at = training(config), []
    expected = []
    for step in range(whole.steps):
        at.append((held(whole), whole.state()[1]))
        expected += run(whole, step, step + 1)
    assert expected[-1]["loss"] < expected[0]["loss"]
    resumed = training(config)
    for step, (arrays, state) in enumerate(at):
        resumed.restore(arrays, state)
        assert run(resumed, step, step + 1) == expected[step : step + 1]
        following = at[step + 1][0] if step + 1 < len(at) else held(whole)
        for name, array in held(resumed).items():
            np.testing.assert_array_equal(array, following[name], name)
    groups = {name.partition("/")[0] for name in at[0][0]}
    assert groups == {"adapter", "optimizer", "ema"}  # nothing of the base


def test_training_leaves_the_base_and_validating_leaves_the_training(tmp_path):
    model, before = base(), base().published_tensors()
    stage = training(dataclasses.replace(STAGE, samples_per_class=1), model)
    run(stage, 0, 3)
    arrays = held(stage)
    measured = stage.validate(2)
    assert {n: (a == arrays[n]).all() for n, a in held(stage).items()} == dict.fromkeys(
        arrays, True
    )
    now = {name: p.asnumpy() for name, p in model.parameters_and_names()}
    table_nc = np.delete(now["class_emb.weight"], 2, 0)  # the new class is behind the others
    np.testing.assert_array_equal(table_nc, before.pop("class_emb.weight"))
    for name, array in before.items():
        np.testing.assert_array_equal(now[name], array, name)

    stage.save(tmp_path / "transformer.safetensors")
    stage.save(tmp_path / "transformer-best.safetensors")
    merged = base()
    merge_adapters(merged, [WeightedAdapter(load_adapter(tmp_path / "adapter-best"))])
    stage.finish()
    assert merged.class_names == model.class_names == ("a", "b", "new")
    for name, array in model.published_tensors().items():
        np.testing.assert_array_equal(merged.published_tensors()[name], array, name)
    assert not (tmp_path / "transformer.safetensors").exists()
    ids_nl, labels_n = VAL.ids_nl, np.array([2, 1], np.int32)[VAL.labels_n]
    inputs = Tokenizer(TOKENIZER, 0).training_inputs(Tensor(ids_nl))
    logits_nlv = merged.logits(labels_n, inputs).asnumpy().astype(np.float64)
    logits_nlv -= np.log(np.exp(logits_nlv).sum(-1, keepdims=True))
    loss = -np.take_along_axis(logits_nlv, ids_nl[..., None], -1).mean()
    assert measured["loss"] == pytest.approx(loss, rel=1e-5)


def test_classes_of_the_data_are_those_of_the_model_by_name():
    model = base()
    assert new_classes(model, ("c", "b", "d")) == ("c", "d")
    model.class_names = None
    assert new_classes(model, ("cat", "dog")) == ()  # as many: the same, by number
    assert new_classes(model, ("1", "cat", "dog")) == ("cat", "dog")  # numbers are the names


@pytest.mark.slow
def test_a_batch_in_parts_takes_the_step_of_the_whole_batch():
    once, parts = (training(dataclasses.replace(STAGE, accumulation=n)) for n in (1, 3))
    for ours, theirs in zip(run(parts, 0, 3), run(once, 0, 3), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.slow
def test_recomputing_the_blocks_changes_no_number():
    kept, again = (training(dataclasses.replace(STAGE, recompute=on)) for on in (False, True))
    assert run(again, 0, 3) == run(kept, 0, 3)


# ------------------------------------------------------------ a run
@pytest.fixture
def files(tmp_path) -> Path:
    """A folder with a tokenizer, a transformer of two classes, and images of one and another."""
    Tokenizer(tiny.tokenizer(), 5).save(tmp_path / "tokenizer.safetensors")
    model = Transformer(tiny.transformer(num_classes=2), 5, gate_gain=1.0)
    model.class_names = ("cat", "cow")
    model.save(tmp_path / "init.safetensors")
    write_image_tree(tmp_path / "images", (9, 7))  # of cats and dogs
    return tmp_path


def run_config(files: Path, **changes) -> RunConfig:
    lora = LoraConfig(rank=2)
    stage = TransformerStageConfig(epochs=1, batch=4, lora=lora, samples_per_class=0)
    return RunConfig(
        **{
            "stage": "transformer",
            "init": files / "init.safetensors",
            "tokenizer_file": files / "tokenizer.safetensors",
            "data": files / "images",
            "out": files / "out",
            "train_transformer": stage,
            "sampling": SamplingConfig(per_class=1),
        }
        | changes
    )


def test_a_run_writes_an_adapter_and_no_model(files, caplog):
    config = run_config(files)
    with caplog.at_level(logging.INFO):
        report = run_training(config)
    assert "its 2 classes stay, and 1 are new (dog)" in caplog.text
    assert 0 < report["trained_share"] < 0.2
    assert not list(files.joinpath("out").glob("transformer*"))
    found = load_adapter(files / "out" / "adapter")
    assert found.class_names == ("dog",) and found.base and found.tokenizer
    (checkpoint,) = (files / "out/checkpoints/transformer").glob("step-*")
    assert checkpoint.stat().st_size < (files / "init.safetensors").stat().st_size / 2

    other = LoraConfig(rank=3)
    for lora, said in ((other, "was trained with train_transformer.lora"), (LoraConfig(), "lora")):
        stage = dataclasses.replace(config.train_transformer, lora=lora)
        with pytest.raises(InputError, match=said):
            run_training(dataclasses.replace(config, train_transformer=stage))
    Transformer(tiny.transformer(num_classes=2), 6).save(files / "init.safetensors")
    with pytest.raises(InputError, match="was trained with init = "):
        run_training(config)


def test_what_an_adapter_cannot_be_trained_beside_is_refused_before_anything_is_written(files):
    lora = TransformerStageConfig(batch=4, lora=LoraConfig(rank=2, targets=("fc3",)))
    with pytest.raises(InputError, match="targets holds fc3, which matches no affine map"):
        run_training(run_config(files, train_transformer=lora))
    with pytest.raises(InputError, match=r"lora.rank is 2, init None .* expected .* an init"):
        run_config(files, init=None)
    with pytest.raises(InputError, match="stage all; expected the stage transformer"):
        run_config(files, stage="all", tokenizer_file=None)
    for path in (files / "images/train/dog").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"images/train/dog: no image; expected"):
        run_training(run_config(files))
    tokenizer = Tokenizer(tiny.tokenizer(scales=(1, 2, 4)), 0)
    with pytest.raises(InputError, match="expected the same for an adapter"):
        build_transformer(run_config(files), tokenizer, ("cat", "dog"))
    model = Transformer.load(files / "init.safetensors")
    model.tokenizer_checksum = tokenizer.checksum()
    model.save(files / "init.safetensors")
    with pytest.raises(InputError, match="expected that tokenizer for an adapter"):
        build_transformer(run_config(files), Tokenizer(tiny.tokenizer(), 5), ("cat", "dog"))
    assert not (files / "out").exists()
