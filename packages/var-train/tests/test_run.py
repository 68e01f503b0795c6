"""`python -m var_train.run` as a user meets it."""

import dataclasses
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from image_tree import write_image_tree
from PIL import Image
from safetensors.numpy import load_file
from var_tokenizer import Tokenizer
from var_tokenizer.common import InputError
from var_train.commands.models import build_tokenizer, build_transformer
from var_train.commands.run_config import RunConfig, TransformerSizeConfig, read_run_config
from var_train.run import main
from var_transformer import Transformer, TransformerConfig, generate

FILES = {
    "tokenizer.safetensors",
    "tokenizer-best.safetensors",
    "transformer.safetensors",
    "transformer-best.safetensors",
    "samples.png",
    "reconstructions.png",
    "metrics.jsonl",
    "pictures",
    "checkpoints",
    "tensorboard",
    "report.json",
    "settings.json",
}
SMALL = """
    --tokenizer.channel-multipliers 1 1 --tokenizer.vocab-size 16 --tokenizer.scales 1 2 4
    --transformer.depth 1 --transformer.width 32 --transformer.heads 2
    --train-tokenizer.batch 4 --train-tokenizer.epochs 2 --train-tokenizer.codebook.revive-every 2
    --train-transformer.batch 4 --train-transformer.epochs 2
    --sampling.per-class 2 --sampling.batch 4
"""


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "var_train.run", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | {"GLOG_v": "3"},
        check=False,
    )


