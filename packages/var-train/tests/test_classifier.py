"""Classifiers of the user's classes over a network, and judges by a model's classes."""

import sys
from importlib.metadata import entry_points

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from var_tokenizer.common import InputError
from var_train import evaluate
from var_train.data.image_sources import ImageSet
from var_train.judging import class_judge, networks
from var_train.judging.class_judge import load_class_judge
from var_train.judging.classifier import accuracy_of, train_classifier
from var_train.judging.networks import Features, load_network


class Colours:
    """A stand-in for a network: the mean colours, and those of the left half."""

    name, identity, described = "FD-Colours", "0123", 6

    def features(self, images_byxc: np.ndarray) -> Features:
        parts = images_byxc, images_byxc[:, :, :4]
        means_bd = np.concatenate([p.mean((1, 2)) for p in parts], 1).astype(np.float32)
        return Features(means_bd[:, :3], means_bd[:, :4], None, means_bd)


def coloured(count: int, classes: tuple[str, ...], seed: int) -> ImageSet:
    """Images of which class n has more of colour n."""
    rng = np.random.default_rng(seed)
    labels_n = (np.arange(count) % len(classes)).astype(np.int32)
    pixels = rng.integers(0, 200, (count, 8, 8, 3))
    pixels[np.arange(count), :, :, labels_n] += 30
    return ImageSet(pixels.astype(np.uint8), labels_n, classes)


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch):
    monkeypatch.setattr(networks, "_EfficientNetLite", Colours)


@pytest.fixture
def saved(tmp_path):
    classifier = train_classifier(Colours(), "mine", coloured(90, ("a", "b", "c"), 0), int)
    classifier.save(tmp_path / "mine.safetensors")
    return tmp_path / "mine.safetensors"


@pytest.mark.parametrize("classes", [("red", "green"), ("red", "green", "blue")])
def test_a_classifier_knows_images_that_it_was_not_trained_on(classes):
    counted = []
    train, val = coloured(120, classes, 0), coloured(57, classes, 1)
    classifier = train_classifier(Colours(), "mine", train, counted.append)
    assert sum(counted) == 240
    assert accuracy_of(classifier, val, lambda n: None) > 0.95
    found = classifier.features(val.images_nyxc)
    assert found.logits_bk.shape == (57, len(classes))
    np.testing.assert_array_equal(found.pooled_bf, Colours().features(val.images_nyxc).pooled_bf)


def test_a_saved_classifier_is_a_network_of_its_own_name_and_gives_the_same(saved):
    loaded = load_network(saved)
    again = train_classifier(Colours(), "mine", coloured(90, ("a", "b", "c"), 0), int)
    pixels = coloured(9, ("a", "b", "c"), 2).images_nyxc
    assert loaded.name == "FD-mine" and loaded.classes == ("a", "b", "c")
    assert loaded.identity == again.identity != Colours.identity
    expected = again.features(pixels).logits_bk
    np.testing.assert_allclose(loaded.features(pixels).logits_bk, expected, atol=1e-6)


def test_mirrored_images_are_classified_alike_where_only_their_side_differs():
    pixels = coloured(60, ("a", "b"), 0)
    lit = pixels.images_nyxc.copy()
    lit[:30, :, :4] //= 4  # a shadow on the left, in half of the training images
    images = ImageSet(lit, pixels.labels_n, pixels.classes)
    classifier = train_classifier(Colours(), "mine", images, int)
    val = coloured(40, ("a", "b"), 1)
    mirrored = ImageSet(val.images_nyxc[:, :, ::-1], val.labels_n, val.classes)
    known = [accuracy_of(classifier, of, lambda n: None) for of in (val, mirrored)]
    assert min(known) > 0.8


def test_images_of_one_class_are_refused():
    with pytest.raises(InputError, match=r"1 class\(es\); expected at least 2"):
        train_classifier(Colours(), "mine", coloured(4, ("a",), 0), int)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"network": "4567"}, "over another network; expected one over EffLite0"),
        ({"classes": "[1, 2, 3]"}, "classes are damaged"),
        ({"classes": '["a", "a", "b"]'}, "classes are damaged"),
        ({"classes": "["}, "classes are damaged"),
        ({"classes": '["a", "b"]'}, "weight"),
        ({"weight": np.full((3, 6), np.nan, np.float32)}, "weight is not finite float32"),
        ({"weight": np.zeros((3, 5), np.float32)}, "weight"),
    ],
)
def test_a_damaged_classifier_is_refused_by_its_name(saved, changed, message):
    metadata, _ = networks.read_header(saved)
    tensors = {"weight": np.zeros((3, 6), np.float32), "bias": np.zeros(3, np.float32)}
    for name, value in changed.items():
        (tensors if name in tensors else metadata)[name] = value
    save_file(tensors, saved, metadata)
    with pytest.raises(InputError, match=f"mine.safetensors: .*{message}"):
        load_network(saved)


def test_probabilities_are_those_of_the_models_classes_by_their_names(saved):
    pixels = coloured(6, ("a", "b", "c"), 3).images_nyxc
    by_number = load_class_judge(saved, 3, None).probabilities(pixels)
    assert np.allclose(by_number.sum(1), 1)
    assert (by_number.argmax(1) == np.arange(6) % 3).all()
    by_name = load_class_judge(saved, 2, ("cee, c", "a")).probabilities(pixels)
    np.testing.assert_array_equal(by_name, by_number[:, [2, 0]])


def test_a_judge_of_the_same_classes_in_another_order_is_another_judge(saved):
    orders = ("a", "b", "c"), ("a", "c", "b"), None
    one, other, by_number = (load_class_judge(saved, 3, names).identity for names in orders)
    assert one != other and one == by_number


def test_a_judge_without_a_models_classes_is_refused(saved):
    with pytest.raises(InputError, match="does not know the class d; expected one of its 3: a, b"):
        load_class_judge(saved, 4, ("a", "b", "c", "d"))
    with pytest.raises(InputError, match="FD-mine knows 3 classes and the model 10"):
        load_class_judge(saved, 10, None)
    with pytest.raises(InputError, match="FD-Colours knows 4 classes and the model 10"):
        load_class_judge(None, 10, ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9"))


def test_the_command_writes_a_judge_and_says_what_it_knows(tmp_path, monkeypatch, capsys):
    for split, seed in (("train", 0), ("val", 1)):
        images = coloured(40, ("a", "b"), seed)
        for n, (pixels_yxc, label) in enumerate(
            zip(images.images_nyxc, images.labels_n, strict=True)
        ):
            folder = tmp_path / "data" / split / "ab"[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels_yxc).save(folder / f"{n:03}.png")
    out = tmp_path / "out" / "mine.safetensors"
    words = ["classifier", "--data", str(tmp_path / "data"), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["evaluate", *words])
    evaluate.main()
    assert "held-out images known: 1.0" in capsys.readouterr().out
    assert load_network(out).classes == ("a", "b")


def test_the_entry_point_that_sample_looks_for_is_the_class_judge():
    (point,) = entry_points(group="var_transformer", name="image_judge")
    assert point.load() is class_judge.load_class_judge
