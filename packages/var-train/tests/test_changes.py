"""What a user may change between two commands of a run: paths, some settings, the epochs."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image
from safetensors.numpy import load_file
from var_tokenizer import Tokenizer
from var_tokenizer.common import InputError
from var_train.commands.pipeline import run_training
from var_train.commands.run_config import RunConfig, TransformerSizeConfig
from var_train.data.digits import load_digits_split
from var_train.reports.images import SamplingConfig
from var_train.tokenize import TokenizeConfig, tokenize
from var_train.training.loop import LoopConfig
from var_train.training.tokenizer_stage import TokenizerStageConfig
from var_train.training.transformer_stage import TransformerStageConfig
from var_transformer import Transformer

TOKENIZER = tiny.tokenizer(channel_multipliers=(1, 1), scales=(1, 2, 4))
COUNTS = (24, 4)  # of each digit, to train and to validate on

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Digits as an image tree, their tokens, a tokenizer and a transformer to start from."""
    folder = tmp_path_factory.mktemp("files")
    for split, digits, count in zip(("train", "val"), load_digits_split(), COUNTS, strict=True):
        for label in range(10):
            inner = folder / "images" / split / str(label)
            inner.mkdir(parents=True)
            for i in np.flatnonzero(digits.labels_n == label)[:count]:
                Image.fromarray(digits.images_nyxc[i]).save(inner / f"{i:04d}.png")
    Tokenizer(TOKENIZER, 0).save(folder / "tokenizer.safetensors")
    init = tiny.transformer(depth=1, num_classes=10, scales=TOKENIZER.scales)
    Transformer(init, 1).save(folder / "init.safetensors")
    tokenize(tokenizing(folder))
    return folder


def tokenizing(files: Path) -> TokenizeConfig:
    return TokenizeConfig(files / "tokenizer.safetensors", files / "images", files / "tokens")


def run(files: Path, out: str, kind: str = "images", **changes: object) -> RunConfig:
    """12 steps, with checkpoints after 6 and 12. kind: what the run is trained on and starts from.

    changes: of the transformer's stage.
    """
    stage = TransformerStageConfig(**({"epochs": 2, "batch": 40, "samples_per_class": 0} | changes))
    config = RunConfig(
        stage="tokenizer" if kind == "tokenizer" else "transformer",
        data=files / "images",
        out=files / out,
        tokenizer=TOKENIZER,
        transformer=TransformerSizeConfig(depth=1, width=32, heads=2),
        loop=LoopConfig(checkpoint_every=6, validations=1),
        train_tokenizer=TokenizerStageConfig(epochs=2, batch=40),
        train_transformer=stage,
        sampling=SamplingConfig(per_class=1, batch=10),
    )
    if kind == "tokenizer":
        return config
    config = replace(config, tokenizer_file=files / "tokenizer.safetensors")
    if kind == "tokens":
        init = files / "init.safetensors"
        config = replace(config, data=None, tokens=files / "tokens", init=init)
    return replace(config, random_crops=kind == "crops")


def stopped_half_way(config: RunConfig) -> None:
    """Trains, and removes what came after the checkpoint of step 6."""
    run_training(config)
    (checkpoint,) = config.out.glob("checkpoints/*/step-000000012.safetensors")
    checkpoint.unlink()


def lines(out: Path, stage: str) -> list[dict]:
    found = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [line for line in found if line["stage"] == stage]


def values(out: Path, name: str = "loss") -> list[float]:
    return [line[name] for line in lines(out, "transformer")]


@pytest.fixture(scope="module")
def undisturbed(files) -> Path:
    run_training(run(files, "undisturbed"))
    return files / "undisturbed"


@pytest.mark.parametrize("kind", ["tokenizer", "crops", "tokens"])
def test_a_run_goes_on_with_moved_files_and_names_another_digit_in_place_of_one(
    files, tmp_path, kind
):
    """Images in memory, images that each step reads, and tokens with weights to start from."""
    home = tmp_path / "home"
    for name in ("images", "tokens"):
        shutil.copytree(files / name, home / name)
    for name in ("tokenizer.safetensors", "init.safetensors"):
        shutil.copy(files / name, home)
    stopped_half_way(run(home, "out", kind))
    stage = "tokenizer" if kind == "tokenizer" else "transformer"
    model = load_file(home / "out" / f"{stage}.safetensors")
    away = home.rename(tmp_path / "away")
    run_training(run(away, "out", kind))
    moved = load_file(away / "out" / f"{stage}.safetensors")
    assert all((moved[name] == array).all() for name, array in model.items())
    changed = lines(away / "out", "settings")[-1]
    assert changed["done"] == {stage: 6} and changed["changed"]["out"][1] == str(away / "out")

    (first, *_), (other, *_) = (sorted((away / "images/train" / d).iterdir()) for d in "38")
    first.write_bytes(other.read_bytes())
    if kind == "tokens":
        tokenize(tokenizing(away))
    with pytest.raises(InputError, match=rf"1 image\(s\) .*: train/3/{first.name}"):
        run_training(run(away, "out", kind))


def test_what_leaves_the_result_as_it_is_may_change_half_way(files, undisturbed, caplog):
    caplog.set_level(logging.INFO)
    stopped_half_way(run(files, "changed"))
    on_another_machine = {"workers": 2, "device": "Ascend"}
    settings = files / "changed" / "settings.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | on_another_machine))
    other = {"accumulation": 2, "recompute": True, "validation_images": 20, "samples_per_class": 1}
    config = run(files, "changed", **other)
    sampling = SamplingConfig(per_class=2, batch=5)
    run_training(replace(config, loop=LoopConfig(validations=2), sampling=sampling))
    assert len(values(undisturbed)) == 12
    assert values(files / "changed") == pytest.approx(values(undisturbed), rel=1e-4)
    (line,) = lines(files / "changed", "settings")
    assert line["done"] == {"transformer": 6}
    assert line["changed"] == {
        "loop.checkpoint_every": [6, 500],
        "loop.validations": [1, 2],
        "sampling.batch": [10, 5],
        "sampling.per_class": [1, 2],
        "train_transformer.accumulation": [1, 2],
        "train_transformer.recompute": [False, True],
        "train_transformer.samples_per_class": [0, 1],
        "train_transformer.validation_images": [10000, 20],
        "workers": [2, 1],
        "device": ["Ascend", "CPU"],
    }
    assert "train_transformer.accumulation was 1 and is 2" in caplog.text


def test_a_finished_run_grows_and_follows_the_schedule_of_the_new_total(files, undisturbed):
    run_training(run(files, "grown", epochs=1))
    before = values(files / "grown")
    run_training(run(files, "grown", epochs=2))
    rates, losses = values(files / "grown", "learning_rate"), values(files / "grown")
    assert losses[:6] == before and len(losses) == 12 and np.isfinite(losses).all()
    expected = values(undisturbed, "learning_rate")
    assert rates[6:] == expected[6:] and rates[5] < expected[5]
    (line,) = lines(files / "grown", "settings")
    assert line["changed"] == {"train_transformer.epochs": [1, 2]}
    with pytest.raises(InputError, match=r"epochs = 2, now it is 1; .* may only grow"):
        run_training(run(files, "grown", epochs=1))