@pytest.fixture
def refusal(monkeypatch, capfd, caplog):
    """What the command says on its way out with status 2."""

    def call(*arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", ["run", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        assert exit_.value.code == 2
        shown = capfd.readouterr().err + caplog.text  # pytest takes the log from stderr
        return " ".join(shown.replace("│", " ").split())

    return call


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    result = run(
        "--data", write_image_tree(folder / "images"), "--out", folder / "out", *SMALL.split()
    )
    assert result.returncode == 0, result.stderr
    return folder / "out"


def test_a_run_on_a_folder_writes_all_its_files_and_no_other(finished):
    assert {path.name for path in finished.iterdir()} == FILES


def test_the_written_models_generate_and_know_their_classes_and_each_other(finished):
    tokenizer = Tokenizer.load(finished / "tokenizer.safetensors")
    model = Transformer.load(finished / "transformer.safetensors")
    assert model.config.num_classes == 2
    out = generate(model, tokenizer, np.array([0, 1]))
    assert out.images.shape == (2, 3, 8, 8) and np.isfinite(out.images).all()
    assert model.class_names == ("cat", "dog")
    assert model.tokenizer_checksum == tokenizer.checksum()


@pytest.mark.parametrize(
    ("stage", "kind"), [("tokenizer", Tokenizer), ("transformer", Transformer)]
)
def test_a_checkpoint_loads_as_the_model_that_it_holds(finished, caplog, stage, kind):
    caplog.set_level(logging.INFO)
    saved = kind.load(finished / f"{stage}.safetensors")
    (path,) = (finished / "checkpoints" / stage).glob("step-*.safetensors")
    found = kind.load(path)
    assert found.config == saved.config and found.metadata() == saved.metadata()
    expected = saved.published_tensors()
    assert all((array == expected[n]).all() for n, array in found.published_tensors().items())
    assert f"{path}: a training after step 6: its weights; it keeps no averages" in caplog.text


@pytest.mark.slow
def test_commands_take_checkpoints_as_they_take_models(finished, tmp_path):
    saved = {kind: finished / f"{kind}.safetensors" for kind in ("tokenizer", "transformer")}
    held = {kind: next((finished / "checkpoints" / kind).glob("step-*")) for kind in saved}
    for name, files in (("saved", saved), ("held", held)):
        tokenizer, out = ["--tokenizer", files["tokenizer"]], ["--out", tmp_path / name]
        drawn = ["--model", files["transformer"], "--classes", "cat,dog", "--per-class", "2"]
        images = finished.parent / "images" / "val"
        for command in (
            ["var_transformer.sample", *tokenizer, *drawn, *out],
            ["var_train.evaluate", "tokenizer", *tokenizer, "--data", images, *out],
        ):
            words = [sys.executable, "-m", *map(str, command)]
            subprocess.run(words, check=True, env=os.environ | {"GLOG_v": "3"})
    ours, theirs = (
        {p.name: np.asarray(Image.open(p)) for p in (tmp_path / name).glob("*.png")}
        for name in ("held", "saved")
    )
    assert ours.keys() == theirs.keys() and len(ours) >= 5
    assert all((ours[name] == picture).all() for name, picture in theirs.items())
    reports = [(tmp_path / name / "tokenizer.json").read_text() for name in ("held", "saved")]
    assert reports[0] == reports[1]


def test_training_changed_both_models(finished):
    for name, fresh in (("tokenizer", Tokenizer), ("transformer", Transformer)):
        trained = fresh.load(finished / f"{name}.safetensors")
        start = fresh(trained.config, seed=0).published_tensors()
        moved = [n for n, t in trained.published_tensors().items() if (t != start[n]).any()]
        assert len(moved) > 0.9 * len(start) - 1, sorted(start.keys() - set(moved))


def test_metrics_hold_every_step_and_the_validation_of_every_scale(finished):
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    for stage in ("tokenizer", "transformer"):
        steps = [line for line in lines if line["stage"] == stage]
        assert [line["step"] for line in steps] == list(range(6))
        assert all(np.isfinite(line["loss"]) for line in steps)
    validations = {line["of"]: line for line in lines if line["stage"] == "validation"}
    assert len(validations["tokenizer"]["scale_psnr"]) == 3
    last = validations["transformer"]
    assert len(last["scale_loss"]) == len(last["scale_accuracy"]) == 3


@pytest.mark.slow
def test_the_same_seed_trains_the_same_weights(finished, tmp_path):
    data = finished.parent / "images"
    result = run("--data", data, "--out", tmp_path, *SMALL.split())
    assert result.returncode == 0, result.stderr
    for name in ("tokenizer.safetensors", "transformer.safetensors"):
        first, second = load_file(finished / name), load_file(tmp_path / name)
        assert all((first[n] == second[n]).all() for n in first)


@pytest.mark.slow
def test_stages_run_one_by_one_train_the_same_models(finished, tmp_path):
    data, first, second = finished.parent / "images", tmp_path / "first", tmp_path / "second"
    result = run("--stage", "tokenizer", "--data", data, "--out", first, *SMALL.split())
    assert result.returncode == 0, result.stderr
    assert {path.name for path in first.iterdir()} == FILES - {
        "transformer.safetensors",
        "transformer-best.safetensors",
        "samples.png",
        "pictures",
    }
    file = first / "tokenizer.safetensors"
    arguments = ("--data", data, "--out", second, "--tokenizer-file", file, *SMALL.split())
    result = run("--stage", "transformer", *arguments)
    assert result.returncode == 0, result.stderr
    for written in (file, second / "transformer.safetensors"):
        ours, theirs = load_file(written), load_file(finished / written.name)
        assert all((ours[n] == theirs[n]).all() for n in theirs)


@pytest.mark.slow
@pytest.mark.parametrize("classes", [("cat", "dog"), ("ant", "bee", "cow")])
def test_fine_tuning_starts_from_init_but_for_embeddings_of_other_classes(
    finished, tmp_path, classes
):
    data = write_image_tree(tmp_path / "data", classes=classes)
    init, tokenizer = finished / "transformer.safetensors", finished / "tokenizer.safetensors"
    arguments = ("--init", init, "--tokenizer-file", tokenizer, "--data", data, *SMALL.split())
    still = ("--train-transformer.base-rate", 1e-9)
    result = run("--stage", "transformer", "--out", tmp_path / "out", *arguments, *still)
    assert result.returncode == 0, result.stderr
    written = tmp_path / "out" / init.name
    ours, theirs = load_file(written), load_file(init)
    if len(classes) == 3:
        assert "num_classes is 2 and the data's 3: class embeddings start anew" in result.stderr
        fresh = Transformer(Transformer.load(written).config, 0).published_tensors()
        name = "class_emb.weight"
        theirs[name] = np.concatenate([fresh[name][:3], theirs[name][2:]])  # the last: "no class"
    assert all(np.allclose(ours[n], theirs[n], rtol=0, atol=1e-6) for n in theirs)


@pytest.fixture
def again(finished, tmp_path) -> Path:
    """A folder with copies of the finished run and of its data."""
    shutil.copytree(finished, tmp_path / "out")
    shutil.copytree(finished.parent / "images", tmp_path / "images")
    return tmp_path


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def add_images(data: Path) -> list[Path]:
    new = [data / "train" / "cat" / f"new{i}.png" for i in range(20)]
    for path in new:
        shutil.copy(data / "train" / "cat" / "0.png", path)
    return new


def rename_a_class(data: Path) -> None:
    for split in ("train", "val"):
        (data / split / "cat").rename(data / split / "zebra")


def replace_an_image(data: Path) -> None:
    shutil.copy(data / "train" / "dog" / "0.png", data / "train" / "cat" / "1.png")


@pytest.mark.parametrize("stage", ["all", "tokenizer", "transformer"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (add_images, "20 new image(s): train/cat/new0.png"),
        (rename_a_class, "class cat is gone and class zebra is new"),
        (replace_an_image, "1 image(s) changed: train/cat/1.png"),
    ],
)
def test_changed_data_is_refused_before_anything_is_written(again, refusal, stage, change, said):
    before = contents(again / "out")
    change(again / "images")
    arguments = ("--data", again / "images", "--out", again / "out", "--stage", stage)
    message = refusal(*arguments, *SMALL.split())
    assert said in message and "put them back, or --no-resume" in message
    assert contents(again / "out") == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            ("--train-transformer.label-smoothing", 0.1),
            "train_transformer.label_smoothing = 0.0, now it is 0.1",
        ),
        (("--random-crops",), "random_crops = False, now it is True"),
    ],
)
def test_changed_settings_are_refused_before_the_first_stage_trains(again, refusal, change, said):
    before = contents(again / "out")
    arguments = ("--data", again / "images", "--out", again / "out", *SMALL.split())
    assert said in refusal(*arguments, *change)
    assert contents(again / "out") == before


