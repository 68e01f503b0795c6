"""Estimates what a training step and a generation cost on a device, part by part.

python -m var_transformer.cost --preset d16 --batch 96 --device ascend-910b
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import mindspore as ms
from rich.console import Console
from rich.table import Table
from var_tokenizer import TokenizerConfig
from var_tokenizer.common import check_integer
from var_tokenizer.common.command import run_command

from var_transformer.attention import BackendConfig, build
from var_transformer.attention.devices import Device, device
from var_transformer.attention.segments import Plan, Segment, cut_at, scores
from var_transformer.cost import parts as priced
from var_transformer.cost.memory import USABLE, StepMemory, least_memory, most_images, step_memory
from var_transformer.cost.parts import Part, total
from var_transformer.model.config import TransformerConfig

# Seconds that a MindSpore port of VAR-d16 reports for Ascend 910B.
PUBLISHED_STEP = {("d16", 96): 1.70}
PUBLISHED_IMAGE = {("d16", 8): 0.32}


@dataclass(frozen=True)
class CostConfig:
    """Prints multiply-adds, bytes, launches and roofline time of all parts, and a step's memory."""

    preset: str = "d16"
    """d16, d20, d24, d30 (256 px) or d36-s (512 px)."""
    batch: int = 96
    """Images of a training step."""
    images: int = 8
    """Images of a generation, with guidance."""
    device: str = "ascend-910b"
    """ascend-910b, ascend-910a or cpu; published peaks, see attention/devices.py."""
    fused: bool = False
    """A generation also with the fused operators of var_transformer.ascend_c."""

    def __post_init__(self) -> None:
        TransformerConfig.preset(self.preset)
        device(self.device)
        check_integer("batch", self.batch, 1)
        check_integer("images", self.images, 1)


def run(options: CostConfig) -> None:
    console = Console(width=132)
    for table in tables(options):
        console.print(table)


def tables(options: CostConfig) -> list[Table]:
    """The attention's calls, the training step and its memory, the generation."""
    config, on = TransformerConfig.preset(options.preset), device(options.device)
    name = "portable" if options.device == "cpu" else "ascend"
    width = config.width // config.heads
    backend = BackendConfig(name, ms.float16)
    attend = build(config.schedule, config.heads, width, config.qk_l2_norm, backend)
    used = tuple(Segment(*call) for call in attend.plans[-1])
    length = config.schedule.length
    masked = (Segment(0, length, True, length - 1),)
    steps = [
        priced.training_step(config, options.batch, masked, on),
        priced.training_step(config, options.batch, used, on),
    ]
    codec = TokenizerConfig(scales=config.scales)
    generations = [
        priced.generation(config, codec, options.images, False, on),
        priced.generation(config, codec, options.images, True, on, options.fused),
    ]
    fused = ", fused" * options.fused
    published_step = PUBLISHED_STEP.get((options.preset, options.batch))
    published_image = PUBLISHED_IMAGE.get((options.preset, options.images))
    return [
        _calls(
            config,
            options.batch,
            on,
            {
                "masked": masked,
                "one banded call": cut_at(config.schedule, len(config.schedule), banded=True),
                "as trained": used,
                "cut everywhere": cut_at(config.schedule, 1),
            },
        ),
        _table(
            f"Training step of {options.preset}, batch {options.batch}, on {on.name}",
            ("masked", "as trained"),
            steps,
            on,
            f"a step (published: {published_step or '-'})",
            1,
        ),
        _memory(config, options, on),
        _table(
            f"Generation by {options.preset}, batch {options.images}, with guidance, on {on.name}",
            ("cache joined", "cache in place" + fused),
            generations,
            on,
            f"an image (published: {published_image or '-'})",
            options.images,
        ),
    ]


def _calls(config: TransformerConfig, batch: int, on: Device, plans: dict[str, Plan]) -> Table:
    """What each way to cut saves in scores and costs in launches and copies."""
    table = Table(title=f"Attention of a training step of batch {batch} on {on.name}")
    columns = ("launches", "scores", "of the full mask", "copied (GB)", "roofline (ms)")
    for column in ("", *columns):
        table.add_column(column, justify="right" if column else "left")
    table.add_column("calls, queries x keys")
    for name, plan in plans.items():
        calls, copies = priced.attention(config, batch, plan, on.itemsize)
        seconds = config.depth * (calls.seconds(on) + copies.seconds(on))
        table.add_row(
            name,
            str(len(plan)),
            f"{scores(plan):,}",
            f"{scores(plan) / config.schedule.length**2:.3f}",
            f"{config.depth * copies.bytes / 1e9:,.1f}",
            f"{1e3 * seconds:,.1f}",
            " ".join(_call(segment) for segment in plan),
        )
    table.caption = "launches and scores: forward, per block, head and image; the rest: all blocks"
    return table


