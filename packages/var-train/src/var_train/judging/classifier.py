"""Trains classifiers of the user's classes: linear maps of what EfficientNet-Lite0 sees.

It reads more than the network's own classifier does: besides the pooled features, the means of the
inner maps of its last blocks, which small images need. Softmax regression with L2 is all that is
trained, on real images and their mirror images.
"""

import numpy as np
from var_tokenizer.common import InputError, images_that_fit

from var_train.data.image_sources import ImageSource
from var_train.judging.measuring import look
from var_train.judging.networks import Classifier, DescribingNetwork, Features, JudgeNetwork
from var_train.judging.sets import Measured

_STRENGTH = 1e-3  # sklearn's C: of standardized features
_ROUNDS = 300  # of L-BFGS, at most
_LARGEST_BATCH = 50


def train_classifier(
    network: DescribingNetwork, name: str, images: ImageSource, measured: Measured
) -> Classifier:
    """Trains a classifier of the classes of ``images``, under ``name``.

    measured: called with numbers of images, 2 * len(images) in all. Raises InputError for a single
    class, and if the features do not fit into memory.
    """
    if len(images.classes) < 2:
        raise InputError(f"{len(images.classes)} class(es); expected at least 2 to tell apart")
    count = 2 * len(images)
    if images_that_fit(8 * network.described, count) < count:
        raise InputError(
            f"{network.described} features of {len(images)} images and their mirror images take "
            f"{4 * network.described * count >> 20} MiB; expected four times that of free memory"
        )
    described_nd = np.empty((count, network.described), np.float32)
    for begin in range(0, count, _LARGEST_BATCH):
        places = np.arange(begin, min(begin + _LARGEST_BATCH, count))
        pixels_byxc, _ = images.batch(places % len(images), flip=places >= len(images))
        batch = min(_LARGEST_BATCH, count)
        described_nd[places] = _described(look(network, pixels_byxc, batch))
        measured(len(places))
    weight_kd, bias_k = _fit(described_nd, np.tile(images.labels_n, 2), len(images.classes))
    tensors = {"weight": weight_kd.astype(np.float32), "bias": bias_k.astype(np.float32)}
    return Classifier(network, name, images.classes, tensors)


def accuracy_of(network: JudgeNetwork, images: ImageSource, measured: Measured) -> float:
    """The share of ``images`` that a network of their classes knows."""
    correct = 0
    for begin in range(0, len(images), _LARGEST_BATCH):
        places = np.arange(begin, min(begin + _LARGEST_BATCH, len(images)))
        pixels_byxc, labels_b = images.batch(places)
        logits_bk = look(network, pixels_byxc, min(_LARGEST_BATCH, len(images))).logits_bk
        assert logits_bk is not None
        correct += int((logits_bk.argmax(1) == labels_b).sum())
        measured(len(places))
    return correct / len(images)


def _fit(
    described_nd: np.ndarray, labels_n: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Softmax regression of standardized features, as weight and bias of these as they are."""
    from sklearn.linear_model import LogisticRegression  # not before it is needed: a second

    mean_d = described_nd.mean(0, dtype=np.float64).astype(np.float32)
    spread_d = described_nd.std(0, dtype=np.float64).astype(np.float32) + np.float32(1e-3)
    described_nd -= mean_d
    described_nd /= spread_d
    fitted = LogisticRegression(C=_STRENGTH, max_iter=_ROUNDS).fit(described_nd, labels_n)
    weight_kd, bias_k = fitted.coef_.astype(np.float64), fitted.intercept_.astype(np.float64)
    if classes == 2:  # scikit-learn gives the logit of the second alone
        weight_kd, bias_k = np.concatenate([-weight_kd, weight_kd]) / 2, np.r_[-bias_k, bias_k] / 2
    weight_kd = weight_kd / spread_d
    return weight_kd, bias_k - weight_kd @ mean_d


def _described(found: Features) -> np.ndarray:
    assert found.described_bd is not None
    return found.described_bd