@pytest.mark.parametrize("stage", ["all", "tokenizer"])
def test_a_tokenizer_is_not_retrained_under_its_transformer(again, refusal, stage):
    shutil.rmtree(again / "out" / "checkpoints" / "tokenizer")
    before = contents(again / "out")
    arguments = ("--data", again / "images", "--out", again / "out", "--stage", stage)
    message = refusal(*arguments, *SMALL.split())
    assert "the tokenizer that it belongs to has none of 6 steps" in message
    assert "--stage transformer goes on" in message
    assert contents(again / "out") == before


def test_no_resume_removes_the_checkpoints_of_both_stages(again, refusal, monkeypatch):
    def stopped(*_: object) -> None:
        raise InputError("stopped in the first stage")

    monkeypatch.setattr("var_train.commands.pipeline.train_stage", stopped)
    arguments = ("--data", again / "images", "--out", again / "out", *SMALL.split())
    assert "stopped in the first stage" in refusal(*arguments, "--no-resume")
    assert not list((again / "out" / "checkpoints").rglob("step-*"))
    assert "stopped in the first stage" in refusal(*arguments)


@pytest.mark.slow
def test_a_finished_run_accepts_its_old_images_in_a_moved_folder(again):
    arguments = ("--out", again / "out", *SMALL.split())
    new = add_images(again / "images")
    assert run("--data", again / "images", *arguments).returncode == 2
    for path in new:
        path.unlink()
    moved = (again / "images").rename(again / "moved")
    result = run("--data", moved, *arguments)
    assert result.returncode == 0, result.stderr
    assert "transformer: all 6 steps are done" in result.stderr


