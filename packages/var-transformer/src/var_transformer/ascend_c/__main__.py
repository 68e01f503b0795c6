"""Builds the fused operators on a machine with CANN.

python -m var_transformer.ascend_c
"""

import logging
from dataclasses import dataclass

from var_tokenizer.common.command import run_command

from var_transformer.ascend_c.building import build

log = logging.getLogger("var_transformer")


@dataclass(frozen=True)
class BuildConfig:
    """Compiles the kernels and makes them operators of MindSpore."""

    npu_arch: str = "dav-2201"
    """The architecture of the vector cores, as CANN's compiler names it; dav-2201 is that of 910B
    and 910_93."""


def run(options: BuildConfig) -> None:
    log.info("built in %s", build(options.npu_arch))


def main() -> None:
    """The command; see ``run_command``."""
    run_command(BuildConfig, "python -m var_transformer.ascend_c", run)


if __name__ == "__main__":
    main()
