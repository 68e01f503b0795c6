"""Checks operators, gradients and attention on this device, and times them, a step and an image.

python -m var_transformer.check_ascend --out check
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import mindspore as ms
from var_tokenizer import TokenizerConfig
from var_tokenizer.common import check_cann, check_integer, check_npu, find_npu, on_cpu
from var_tokenizer.common.command import run_command

from var_transformer.attention import AttentionCalls, BackendConfig
from var_transformer.check_ascend.attention_checks import attention_checks
from var_transformer.check_ascend.checks import Check, Finding, find
from var_transformer.check_ascend.draw_checks import draw_checks
from var_transformer.check_ascend.measurements import time_check, time_images, time_step
from var_transformer.check_ascend.operator_checks import operator_checks
from var_transformer.check_ascend.report import Report, write
from var_transformer.check_ascend.tokenizer_checks import tokenizer_checks
from var_transformer.model.config import TransformerConfig

log = logging.getLogger("var_transformer")

FAILED = 1  # the exit code if a check fails
_HEADS, _IMAGES = 4, 2  # of a checked attention; float64 takes its time
_DRAWN = 8  # images whose ids are drawn at once, at most
_RUNS = 20  # of what is timed; of a step and a generation a quarter


@dataclass(frozen=True)
class CheckConfig:
    """Compares everything with its definition in float64; writes a JSON file and tables.

    It needs an Ascend; without one it checks what the CPU runs. The exit code is 1 if a check
    fails.
    """

    out: Path
    """The folder for check_ascend.json and check_ascend.md."""
    preset: str = "d16"
    """The model whose shapes are used: d16, d20, d24, d30 (256 px) or d36-s (512 px)."""
    batch: int | None = None
    """Images of a step; by default 96 on an Ascend and 1 on a CPU."""
    images: int = 8
    """Images of a generation."""

    def __post_init__(self) -> None:
        TransformerConfig.preset(self.preset)
        if self.batch is not None:
            check_integer("batch", self.batch, 1)
        check_integer("images", self.images, 1)


def candidates() -> dict[str, BackendConfig]:
    """Every attention that this device has, by name."""
    if on_cpu():
        return {"C++ kernels": BackendConfig(), "portable": BackendConfig("portable")}
    found = {"portable, float32": BackendConfig("portable")}
    ways: tuple[AttentionCalls, ...] = ("segments", "banded", "masked")
    for dtype in (ms.float16, ms.bfloat16):
        kind = str(dtype).lower()
        found |= {f"{calls}, {kind}": BackendConfig("ascend", dtype, calls) for calls in ways}
    return found


def checks_of(
    config: TransformerConfig,
    codec: TokenizerConfig,
    heads: int,
    images: int,
    attentions: dict[str, BackendConfig],
) -> list[Check]:
    """All checks at the shapes of two models, attention with so many heads."""
    halves = (ms.float16,) if on_cpu() else (ms.float16, ms.bfloat16)
    shape = (images, config.schedule.length, config.width, config.heads)
    operators = [c for dtype in (ms.float32, *halves) for c in operator_checks(dtype, *shape)]
    head_width = config.width // config.heads
    operators += tokenizer_checks(codec, images)
    # of the last scale, which has the most tokens; a generation has fewer images than a step
    most = min(images, _DRAWN)
    operators += draw_checks(most, config.schedule.tokens[-1], config.vocab_size)
    return operators + attention_checks(config.schedule, heads, head_width, images, attentions)


def run(options: CheckConfig) -> int:
    cann = _cann()
    config = TransformerConfig.preset(options.preset)
    codec = TokenizerConfig(scales=config.scales)
    report = examine(config, codec, options.batch or (1 if on_cpu() else 96), options.images, cann)
    json_path, table_path = write(report, options.out)
    failed = [finding for finding in report.findings if finding.fault]
    for finding in failed:  # again, behind all that the measurements said
        _say(finding)
    log.info("%d of %d checks failed", len(failed), len(report.findings))
    log.info("written: %s, %s", json_path, table_path)
    return FAILED if failed else 0


def _cann() -> str:
    """CANN's version; "none" where there is no NPU. Raises InputError for one that is not used."""
    npu = find_npu()
    if npu is None and on_cpu():
        log.warning("no Ascend here: checking what the CPU runs")
        return "none"
    return check_cann() if npu is None else check_npu(npu)


def examine(
    config: TransformerConfig, codec: TokenizerConfig, batch: int, images: int, cann: str
) -> Report:
    """Runs all checks and measurements, and logs each finding."""
    attentions = candidates()
    findings = []
    for check in checks_of(config, codec, min(_HEADS, config.heads), _IMAGES, attentions):
        finding = find(check)
        _say(finding)
        findings.append(finding)
    where = {
        "device": ms.get_context("device_target"),
        "CANN": cann,
        "MindSpore": ms.__version__,
        "depth": config.depth,
        "batch": batch,
        "images": images,
    }
    log.info("timing calls at a batch of %d", batch)
    checks = checks_of(config, codec, config.heads, batch, attentions)
    calls = [time_check(check, _RUNS) for check in checks]
    log.info("timing a step and a generation")
    runs = _RUNS // 4
    steps = [time_step(config, name, b, batch, runs) for name, b in attentions.items()]
    drawn = [time_images(config, codec, name, b, images, runs) for name, b in attentions.items()]
    return Report(where, findings, calls, steps, drawn)


def _say(finding: Finding) -> None:
    level = logging.ERROR if finding.fault else logging.INFO
    log.log(level, "%s, %s: %s", finding.name, finding.dtype, finding.fault or "as defined")


def main() -> None:
    """The command; see ``run_command``."""
    run_command(CheckConfig, "python -m var_transformer.check_ascend", run)


if __name__ == "__main__":
    main()
