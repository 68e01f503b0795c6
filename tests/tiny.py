"""The tiny models of all test suites: `tiny.tokenizer()`, `tiny.transformer(depth=1)`.

The two fit together. A test names only the fields that its claim is about.
"""

from typing import TYPE_CHECKING, Any

from var_tokenizer import TokenizerConfig

if TYPE_CHECKING:
    from var_transformer import TransformerConfig

SCALES = (1, 2, 3)
_TOKENS = {"vocab_size": 32, "latent_channels": 8, "scales": SCALES}


def tokenizer(**changes: Any) -> TokenizerConfig:
    """Two levels, so images of 6 x 6 pixels, and four shared convolutions."""
    levels = {"channels": 32, "channel_multipliers": (1, 2), "res_blocks": 1}
    return TokenizerConfig(**(_TOKENS | levels | changes))


def transformer(**changes: Any) -> "TransformerConfig":
    """Two blocks of two heads, and five classes."""
    from var_transformer import TransformerConfig  # var-tokenizer's tests run without it

    size = {"depth": 2, "width": 32, "heads": 2, "num_classes": 5}
    return TransformerConfig(**(_TOKENS | size | changes))


ADVERSARIAL = """
    --tokenizer.channel-multipliers 1 1 --tokenizer.vocab-size 16 --tokenizer.scales 1 2 4
    --train-tokenizer.batch 8 --train-tokenizer.ema 0.9
    --train-tokenizer.codebook.start kmeans --train-tokenizer.codebook.scale-dropout 0.5
    --train-tokenizer.codebook.revive-every 2
    --train-tokenizer.adversary.weight 0.5 --train-tokenizer.adversary.start 0.4
    --train-tokenizer.adversary.channels 32
"""
"""Options of a tokenizer's training with all that has a state of its own, on images of 4 x 4."""
