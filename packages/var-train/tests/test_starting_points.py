"""What `--init` starts from: a tokenizer, or a transformer of other classes or scales."""

import logging
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
from image_tree import write_image_tree
from var_tokenizer import SCALES_256, SCALES_512, ScaleSchedule, Tokenizer
from var_tokenizer.common import InputError
from var_train.commands.models import build_tokenizer, build_transformer
from var_train.commands.pipeline import run_training
from var_train.commands.run_config import RunConfig, TransformerSizeConfig, read_run_config
from var_train.commands.starting_points import resized_positions
from var_train.training.codebook import CodebookConfig
from var_train.training.tokenizer_stage import TokenizerStageConfig
from var_transformer import Transformer

SIZE = TransformerSizeConfig(depth=2, width=32, heads=2)
SCALES_1024 = (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64)
BY_SCALES = {"pos_1LC", "pos_start", "lvl_embed.weight"}


@pytest.mark.parametrize(
    "after", [SCALES_512, SCALES_1024, (1, 2, 3), ((2, 1), 3, (3, 6), (3, 7), 16)]
)
def test_positions_of_each_scale_are_resized_as_pytorch_does(after):
    torch = pytest.importorskip("torch")
    before, now = ScaleSchedule(SCALES_256), ScaleSchedule(after)
    rng = np.random.default_rng(0)
    shapes = {"pos_1LC": (1, 680, 8), "pos_start": (1, 1, 8), "lvl_embed.weight": (10, 8)}
    tensors = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    found = resized_positions(tensors, before, now)

    def resized(map_1lc: np.ndarray, old: tuple[int, int], new: tuple[int, int]) -> np.ndarray:
        image = torch.tensor(map_1lc.reshape(1, *old, 8)).permute(0, 3, 1, 2)
        for size in ((new[0], old[1]), new):  # a side at a time: one may grow, the other shrink
            grows = size[0] * size[1] > image.shape[2] * image.shape[3]
            how = {"mode": "bicubic", "align_corners": False} if grows else {"mode": "area"}
            image = torch.nn.functional.interpolate(image, size, **how)
        return image.permute(0, 2, 3, 1).reshape(1, -1, 8).numpy()

    for k, map_1lc in enumerate(now.split(found["pos_1LC"], 1)):
        source = min(k, 9)
        given_1lc = before.split(tensors["pos_1LC"], 1)[source]
        expected = resized(given_1lc, before.sizes[source], now.sizes[k])
        np.testing.assert_allclose(map_1lc, expected, atol=2e-5)
        same = tensors["lvl_embed.weight"][source]
        np.testing.assert_array_equal(found["lvl_embed.weight"][k], same)
    expected = resized(tensors["pos_start"], (1, 1), now.sizes[0])
    np.testing.assert_allclose(found["pos_start"], expected, atol=2e-5)


@pytest.fixture
def files(tmp_path) -> Path:
    """A folder with a tokenizer and a transformer that fits it, for images of 6 x 6."""
    Tokenizer(tiny.tokenizer(), 5).save(tmp_path / "tokenizer.safetensors")
    Transformer(tiny.transformer(num_classes=2), 5).save(tmp_path / "transformer.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    ("scales", "said"),
    [
        ((1, 2, 3, 6), "and the 1 further scale(s) start from the last one; all other weights"),
        ((1, (2, 4), 8), "are resized (bicubic where a side grows, by area where it shrinks); all"),
    ],
)
def test_a_transformer_for_other_scales_keeps_all_weights_but_positions(
    files, caplog, scales, said
):
    config = RunConfig(stage="transformer", init=files / "transformer.safetensors")
    tokenizer = Tokenizer(tiny.tokenizer(scales=scales), 0)
    with caplog.at_level(logging.INFO):
        model, checksum = build_transformer(config, tokenizer, ("cat", "dog"))
    assert "was trained with the scales 1 2 3; for 1 2" in caplog.text and said in caplog.text
    init = Transformer.load(files / "transformer.safetensors")
    ours, theirs = model.published_tensors(), init.published_tensors()
    assert model.config == replace(init.config, scales=scales) and checksum
    for name in ours.keys() - BY_SCALES:
        np.testing.assert_array_equal(ours[name], theirs[name], name)
    np.testing.assert_array_equal(ours["pos_1LC"][:, :1], theirs["pos_1LC"][:, :1])


