"""An adapter in memory: pairs of small matrices, and rows for the table of class embeddings."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from var_tokenizer.common import InputError, arrays_checksum, quoted

from var_transformer.adapters.targets import linear_shapes
from var_transformer.model.config import TransformerConfig


@dataclass(frozen=True, eq=False)
class Pair:
    """What is added to a weight (outputs, inputs): ``scale * up @ down``."""

    down_ri: np.ndarray
    """A, (rank, inputs) float32."""
    up_or: np.ndarray
    """B, (outputs, rank) float32."""
    scale: float

    def product(self) -> np.ndarray:
        """(outputs, inputs) float64."""
        return self.scale * (self.up_or.astype(np.float64) @ self.down_ri.astype(np.float64))


@dataclass(frozen=True, eq=False)
class Adapter:
    """What fine-tuning by LoRA (arXiv:2106.09685) found.

    source: the file, for messages, as ``quoted`` shows it. pairs: by the name of the affine map.
    class_names, class_rows_mc: classes that the base lacks, and their embeddings. replaced_rows:
    new embeddings of classes that it has, by number. table_nc: a whole new table of embeddings.
    base, tokenizer: checksums of the weights that it was trained beside, if they are known.
    """

    source: str
    pairs: Mapping[str, Pair]
    class_names: tuple[str, ...] = ()
    class_rows_mc: np.ndarray | None = None
    replaced_rows: Mapping[int, np.ndarray] = field(default_factory=dict)
    table_nc: np.ndarray | None = None
    base: str | None = None
    tokenizer: str | None = None

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """All arrays by name."""
        found = {f"{name}.A": pair.down_ri for name, pair in self.pairs.items()}
        found |= {f"{name}.B": pair.up_or for name, pair in self.pairs.items()}
        found |= {f"class {n}": row_c for n, row_c in self.replaced_rows.items()}
        for name, array in (("new classes", self.class_rows_mc), ("table", self.table_nc)):
            if array is not None:
                found[name] = array
        return found

    @property
    def digest(self) -> str:
        """SHA-256 of all that images depend on."""
        scales = {name: pair.scale for name, pair in self.pairs.items()}
        return arrays_checksum(self.arrays, f"{scales} {self.class_names}")

    @property
    def parameters(self) -> int:
        """How many numbers it holds."""
        return sum(array.size for array in self.arrays.values())

    def check_fits(self, config: TransformerConfig) -> None:
        """Raises InputError, which names the shapes, for an adapter of another architecture."""
        shapes = linear_shapes(config)
        for name, pair in self.pairs.items():
            own = (pair.up_or.shape[0], pair.down_ri.shape[1])
            if name not in shapes:
                raise InputError(
                    f"{self.source}: adapts {quoted(name)} {own}, which the model of depth "
                    f"{config.depth} and width {config.width} lacks; expected an adapter of its "
                    "architecture"
                )
            if own != shapes[name]:
                raise InputError(
                    f"{self.source}: adapts {quoted(name)} of shape {own}, which is "
                    f"{shapes[name]} in the model; expected an adapter of its architecture"
                )
        for array in (self.class_rows_mc, self.table_nc, *self.replaced_rows.values()):
            if array is not None and array.shape[-1] != config.width:
                raise InputError(
                    f"{self.source}: class embeddings of {array.shape[-1]} channels; expected "
                    f"{config.width}, the model's"
                )
        for number in self.replaced_rows:
            if number > config.num_classes:
                raise InputError(
                    f"{self.source}: trains the embedding of class {number}, and the model has "
                    f"{config.num_classes}; expected at most {config.num_classes}, which is no "
                    "class (for new classes, modules_to_save class_emb)"
                )
        if self.table_nc is not None and len(self.table_nc) <= config.num_classes:
            raise InputError(
                f"{self.source}: class_emb.weight has {len(self.table_nc)} rows; expected at least "
                f"{config.num_classes + 1}, those of the model"
            )