def _call(segment: Segment) -> str:
    shape = f"{segment.end - segment.begin}x{segment.end}"
    if not segment.masked:
        return shape
    whole = segment.reach >= segment.end - 1
    return shape + (" masked" if whole else f" masked, {segment.reach} ahead")


def _table(
    title: str,
    variants: tuple[str, str],
    parts: list[list[Part]],
    on: Device,
    unit: str,
    images: int,
) -> Table:
    """One row for each part; both variants where they differ."""
    table = Table(title=f"{title}\n{variants[0]} -> {variants[1]} where they differ")
    columns = ("part", "multiply-adds (G)", "bytes moved (GB)", "launches", "roofline (ms)")
    for column in columns:
        table.add_column(column, justify="left" if column == "part" else "right")
    sums = [total(variant) for variant in parts]
    for one, other in zip(*parts, strict=True):
        table.add_row(one.name, *_cells(one, other, on))
    table.add_section()
    # a part waits for the one before: the sum of the rooflines, not the roofline of the sum
    times = [sum(part.seconds(on) for part in variant) for variant in parts]
    cells = _cells(sums[0], sums[1], on)[:-1]
    table.add_row("total", *cells, _both(*(f"{1e3 * t:,.1f}" for t in times)))
    launching = [s.launches * on.launch for s in sums]
    least = [max(pair) / images for pair in zip(times, launching, strict=True)]
    host = _both(*(f"{1e3 * t:,.1f}" for t in launching))
    table.caption = (
        f"dispatch by the host {host} ms; at least {_both(*(f'{t:.3f}' for t in least))} s {unit}"
    )
    return table


def _memory(config: TransformerConfig, options: CostConfig, on: Device) -> Table:
    """What a step holds at its peak; on a CPU, whose forms keep less, a lower bound."""
    table = Table(title=f"Memory of a training step of {options.preset}, batch {options.batch}")
    for column in ("", "GiB", "GiB with recompute"):
        table.add_column(column, justify="right" if column else "left")
    if options.device == "cpu":
        rows = {"at least": 2 * [least_memory(config, options.batch)]}
        most = 2 * [most_images(partial(least_memory, config), on.memory)]
    else:
        forms = [
            partial(step_memory, config, itemsize=on.itemsize, recompute=again)
            for again in (False, True)
        ]
        kinds = [form(images=options.batch) for form in forms]
        most = [most_images(_totals(form), on.memory) for form in forms]
        rows = {
            "weights, gradients, moments": [kind.weights for kind in kinds],
            "the model's weights, from the first checkpoint on": [kind.model for kind in kinds],
            "kept by the blocks": [kind.blocks for kind in kinds],
            "head and loss, or a block's backward pass": [kind.rest for kind in kinds],
            "total": [kind.total for kind in kinds],
        }
    for name, sizes in rows.items():
        table.add_row(name, *(f"{size / 2**30:,.1f}" for size in sizes))
    fit = _both(*("fits" if options.batch <= images else "does not fit" for images in most))
    table.caption = (
        f"{fit} into {USABLE * on.memory / 2**30:.1f} of {on.memory / 2**30:.1f} GiB; "
        f"at most a batch of {_both(*map(str, most))}"
    )
    return table


def _totals(form: Callable[..., StepMemory]) -> Callable[[int], float]:
    """Bytes, by images at once."""
    return lambda images: form(images=images).total


def _cells(one: Part, other: Part, on: Device) -> list[str]:
    def numbers(part: Part) -> list[str]:
        return [
            f"{part.madds / 1e9:,.1f}",
            f"{part.bytes / 1e9:,.2f}",
            f"{part.launches:,}",
            f"{1e3 * part.seconds(on):,.2f}",
        ]

    return [_both(a, b) for a, b in zip(numbers(one), numbers(other), strict=True)]


def _both(one: str, other: str) -> str:
    return one if one == other else f"{one} -> {other}"


def main() -> None:
    """The command; see ``run_command``."""
    run_command(CostConfig, "python -m var_transformer.cost", run)


if __name__ == "__main__":
    main()
