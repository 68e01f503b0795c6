"""A smaller transformer for the last scales (collaborative decoding, arXiv:2411.17787)."""

from dataclasses import dataclass

from var_tokenizer import LatentCodec
from var_tokenizer.common import InputError, check_integer, quoted

from var_transformer.model.checks import check_pair
from var_transformer.model.transformer import Transformer
from var_transformer.stored.stored_transformer import AnyTransformer


@dataclass(frozen=True)
class Refiner:
    """A smaller transformer that draws the last ``scales`` scales.

    The larger one drafts the coarse scales, which decide the image. The last scales hold most of
    the tokens, and a smaller model suffices for them.
    """

    model: Transformer
    scales: int

    def check(self, model: AnyTransformer, tokenizer: LatentCodec) -> None:
        """Raises InputError unless it can take over from ``model``."""
        check_pair(self.model, tokenizer)
        ours, theirs = self.model.config.num_classes, model.config.num_classes
        if ours != theirs:
            raise InputError(
                f"num_classes is {ours} in the refiner and {theirs} in the transformer; "
                "expected the same"
            )
        names = (self.model.class_names or (), model.class_names or ())
        for n, (a, b) in enumerate(zip(*names, strict=False)):  # published weights have none
            if a != b:
                raise InputError(
                    f"class {n} is {quoted(a)} in the refiner and {quoted(b)} in the transformer; "
                    "expected the same names"
                )
        most = len(tokenizer.schedule) - 1
        check_integer("the refiner's scales", self.scales, 1, most)
