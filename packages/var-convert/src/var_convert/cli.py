"""The command ``var-convert``."""

import dataclasses
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from var_tokenizer.common import quoted
from var_tokenizer.common.command import run_command
from var_tokenizer.common.progress import progress_bar, working

from var_convert.architecture import format_scales, parse_scales
from var_convert.conversion import convert
from var_convert.inspection import Inspection, inspect
from var_convert.merging import merge
from var_convert.training import convert_training
from var_convert.verification import Verification, verify

log = logging.getLogger("var_convert")

SUCCESS, DIFFERENT = 0, 1
Kind = Literal["tokenizer", "transformer"]


@dataclass(frozen=True, kw_only=True)
class ReadConfig:
    """The options of all three commands about a file."""

    only: Annotated[Kind | None, tyro.conf.arg(metavar="tokenizer|transformer")] = None
    """Which model of a trainer checkpoint that holds both."""
    key: Annotated[str | None, tyro.conf.arg(metavar="KEY")] = None
    """Which model of a file that holds several (of verify: of A), e.g. ema."""
    scales: Annotated[str | None, tyro.conf.arg(metavar="SIZES")] = None
    """Scale schedule, if a foreign file does not say, e.g. 1,2,3 or 1,2x3,4x6."""
    heads: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Attention heads of a foreign transformer without QK-L2 norm, if not width / 64."""
    using_znorm: bool = False
    """A foreign tokenizer looks codes up by angle, which its file does not say."""

    def arguments(self) -> dict[str, Any]:
        """The options as keywords of ``convert``, ``inspect`` and ``verify``."""
        scales = None if self.scales is None else parse_scales(self.scales)
        found = {"only": self.only, "key": self.key, "scales": scales}
        return {**found, "heads": self.heads, "using_znorm": self.using_znorm}


@dataclass(frozen=True)
class ConvertConfig(ReadConfig):
    """Write the weights of SRC as DST. The suffixes choose the formats: .pth (PyTorch), .ckpt (MindSpore), .safetensors (what var-tokenizer and var-transformer load).

    "var-convert SRC DST" is short for "var-convert convert SRC DST".
    """  # noqa: E501  tyro keeps line breaks

    src: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """File to read, or hf://OWNER/NAME/FILE, which is downloaded from the hub."""
    dst: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """File to write."""
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16", "int8"] | None,
        tyro.conf.arg(metavar="float32|float16|bfloat16|int8"),
    ] = None
    """Element type of all floating tensors; without it, each keeps its own. int8 is for the large
    weights of a transformer, in .safetensors alone."""
    force: bool = False
    """Replace DST if it exists."""


@dataclass(frozen=True)
class TrainingConfig:
    """Change the framework of a training, AdamW's moments included: write a checkpoint of var_train.run as a PyTorch trainer's file, or such a file as a checkpoint that var_train.run goes on with.

    The file is {"model": ..., "optimizer": ..., "step": ...}, and "ema" if there are averages.
    """  # noqa: E501  tyro keeps line breaks

    src: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SRC")]
    """A checkpoint of the transformer's stage, or a trainer's file."""
    dst: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DST")]
    """A .pth, or the folder of a run that has no checkpoint of a transformer yet, its --out."""
    scales: Annotated[str | None, tyro.conf.arg(metavar="SIZES")] = None
    """Scale schedule, if a trainer's file does not say, e.g. 1,2,3 or 1,2x3,4x6."""
    heads: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Attention heads of a trainer's model without QK-L2 norm, if not width / 64."""
    force: bool = False
    """Replace a .pth that exists."""


