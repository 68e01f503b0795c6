"""The batch size that fits into free memory."""

from pathlib import Path

from var_tokenizer import Tokenizer

from var_transformer.generation.sampler import Sampler
from var_transformer.model.transformer import Transformer

LARGEST_BATCH = 64


def fitting_batch(model: Transformer, tokenizer: Tokenizer, sampler: Sampler) -> int:
    """How many images fit into half of the free memory at once, 1 to 64."""
    fitting = int(0.5 * _free_bytes() / bytes_per_image(model, tokenizer, sampler))
    return max(min(fitting, LARGEST_BATCH), 1)


def bytes_per_image(model: Transformer, tokenizer: Tokenizer, sampler: Sampler) -> int:
    """An upper estimate of the memory that one more image in a batch takes.

    Keys and values, twice while they grow; the last scale's logits, and the copies that filters
    and draws make of them; the decoder's lookup of nine neighbours for each pixel at full size.
    """
    transformer, codec = model.config, tokenizer.config
    plan = sampler.plan(len(codec.scales))
    rows = 2 if any(settings.unconditional for settings in plan) else 1
    cache = rows * 2 * 2 * transformer.depth * transformer.schedule.length * transformer.width * 4
    copies = 4 * rows + (64 if sampler.more_smooth else 40)
    logits = copies * max(transformer.schedule.tokens) * transformer.vocab_size
    height, width = codec.image_size
    widest = codec.channels * codec.channel_multipliers[0]
    decoder = 4 * height * width * widest * (9 + 6)
    return cache + logits + decoder


def _free_bytes() -> int:
    """Bytes of free memory; 4 GiB if the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return 4 * 2**30
