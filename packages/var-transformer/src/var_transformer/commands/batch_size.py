"""The batch size that fits into free memory."""

from var_tokenizer import Tokenizer
from var_tokenizer.common import images_that_fit

from var_transformer.generation.sampler import Sampler
from var_transformer.stored.stored_transformer import AnyTransformer

LARGEST_BATCH = 64


def fitting_batch(
    model: AnyTransformer, tokenizer: Tokenizer, sampler: Sampler, most: int = LARGEST_BATCH
) -> int:
    """How many images to draw at once: what half of the free memory holds, 1 to ``most``."""
    return images_that_fit(bytes_per_image(model, tokenizer, sampler), most)


def bytes_per_image(model: AnyTransformer, tokenizer: Tokenizer, sampler: Sampler) -> int:
    """An upper estimate of the memory that one more image in a batch takes.

    Keys and values, twice while they grow; the last scale's logits, and the copies that filters
    and draws make of them; the decoder.
    """
    transformer, codec = model.config, tokenizer.config
    plan = sampler.plan(len(codec.scales))
    rows = 2 if any(settings.unconditional for settings in plan) else 1
    cache = rows * 2 * 2 * transformer.depth * transformer.schedule.length * transformer.width * 4
    copies = 4 * rows + (64 if sampler.more_smooth else 40)
    logits = copies * max(transformer.schedule.tokens) * transformer.vocab_size
    return cache + logits + codec.bytes_per_image