@dataclass(frozen=True)
class MergeConfig:
    """Write MODEL, a native transformer, with LoRA adapters added to its weights as OUT."""

    model: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """The transformer that the adapters were trained beside, .safetensors."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """File to write, .safetensors."""
    adapter: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="FILE[:WEIGHT]"), tyro.conf.UseAppendAction
    ] = ()
    """An adapter, .safetensors or peft's folder, and what to multiply it by, 1 by default. May be
    given several times."""
    force: bool = False
    """Replace OUT if it exists."""


@dataclass(frozen=True)
class InspectConfig(ReadConfig):
    """Show kind, architecture, parameter count, dtype, tensors and checksum of FILE."""

    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """File to read."""
    json: bool = False
    """Print JSON, not tables."""


@dataclass(frozen=True)
class VerifyConfig(ReadConfig):
    """Compare the architecture of A and B, and every tensor.

    Exits with 0 if they agree, 1 if they differ, 2 if a file is unusable.
    """

    a: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="A")]
    """First file."""
    b: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="B")]
    """Second file, of any of the formats."""
    tolerance: float = 0.0
    """Largest difference of a tensor's elements that still counts as the same."""
    forward: bool = False
    """Also run the .pth side in PyTorch and the other in MindSpore on the same random input, and
    compare ids, logits and images. Needs the extra [torch]."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs the command with ``args``, by default the process's; returns the exit code."""
    kinds = {
        "convert": ConvertConfig,
        "inspect": InspectConfig,
        "verify": VerifyConfig,
        "training": TrainingConfig,
        "merge": MergeConfig,
    }
    args = list(sys.argv[1:] if args is None else args) or ["--help"]
    if args[0] not in (*kinds, "-h", "--help"):
        args = ["convert", *args]
    try:
        run_command(
            kinds,
            "var-convert",
            _run,
            "interrupted; nothing was written",
            description="Weights of VAR in and out: var-convert SRC DST. PyTorch (.pth), MindSpore "
            "(.ckpt) and safetensors on either side; the architecture is read from the file.",
            args=args,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except SystemExit as end:
        return int(end.code or SUCCESS)
    return SUCCESS


def _run(config: ReadConfig | TrainingConfig | MergeConfig) -> int:
    if isinstance(config, TrainingConfig):
        return _convert_training(config)
    if isinstance(config, MergeConfig):
        return _merge(config)
    if isinstance(config, ConvertConfig):
        return _convert(config)
    if isinstance(config, InspectConfig):
        return _inspect(config)
    assert isinstance(config, VerifyConfig)
    return _verify(config)


def _convert(command: ConvertConfig) -> int:
    with _progress(f"{_name(command.src)} -> {_name(command.dst)}") as progress:
        result = convert(
            command.src,
            command.dst,
            dtype=command.dtype,
            force=command.force,
            progress=progress,
            **command.arguments(),
        )
    log.info(
        "wrote %s: a %s of %d tensors, %.1f MB",
        quoted(result.target),
        result.kind,
        result.tensors,
        result.bytes / 1e6,
    )
    return SUCCESS


def _convert_training(command: TrainingConfig) -> int:
    scales = None if command.scales is None else parse_scales(command.scales)
    with working(f"{_name(command.src)} -> {_name(command.dst)}"):
        result = convert_training(command.src, command.dst, scales, command.heads, command.force)
    log.info(
        "wrote %s: a training after step %d, %d parameters with their moments%s",
        quoted(result.target),
        result.step,
        result.parameters,
        ", and averaged weights" if result.averaged else "",
    )
    return SUCCESS


def _merge(command: MergeConfig) -> int:
    with working(f"{_name(command.model)} -> {_name(command.out)}"):
        result = merge(command.model, command.adapter, command.out, command.force)
    log.info(
        "wrote %s: a transformer of %d classes with %d adapter(s) of %s numbers in its weights",
        *(quoted(result.target), result.classes, result.adapters, f"{result.parameters:,}"),
    )
    return SUCCESS


def _inspect(command: InspectConfig) -> int:
    with _progress(_name(command.file)) as progress:
        found = inspect(command.file, progress=progress, **command.arguments())
    if command.json:
        sys.stdout.write(json.dumps(_as_json(found), indent=2, default=str) + "\n")
    else:
        _show_inspection(found)
    return SUCCESS


def _as_json(found: Inspection) -> dict[str, Any]:
    names = {"path": "file", "config": "architecture"}
    return {names.get(name, name): value for name, value in dataclasses.asdict(found).items()}


def _show_inspection(found: Inspection) -> None:
    about = Table("field", "value", title=_shown(found.path), title_justify="left")
    about.add_row("kind", found.kind)
    for field, value in dataclasses.asdict(found.config).items():
        shown = format_scales(value) if field == "scales" else str(value)
        about.add_row(field, f"{shown} (assumed)" if field in found.assumed else shown)
    about.add_row("parameters", f"{found.parameters:,}")
    about.add_row("dtype", found.dtype)
    about.add_row("checksum", found.checksum)
    about.add_row("NaN or infinite", _shown(", ".join(found.not_finite)) or "none")
    if found.kind == "transformer":
        about.add_row("tokenizer", found.tokenizer or "unknown")
        about.add_row("class names", _shown(_first(found.class_names or ())) or "unknown")
    elif found.rounded_from is not None:
        about.add_row("rounded from", found.rounded_from)
    tensors = Table("tensor", "dtype", "shape")
    for tensor in found.tensors:
        tensors.add_row(_shown(tensor.name), tensor.dtype, str(list(tensor.shape)))
    _show(about, tensors)


def _name(file: str | Path) -> str:
    """The name of a file, without its folder, for a progress bar."""
    return quoted(Path(file).name)


def _shown(name: str | Path) -> str:
    """A name from a file or a file system, safe for a table: no escape codes, no markup."""
    return escape(quoted(name))


def _first(names: tuple[str, ...]) -> str:
    """The first few class names."""
    return ", ".join(quoted(name) for name in names[:5]) + (", ..." if len(names) > 5 else "")


def _verify(command: VerifyConfig) -> int:
    with _progress(f"{_name(command.a)} = {_name(command.b)}", "tensors") as progress:
        result = verify(
            command.a, command.b, forward=command.forward, progress=progress, **command.arguments()
        )
    _show_verification(result)
    if result.agrees(command.tolerance):
        log.info("the same %s: largest difference %g", result.kind, result.largest)
        return SUCCESS
    for line in result.architecture:
        log.error("the architectures differ: %s", line)
    if result.largest > command.tolerance:
        over = sum(tensor.largest > command.tolerance for tensor in result.tensors)
        log.error(
            "%d of %d tensors differ by more than %g: the largest difference is %g",
            over,
            len(result.tensors),
            command.tolerance,
            result.largest,
        )
    if result.forward and not result.forward.agrees:
        log.error("the forward passes differ")
    return DIFFERENT


def _show_verification(result: Verification) -> None:
    tensors = Table("tensor", "largest difference", "type and shape")
    for tensor in result.tensors:
        about = tensor.a if tensor.a == tensor.b else f"{tensor.a} | {tensor.b}"
        tensors.add_row(_shown(tensor.name), f"{tensor.largest:g}", about)
    _show(tensors)
    if result.forward is None:
        return
    ids = result.forward.ids
    outputs = Table("MindSpore against PyTorch", "difference")
    near = f"{ids.unexplained} of them not by a near tie"
    outputs.add_row("token ids", f"{ids.differing} of {ids.tokens}, {near}")
    for name in ("images", "teacher_inputs", "logits"):
        difference = getattr(result.forward, name)
        if difference is not None:
            outputs.add_row(name.replace("_", " "), f"{difference:.2g}")
    _show(outputs)


def _show(*tables: Table) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)  # a pipe has no width: do not break names and checksums
    for table in tables:
        for column in table.columns:
            column.overflow = "fold"
        console.print(table)


@contextmanager
def _progress(what: str, unit: str = "MB") -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, or lines in the log, while the block runs.

    It pulses before the first and after the last byte, and counts megabytes, or what ``unit`` says.
    """
    scale = 1e6 if unit == "MB" else 1
    with progress_bar(transient=True) as bar:
        task = bar.add_task(what, total=None, unit=unit)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done / scale, total=total / scale if done < total else None)

        yield progress


if __name__ == "__main__":
    sys.exit(main())