@pytest.mark.slow
def test_a_run_takes_names_that_are_not_utf_8(tmp_path):
    cat, dog = os.fsdecode(b"c\xe4t"), os.fsdecode(b"d\xf6g")
    data = write_image_tree(tmp_path / os.fsdecode(b"im\xe4ges"), classes=(cat, dog))
    for split in ("train", "val"):
        (data / split / cat / "0.png").rename(data / split / cat / os.fsdecode(b"caf\xe9.png"))
    (data / "train" / dog / os.fsdecode(b"br\xf6ken.png")).write_bytes(b"no image")
    out = tmp_path / os.fsdecode(b"\xf6ut")
    for _ in range(2):  # a finished run is read again
        result = run("--data", data, "--out", out, *SMALL.split())
        assert result.returncode == 0, result.stderr
    assert r"br\xf6ken.png" in result.stderr
    assert Transformer.load(out / "transformer.safetensors").class_names == (cat, dog)
    assert (out / "samples.png").stat().st_size > 0


def test_init_reports_classes_with_other_names(tmp_path, caplog):
    tokenizer = Tokenizer(tiny.tokenizer(), 0)
    model = Transformer(tiny.transformer(num_classes=2), 0)
    model.class_names = ("cat", "dog")
    model.save(tmp_path / "init.safetensors")
    config = RunConfig(
        stage="transformer",
        init=tmp_path / "init.safetensors",
        transformer=TransformerSizeConfig(depth=2, width=32, heads=2),
    )
    build_transformer(config, tokenizer, ("cat", "dog"))
    assert not caplog.records
    build_transformer(config, tokenizer, ("cat", "emu"))
    (said,) = caplog.messages
    assert "1 of 2 classes have other names" in said and "class 1 is dog there and emu here" in said


def test_an_init_of_another_architecture_is_refused_before_anything_is_written(tmp_path, refusal):
    init = tmp_path / "init.safetensors"
    Transformer(TransformerConfig(depth=1, width=32, heads=2), 0).save(init)
    message = refusal("--init", init, "--out", tmp_path / "out")
    assert "init.safetensors: vocab_size is 4096 and 128 in this run's tokenizer" in message
    assert not (tmp_path / "out").exists()


def digits_files(folder: Path) -> tuple[Path, Path]:
    """A tokenizer and a transformer for digits, both of other sizes than a run's defaults."""
    config = dataclasses.replace(
        RunConfig().tokenizer, vocab_size=64, channel_multipliers=(1, 2, 1, 1)
    )
    Tokenizer(config, 0).save(folder / "t.safetensors")
    size = {"vocab_size": 64, "latent_channels": 8, "scales": config.scales, "num_classes": 10}
    model = TransformerConfig(depth=1, width=32, heads=2, qk_l2_norm=False, **size)
    Transformer(model, 0).save(folder / "init.safetensors")
    return folder / "t.safetensors", folder / "init.safetensors"


