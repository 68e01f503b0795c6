"""Run by `nox -s alone` in an environment that holds var-tokenizer and nothing else of ours."""

import importlib.util
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from var_tokenizer import Tokenizer, TokenizerConfig

for absent in ("torch", "var_transformer", "var_train", "var_convert"):
    assert importlib.util.find_spec(absent) is None, f"{absent} is installed beside var-tokenizer"

# a photograph by dany13 (CC BY), as scikit-learn ships it, made small
photo = Path(__file__).with_name("flower.png")
pixels_yxc = np.asarray(Image.open(photo).convert("RGB").resize((32, 32)), np.float32)
image_bcyx = pixels_yxc.transpose(2, 0, 1)[None] / 127.5 - 1

config = TokenizerConfig(
    vocab_size=64,
    latent_channels=8,
    channels=32,
    channel_multipliers=(1, 1, 2),
    scales=(1, 2, 4, 8),
)
tokenizer = Tokenizer(config)
ids = tokenizer.encode(image_bcyx)
assert [tuple(i.shape) for i in ids] == [(1, 1), (1, 4), (1, 16), (1, 64)]
output = np.asarray(tokenizer.decode(ids))
assert output.shape == (1, 3, 32, 32) and np.isfinite(output).all() and abs(output).max() <= 1

with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "tokenizer.safetensors"
    tokenizer.save(path)
    again = Tokenizer.load(path).encode(image_bcyx)
assert all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(ids, again, strict=True))
