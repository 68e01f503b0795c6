"""Builds the operators in Ascend C for a dry run, by the project's own command.

    python benchmarks/ascend/cann/build.py                   # first
    python benchmarks/ascend/build_operators.py [--built .ascend-dry-run]

g++ stands for CANN's compiler, and the tests' model of the instructions for its library;
MindSpore's builder, headers and Ascend plug-in are the real ones. Takes a minute, and ninja.
"""

import argparse
import logging
import os
import shlex
import subprocess
import sys
from pathlib import Path

from dry_run import BUILT, OPERATORS, SOC, device_environment

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "packages" / "var-transformer" / "tests" / "ascend_c_model"
COMPILER = f"""#!/bin/sh
# Stands for CANN's compiler: g++ without the two options that it lacks.
for option; do
  shift
  case $option in -xasc | --npu-arch=*) ;; *) set -- "$@" "$option" ;; esac
done
exec g++ -I'{MODEL}' "$@"
"""

log = logging.getLogger("build")


def build(built: Path) -> None:
    """Builds them into the folder of ``cann/build.py``; ends the program where that fails."""
    home, tools = built.resolve() / OPERATORS, built.resolve() / "bin"
    for folder in (home, tools):
        folder.mkdir(exist_ok=True)
    compiler = tools / "bisheng"
    compiler.write_text(COMPILER)
    compiler.chmod(0o755)
    of_cann = device_environment(built, SOC, 1)
    environment = os.environ | {
        "HOME": str(home),
        "PATH": os.pathsep.join((str(tools), str(Path(sys.executable).parent), os.environ["PATH"])),
        "CXX": shlex.join(("g++", f"-I{MODEL / 'without_cann'}", f"-I{MODEL}")),
        **{name: of_cann[name] for name in ("ASCEND_HOME_PATH", "ASCEND_OPP_PATH")},
    }
    command = [sys.executable, "-m", "var_transformer.ascend_c"]
    if code := subprocess.run(command, env=environment, cwd=built, check=False).returncode:
        sys.exit(f"{' '.join(command)} ended with {code}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--built", type=Path, default=BUILT, help="what cann/build.py wrote")
    build(parser.parse_args().built)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
