"""Builds the fused operators on a machine with CANN.

python -m var_transformer.ascend_c --soc Ascend910B2
"""

import logging
from dataclasses import dataclass

from var_tokenizer.common.command import run_command

from var_transformer.ascend_c.building import build

log = logging.getLogger("var_transformer")


@dataclass(frozen=True)
class BuildConfig:
    """Compiles the kernels and makes them operators of MindSpore."""

    soc: str = "Ascend910B2"
    """The chip, as `npu-smi info` names it."""


def run(options: BuildConfig) -> None:
    log.info("built in %s", build(options.soc))


def main() -> None:
    """The command; see ``run_command``."""
    run_command(BuildConfig, "python -m var_transformer.ascend_c", run)


if __name__ == "__main__":
    main()
