"""Loading a transformer and the tokenizer that it belongs to."""

from pathlib import Path

from var_tokenizer import Tokenizer
from var_tokenizer.common.progress import working

from var_transformer.model.checks import check_pair
from var_transformer.model.transformer import Transformer


def load_pair(tokenizer: Path, model: Path) -> tuple[Transformer, Tokenizer]:
    """Both models of a pair; raises InputError unless the files are whole and belong together."""
    with working("loading the models"):
        pair = Transformer.load(model), Tokenizer.load(tokenizer)
    check_pair(*pair)
    return pair
