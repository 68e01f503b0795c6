"""The probability of a model's classes, by a network: what ``sample`` selects candidates by."""

from pathlib import Path

import numpy as np
from var_tokenizer.common import InputError, arrays_checksum, quoted

from var_train.judging.figures import probabilities
from var_train.judging.networks import Classifier, JudgeNetwork, load_network


class ClassJudge:
    """An entry point of var-transformer makes it: see ``load_class_judge``.

    identity: a digest of the network's weights, and of which of its classes the model's are.
    """

    def __init__(self, network: JudgeNetwork, columns_k: np.ndarray) -> None:
        """columns_k: of each class of the model, its number in the network."""
        self.identity = arrays_checksum({"columns": columns_k}, network.identity)
        self._network, self._columns_k = network, columns_k

    def probabilities(self, images_byxc: np.ndarray) -> np.ndarray:
        """(B, K) float64 of uint8 images (B, Y, X, 3)."""
        logits_bk = self._network.features(images_byxc).logits_bk
        assert logits_bk is not None
        return probabilities(logits_bk)[0][:, self._columns_k]


def load_class_judge(
    path: Path | None, num_classes: int, names: tuple[str, ...] | None
) -> ClassJudge:
    """A judge of ``num_classes`` classes, by ``load_network``.

    names: of the model's classes, in which commas separate synonyms. A classifier that has names,
    too, knows each by one of them; otherwise numbers are the same.

    Raises InputError for a network without classes, or with other ones.
    """
    network = load_network(path)
    if isinstance(network, Classifier) and names is not None:
        places = {name: n for n, name in enumerate(network.classes)}
        return ClassJudge(network, np.array([_place(name, places) for name in names]))
    known = network.features(np.zeros((1, 32, 32, 3), np.uint8)).logits_bk
    count = 0 if known is None else known.shape[1]
    if count != num_classes:
        raise InputError(
            f"{network.name} knows {count} classes and the model {num_classes}; expected as many "
            "to judge candidates by (evaluate classifier trains a judge of your classes)"
        )
    return ClassJudge(network, np.arange(num_classes))


def _place(name: str, places: dict[str, int]) -> int:
    for synonym in (name, *map(str.strip, name.split(","))):
        if synonym in places:
            return places[synonym]
    raise InputError(
        f"the judge does not know the class {quoted(name)}; expected one of its "
        f"{len(places)}: {', '.join(map(quoted, list(places)[:8]))}"
    )
