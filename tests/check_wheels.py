"""Checks wheels with kernels: that they run on any processor of the architecture.

check_wheels.py WHEEL ...

A wheel has to be for every version of Python and to hold the kernels, and no instruction in them
may be above the baseline but in the functions of a variant, whose names building.py ends with the
variant's. Needs objdump.
"""

import logging
import re
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

# Of x86-64: what no processor needs to have (SSE3 and later; tzcnt is bsf on one that lacks it)
MNEMONICS = re.compile(
    r"(v(?!er[rw])|addsub|h(add|sub)p|mov(s[hl]dup|ddup|be|ntdqa)|lddqu|fistt|pshufb|ph(add|sub)"
    r"|pmaddubsw|pmulhrsw|psign|pabs|palignr|p?blend|dpp[sd]|insertps|extractps|mpsadbw|packusdw"
    r"|pcmp(eqq|gtq|[ei]str)|phminpos|p(ext|ins)r[bdq]|p(max|min)(sb|sd|ud|uw)|pmov[sz]x"
    r"|pmul(dq|ld)|ptest|round[ps][sd]|crc32|popcnt|lzcnt|andn[lq]?$|bextr|bls|bzhi|mulx"
    r"|p(dep|ext)[lq]?$|rorx|s(ar|hl|hr)x|cmpxchg16b|aes|pclmul|sha(1|256)|rd(rand|seed)|xsave)"
)
V4_OPERANDS = re.compile(r"%zmm|%k[0-7]|%[xy]mm(1[6-9]|2\d|3[01])")  # not in v3
log = logging.getLogger("check_wheels")


def misplaced(library: Path) -> tuple[Counter[str], list[str]]:
    """How many instructions above the baseline each variant has, and those where none may be."""
    command = ["objdump", "-d", "--no-show-raw-insn", str(library)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    above: Counter[str] = Counter()
    wrong, function, variant = [], "", ""
    for line in text.splitlines():
        if named := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            function = named[1]
            ending = re.search(r"[._](v3|v4)$", function)
            variant = ending[1] if ending else "baseline"
        elif "\t" in line:
            instruction = line.split("\t", 1)[1]
            v4 = V4_OPERANDS.search(instruction)
            if v4 or MNEMONICS.match(instruction):
                above[variant] += 1
                if variant == "baseline" or (v4 and variant == "v3"):
                    wrong.append(f"{function}: {instruction}")
    return above, wrong


def check(wheel: Path) -> list[str]:
    """What is wrong with a wheel."""
    _, _, python, abi, platform = wheel.stem.split("-")
    if (python, abi) != ("py3", "none") or not platform.endswith("x86_64"):
        return [f"{wheel.name} is for {python}-{abi}-{platform}, expected py3-none-...x86_64"]
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        kernels = [name for name in archive.namelist() if name.endswith("/_kernels.so")]
        if len(kernels) != 1:
            return [f"{wheel.name} has {kernels or 'no kernels'}, expected one _kernels.so"]
        above, wrong = misplaced(Path(archive.extract(kernels[0], folder)))
    log.info("%s: instructions above the baseline: %s", wheel.name, dict(above))
    if not (above["v3"] and above["v4"]):
        wrong.append("a variant has no instruction of its own: is it there?")
    return [f"{wheel.name}: {line}" for line in wrong]


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if wrong := [line for name in sys.argv[1:] for line in check(Path(name))]:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
