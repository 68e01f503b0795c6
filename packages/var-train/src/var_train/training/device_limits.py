"""What this device cannot do, said before the first step: a type, a batch beyond its memory."""

from pathlib import Path
from typing import TYPE_CHECKING

import mindspore as ms
from mindspore import ops
from var_tokenizer.common import InputError, on_cpu
from var_transformer import USABLE, TransformerConfig, least_memory, most_images, step_memory

from var_train.parallel import workers

if TYPE_CHECKING:
    from var_train.training.transformer_settings import TransformerStageConfig

_GIB = 2**30


def device_memory() -> int | None:
    """Bytes of this device; with a CPU those of the machine, its swap included.

    None where the system does not say.
    """
    if not on_cpu():
        ops.zeros(1)  # before its first operator a device says 0
        ms.runtime.synchronize()
        try:
            return ms.hal.get_device_properties(0).total_memory or None
        except ValueError:  # a simulation has no device
            return None
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return 1024 * (kib.get("MemTotal", 0) + kib.get("SwapTotal", 0)) or None


def check_device(stage: "TransformerStageConfig", model: TransformerConfig) -> None:
    """Raises InputError if the device cannot train ``model`` so.

    For want of memory it names the batch that fits; on a CPU only if no form of the step would.
    """
    if stage.precision.dtype == "bfloat16" and on_cpu():
        raise InputError(
            "dtype is bfloat16; expected float32 or float16 on a CPU, where MindSpore has no "
            "product of bfloat16 matrices"
        )
    if stage.lora.rank:  # how much less an adapter needs is measured, not counted
        return
    memory = device_memory()
    if memory is None:
        return
    parts = workers.size() * stage.accumulation
    images = -(-stage.batch // parts)
    shards = workers.size() if stage.shard_optimizer else 1
    contrasted = stage.objective == "cca"  # takes images twice, and keeps the model as it was
    itemsize = 4 if stage.precision.dtype == "float32" else 2

    def needed(images: int, recompute: bool = stage.recompute) -> float:
        """Bytes, by images at once."""
        images *= 1 + contrasted
        if on_cpu():
            return least_memory(model, images, shards)
        options = (recompute, stage.accumulation > 1, stage.ema > 0, shards)
        counted = step_memory(model, images, itemsize, *options)
        return counted.total + contrasted * counted.model

    fitting = most_images(needed, memory, images)
    if fitting == images:
        return
    recomputed = most_images(lambda n: needed(n, recompute=True), memory, images)
    expected = f"a batch of at most {fitting * parts}" if fitting else "a smaller model"
    if recomputed > fitting:
        fit = min(recomputed * parts, stage.batch)
        expected += f", or recompute, with which {fit} images fit"
    raise InputError(
        f"batch is {stage.batch} in {parts} part(s), each of which needs "
        f"{needed(images) / _GIB:,.1f} GiB of a device's memory, and {USABLE * memory / _GIB:,.1f} "
        f"of {memory / _GIB:,.1f} can be used; expected {expected} (accumulation and "
        "shard_optimizer save memory, too)"
    )