def test_files_bring_their_architecture(tmp_path, monkeypatch):
    tokenizer, init = digits_files(tmp_path)
    words = ["run", "--init", str(init), "--tokenizer-file", str(tokenizer)]
    monkeypatch.setattr(sys, "argv", [*words, "--stage", "transformer"])
    by_command = read_run_config()
    assert by_command.transformer == TransformerSizeConfig(1, 32, 2)
    assert by_command.tokenizer == Tokenizer.load(tokenizer).config
    in_python = RunConfig(init=init, tokenizer_file=tokenizer, stage="transformer")
    for config in (by_command, in_python):
        loaded = build_tokenizer(config)
        model, _ = build_transformer(config, loaded, tuple("0123456789"))
        assert model.config == Transformer.load(init).config
        assert build_transformer(config, loaded, ("a", "b"))[0].config.num_classes == 2
    monkeypatch.setattr(sys, "argv", ["run", "--stage=transformer", f"--out={tmp_path}"])
    tokenizer.rename(tmp_path / "tokenizer.safetensors")
    assert read_run_config().tokenizer == by_command.tokenizer


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--transformer.depth", 4), "init.safetensors: depth is 1 and transformer.depth 4"),
        (
            ("--transformer.depth", 4, "--transformer.width", 128, "--transformer.heads", 4),
            "init.safetensors: depth is 1 and transformer.depth 4",
        ),
        (("--tokenizer.vocab-size", 128), "t.safetensors: vocab_size is 64 and tokenizer.vocab"),
        (("--preset", "d16"), "init.safetensors: depth is 1 and transformer.depth 16"),
    ],
)
def test_settings_that_contradict_a_file_are_refused(tmp_path, refusal, arguments, message):
    tokenizer, init = digits_files(tmp_path)
    files = ("--init", init, "--tokenizer-file", tokenizer, "--stage", "transformer")
    assert message in refusal(*files, "--out", tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


def test_help_names_the_data_layout():
    result = run("--help")
    assert result.returncode == 0
    assert "train/CLASS" in result.stdout and "--train-tokenizer.epochs" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "nowhere"), "nowhere"),
        (("--tokenizer.vocab-size", "1"), "vocab_size is 1"),
        (("--transformer.heads", "3"), "heads is 3; expected a divisor of width 128"),
        (("--tokenizer.scales", "1", "2"), "(16, 16)"),
        (("--train-tokenizer.batch", "100000"), "batch is 100000"),
        (("--image-size", "36"), "image_size is 36; expected multiples of 8"),
        (("--image-size", "0x8"), "image_size is 0x8; expected multiples of 8"),
        (("--image-size", "48x64"), "scales ends with 4; expected 6x8"),
        (("--tokenizer.scales", "1", "3x4"), "(24, 32)"),
        (("--tokenizer.scales", "1", "3y4"), "--tokenizer.scales"),
        (("--tokenizer.vocab-size", "481"), "a batch of 16 images has 480 vectors"),
        (("--stage", "transformer"), "tokenizer.safetensors: no such file"),
        (("--tokenizer-file", "t.safetensors"), "tokenizer_file is t.safetensors and stage all"),
        (("--train-transformer.epochs", "0"), "epochs is 0"),
        (("--sampling.cfg", "-1"), "cfg is -1.0"),
        (("--sampling.top-k", "129"), "top_k is 129"),
        (("--sampling.top-p", "1.5"), "top_p is 1.5"),
        (("--seed", "x"), "seed"),
        (("--preset", "d17"), "--preset"),
        (("--preset", "d16"), "tokenizer.safetensors: no such file"),
        (("--init", "t.safetensors"), "t.safetensors: no such file"),
        (("--val-fraction", "0.1"), "val_fraction is 0.1 without data"),
        (("--init", "t.safetensors", "--stage", "tokenizer"), "t.safetensors: no such file"),
    ],
)
def test_unusable_arguments_exit_with_2_say_why_and_write_nothing(
    tmp_path, refusal, arguments, message
):
    assert message in refusal("--out", tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_an_error_that_names_it(tmp_path, refusal):
    (tmp_path / "file").write_text("")
    assert "metrics.jsonl: cannot write here" in refusal("--out", tmp_path / "file" / "out")


@pytest.mark.slow
def test_the_main_job_meets_its_goals_on_the_digits(tmp_path):
    for attempt in "abc":  # a machine that is busy elsewhere gets three attempts at the time
        out = tmp_path / attempt
        result = run("--out", out)
        assert result.returncode == 0, result.stderr
        assert {path.name for path in out.iterdir()} == FILES
        report = json.loads((out / "report.json").read_text())
        assert report["judge_accuracy"] >= 0.97
        assert report["reconstruction_accuracy"] >= 0.95
        assert report["generated_accuracy"] >= 0.90
        assert report["codebook_usage"] >= 0.5
        assert report["distinct"] >= 0.6
        assert report["nearest_train_distance"]["min"] > 0
        assert report["peak_memory_gib"] < 4
        if report["total_seconds"] < 360:
            return
    raise AssertionError(f"{report['total_seconds']} s; expected less than 360")
