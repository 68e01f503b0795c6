"""The models in the box: trained on 1,437 real handwritten digits, they draw without a download.

``nox -s pretrained`` trains them again and writes the files, in float16. ``three.png`` is a
held-out digit, for an edit to begin with. The digits are the UCI Machine Learning Repository's
"Optical Recognition of Handwritten Digits" (CC BY 4.0), as scikit-learn carries them.
"""

from pathlib import Path

from var_tokenizer import Tokenizer

from var_transformer.model.checks import check_pair
from var_transformer.model.transformer import Transformer

FOLDER = Path(__file__).parent
TOKENIZER_FILE = FOLDER / "digits-tokenizer.safetensors"
TRANSFORMER_FILE = FOLDER / "digits-transformer.safetensors"
PICTURE_FILE = FOLDER / "three.png"


def load_pretrained() -> tuple[Transformer, Tokenizer]:
    """The digits' transformer and its tokenizer: 32x32 pixels, classes 0 to 9."""
    model, tokenizer = Transformer.load(TRANSFORMER_FILE), Tokenizer.load(TOKENIZER_FILE)
    check_pair(model, tokenizer)
    return model, tokenizer
