"""Weights for a transformer of other classes or scales than they were trained for (``--init``)."""

import logging

import numpy as np
from mindspore import Tensor
from var_tokenizer import ScaleSchedule, area_matrix, bicubic_matrix
from var_tokenizer.common import quoted
from var_transformer import BackendConfig, Transformer, TransformerConfig

from var_train.commands.arguments import format_size

log = logging.getLogger(__name__)


def adapted(
    init: Transformer, config: TransformerConfig, seed: int, backend: BackendConfig
) -> Transformer:
    """A transformer of ``config`` with the weights of ``init``.

    config: that of ``init`` but for ``num_classes`` and ``scales``. With another number of classes,
    the embeddings of classes start at random, by ``seed``, except that of "no class".
    With other scales, see ``resized_positions``.
    """
    model = Transformer(config, seed, backend)
    tensors = init.published_tensors()
    if config.num_classes != init.config.num_classes:
        own, no_class = model.class_emb.weight.asnumpy()[:-1], tensors["class_emb.weight"][-1:]
        tensors["class_emb.weight"] = np.concatenate([own, no_class])
    if config.scales != init.config.scales:
        tensors |= resized_positions(tensors, init.config.schedule, config.schedule)
    for name, parameter in model.parameters_and_names():
        parameter.set_data(Tensor(tensors[name]))
    return model


def resized_positions(
    tensors: dict[str, np.ndarray], before: ScaleSchedule, after: ScaleSchedule
) -> dict[str, np.ndarray]:
    """The tensors of a transformer that depend on the scales, for those of ``after``.

    The position embeddings of scale k are a map, which is resized to the size of scale k in
    ``after``: as the tokenizer resizes, bicubic where a side grows, by area where it shrinks. The
    embedding of scale k stays. Scales that ``before`` lacks start from its last one.
    """
    sources = [min(k, len(before) - 1) for k in range(len(after))]
    maps = before.split(tensors["pos_1LC"], 1)
    resized = [
        _resized(maps[source], before.sizes[source], after.sizes[k])
        for k, source in enumerate(sources)
    ]
    return {
        "pos_1LC": np.concatenate(resized, 1),
        "pos_start": _resized(tensors["pos_start"], before.sizes[0], after.sizes[0]),
        "lvl_embed.weight": tensors["lvl_embed.weight"][sources],
    }


def say_scales(name: str, before: ScaleSchedule, after: ScaleSchedule) -> None:
    """Logs what ``resized_positions`` does with the weights of the file ``name``."""
    further = len(after) - len(before)
    log.info(
        "%s: was trained with the scales %s; for %s, the position embeddings of each scale are "
        "resized (bicubic where a side grows, by area where it shrinks)%s; all other weights are "
        "carried over",
        *(name, _written(before), _written(after)),
        f", and the {further} further scale(s) start from the last one" if further > 0 else "",
    )


def say_classes(name: str, init: Transformer, classes: tuple[str, ...]) -> None:
    """Logs how the classes of the data differ from those of ``init``, of the file ``name``."""
    if init.config.num_classes != len(classes):
        log.info(
            "%s: num_classes is %d and the data's %d: class embeddings start anew",
            *(name, init.config.num_classes, len(classes)),
        )
    elif init.class_names not in (None, classes):
        differ = [
            n
            for n, pair in enumerate(zip(init.class_names, classes, strict=True))
            if pair[0] != pair[1]
        ]
        log.warning(
            "%s: %d of %d classes have other names in the data, which start from the embeddings "
            "of the same numbers: class %d is %s there and %s here",
            *(name, len(differ), len(classes), differ[0]),
            *(quoted(init.class_names[differ[0]]), quoted(classes[differ[0]])),
        )


def say_new_classes(name: str, init: Transformer, new: tuple[str, ...]) -> None:
    """Logs which classes an adapter adds to those of ``init``, of the file ``name``."""
    shown = ", ".join(quoted(each) for each in new[:5]) + (", ..." if len(new) > 5 else "")
    log.info(
        "%s: an adapter is trained beside its weights; its %d classes stay, and %d are new%s",
        *(name, init.config.num_classes, len(new)),
        f" ({shown})" if new else "",
    )


def _resized(map_1lc: np.ndarray, before: tuple[int, int], after: tuple[int, int]) -> np.ndarray:
    """(1, L, C) of a map of the size ``before``, row by row -> of the size ``after``."""
    map_yxc = map_1lc.reshape(*before, -1)
    for axis in (0, 1):
        old, new = before[axis], after[axis]
        matrix = bicubic_matrix if new > old else area_matrix
        map_yxc = np.moveaxis(np.tensordot(matrix((old, 1), (new, 1)), map_yxc, (1, axis)), 0, axis)
    return map_yxc.reshape(1, after[0] * after[1], -1).astype(np.float32)


def _written(schedule: ScaleSchedule) -> str:
    return " ".join(format_size(scale) for scale in schedule.scales)
