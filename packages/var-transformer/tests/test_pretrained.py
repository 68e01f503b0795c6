"""The models in the box: what the commands do without arguments."""

import numpy as np
import pytest
from var_tokenizer.common import InputError, read_picture
from var_transformer import load_pretrained
from var_transformer.edit.__main__ import EditConfig
from var_transformer.edit.__main__ import run as run_edit
from var_transformer.pretrained import FOLDER, PICTURE_FILE
from var_transformer.sample import SampleConfig
from var_transformer.sample import run as run_sample
from var_transformer.serve import ServeConfig


def test_sample_without_arguments_draws_a_digit_of_each_class(tmp_path):
    run_sample(SampleConfig(out=tmp_path))
    names = [f"{digit:06d}_{digit}.png" for digit in range(10)]
    assert {path.name for path in tmp_path.iterdir()} == {*names, "grid.png", "settings.json"}
    pictures = [np.asarray(read_picture(tmp_path / name), float) for name in names]
    assert {picture.shape for picture in pictures} == {(32, 32, 3)}
    assert all(
        picture.max() > 200 > 55 > np.median(picture) for picture in pictures
    )  # white on black


def test_edit_without_arguments_redraws_the_left_half_of_a_three(tmp_path):
    run_edit(EditConfig(out=tmp_path))
    three, drawn = (
        np.asarray(read_picture(path), float) for path in (PICTURE_FILE, tmp_path / "000000_8.png")
    )
    left, right = slice(0, 12), slice(20, 32)  # convolutions carry some of it across the border
    assert np.abs(drawn - three)[:, left].mean() > 2 * np.abs(drawn - three)[:, right].mean()


def test_the_files_are_a_few_megabytes():
    sizes = [path.stat().st_size for path in FOLDER.glob("*.safetensors")]
    assert len(sizes) == 2 and max(sizes) < 3e6


def test_the_pair_belongs_together_and_knows_its_classes():
    model, tokenizer = load_pretrained()
    assert model.tokenizer_checksum and tokenizer.belongs_to(model.tokenizer_checksum)
    assert model.class_names == tuple(map(str, range(10)))


@pytest.mark.parametrize("kind", [SampleConfig, EditConfig, ServeConfig])
@pytest.mark.parametrize(("given", "missing"), [("model", "tokenizer"), ("tokenizer", "model")])
def test_a_model_without_its_other_half_is_refused(tmp_path, kind, given, missing):
    with pytest.raises(InputError, match=f"{given} is given and {missing} is not"):
        kind(**{given: tmp_path / "x.safetensors"})


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({"label": "3"}, "image"),
        ({"box": (0, 0, 8, 8)}, "image"),
        ({"image": PICTURE_FILE}, "class"),
    ],
)
def test_an_edit_that_is_half_given_is_refused(given, missing):
    with pytest.raises(InputError, match=f"{missing} is not given; expected --image and --class"):
        EditConfig(**given)


def test_an_edit_by_models_of_the_users_wants_an_image(tmp_path):
    with pytest.raises(InputError, match="image is not given"):
        EditConfig(tokenizer=tmp_path / "t.safetensors", model=tmp_path / "m.safetensors")