def test_classes_and_scales_may_differ_at_once(files):
    config = RunConfig(stage="transformer", init=files / "transformer.safetensors", seed=3)
    tokenizer = Tokenizer(tiny.tokenizer(scales=(1, 2, 4)), 0)
    model, _ = build_transformer(config, tokenizer, ("ant", "bee", "cow"))
    init = Transformer.load(files / "transformer.safetensors")
    assert (model.config.num_classes, model.config.scales) == (3, (1, 2, 4))
    no_class = [m.class_emb.weight.asnumpy()[-1] for m in (model, init)]
    np.testing.assert_array_equal(*no_class)
    assert (model.pos_1LC.asnumpy()[:, :5] == init.pos_1LC.asnumpy()[:, :5]).all()


@pytest.mark.parametrize("stage", ["tokenizer", "all"])
def test_a_tokenizer_to_fine_tune_brings_its_weights_and_its_configuration(
    files, monkeypatch, stage
):
    path = files / "tokenizer.safetensors"
    monkeypatch.setattr(sys, "argv", ["run", "--init", str(path), "--stage", stage])
    for config in (read_run_config(), RunConfig(init=path, stage=stage)):
        tokenizer, given = build_tokenizer(config), Tokenizer.load(path)
        assert tokenizer.config == given.config
        assert tokenizer.checksum() == given.checksum()
    if stage == "all":  # the transformer is a new one then
        model, checksum = build_transformer(config, tokenizer, ("cat", "dog"))
        assert checksum is None and model.config.scales == given.config.scales


@pytest.mark.parametrize(
    ("stage", "name", "said"),
    [
        ("tokenizer", "transformer", "holds a transformer; expected a tokenizer"),
        ("transformer", "tokenizer", "holds a tokenizer; expected a transformer"),
    ],
)
def test_an_init_that_the_stage_does_not_train_is_refused(files, stage, name, said):
    config = RunConfig(stage=stage, init=files / f"{name}.safetensors")
    tokenizer = Tokenizer(tiny.tokenizer(), 0)
    with pytest.raises(InputError, match=said):
        if stage == "tokenizer":
            build_tokenizer(config)
        else:
            build_transformer(config, tokenizer, ("cat", "dog"))


def test_settings_that_contradict_a_tokenizer_to_fine_tune_are_refused(files, monkeypatch):
    words = ["run", "--stage", "tokenizer", "--init", str(files / "tokenizer.safetensors")]
    monkeypatch.setattr(sys, "argv", [*words, "--tokenizer.vocab-size", "64"])
    with pytest.raises(InputError, match=r"vocab_size is 32 and tokenizer\.vocab_size 64"):
        read_run_config()


@pytest.mark.slow
def test_fine_tuning_a_tokenizer_trains_all_but_its_codebook(files):
    """Although these settings would start, average and revive codes."""
    codebook = CodebookConfig(start="data", update="ema", revive_every=1)
    config = RunConfig(
        stage="tokenizer",
        init=files / "tokenizer.safetensors",
        data=write_image_tree(files / "images", (9, 7)),
        random_crops=True,
        out=files / "out",
        train_tokenizer=TokenizerStageConfig(epochs=2, batch=1, ema=0.5, codebook=codebook),
    )
    run_training(config)
    before, after = (
        Tokenizer.load(folder / "tokenizer.safetensors").published_tensors()
        for folder in (files, files / "out")
    )
    name = "quantize.embedding.weight"
    np.testing.assert_array_equal(after[name], before[name])
    moved = {n for n in before if (before[n] != after[n]).any()}
    assert moved == before.keys() - {name}
    with pytest.raises(InputError, match="was trained with init = "):
        Tokenizer(tiny.tokenizer(), 6).save(files / "tokenizer.safetensors")
        run_training(config)
