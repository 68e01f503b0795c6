"""Builds a folder that MindSpore's Ascend plug-in takes for CANN, from what that plug-in asks for.

    python benchmarks/ascend/cann/build.py [--out .ascend-dry-run]

Works on the MindSpore of the python that runs it, without importing it. Needs Linux on x86-64, g++
and binutils; takes half a minute.
"""

import argparse
import json
import logging
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

log = logging.getLogger("build")

HERE = Path(__file__).resolve().parent
CANN_VERSION = "8.5.0"  # what the folder claims to be; MindSpore only compares and warns
STUB = "libascend_dry_run.so"
SUMMARY = "built.json"  # written last

# Functions of MindSpore that preload.cpp replaces: what they are called, and what they jump to.
OVERRIDES = {
    "mindspore::kernel::AclKernelMod::Resize(": "override_acl_resize",
    "mindspore::kernel::AclKernelMod::Launch(": "override_true",
    "mindspore::kernel::AclKernelMod::RefreshAclConverter(": "override_nothing",
    "mindspore::device::ascend::AclConverter::ConvertToAclAttr(": "override_nothing",
    "mindspore::device::ascend::AclConverter::ConvertInputToAclAttr(": "override_nothing",
}
BASE_RESIZE = "mindspore::kernel::KernelMod::Resize("
DATA = ("_ZTV", "_ZTI", "_ZTS", "_ZTT", "_ZGV")  # of C++ classes: tables, not functions
NEVER = {"_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable", "__gmon_start__"}


def run(*command: str | Path) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))[:300]}\n{done.stderr[:3000]}")
    return done.stdout


class Library:
    """What the dynamic section and the symbol table of a shared library say."""

    def __init__(self, path: Path) -> None:
        self.path = path
        dynamic = run("readelf", "-dW", path)
        self.needed = re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic)
        self.defined: set[str] = set()
        self.undefined: dict[str, str] = {}  # name: FUNC, OBJECT, TLS or NOTYPE
        for line in run("readelf", "-W", "--dyn-syms", path).splitlines():
            fields = line.split()
            if len(fields) < 8 or not fields[0].rstrip(":").isdigit():
                continue
            name, kind, section = fields[7].split("@")[0], fields[3], fields[6]
            if section == "UND":
                self.undefined[name] = kind
            else:
                self.defined.add(name)


def is_x86_64(path: Path) -> bool:
    """Whether it is an ELF file for this processor; the wheel has some for others."""
    with path.open("rb") as file:
        head = file.read(20)
    return head[:4] == b"\x7fELF" and int.from_bytes(head[18:20], "little") == 62


def mindspore_folder() -> Path:
    spec = util.find_spec("mindspore")  # finds without importing
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"{sys.executable} has no mindspore; run this by the python that has it")
    return Path(next(iter(spec.submodule_search_locations)))


def system_libraries() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for line in run("/sbin/ldconfig", "-p").splitlines():
        match = re.match(r"\s+(\S+) \(.*x86-64.*\) => (\S+)", line)
        if match:
            found.setdefault(match[1], Path(match[2]))
    return found


def closure(roots: Iterable[Path], of_wheel: dict[str, Path]) -> dict[Path, Library]:
    """The roots and what they need of the wheel, directly or not."""
    found: dict[Path, Library] = {}
    todo = list(roots)
    while todo:
        path = todo.pop()
        if path not in found:
            found[path] = Library(path)
            todo += [of_wheel[n] for n in found[path].needed if n in of_wheel]
    return found


def opened_by_name(libraries: Iterable[Path]) -> set[str]:
    """Paths below CANN's folder that a library opens while it runs, by the texts in it."""
    names = set()
    for path in libraries:
        names |= set(re.findall(rb"\0/?(lib64/(?:driver/)?lib[\w+-]+\.so)\0", path.read_bytes()))
    return {name.decode() for name in names}


def demangled(names: Iterable[str]) -> dict[str, str]:
    names = sorted(names)
    done = subprocess.run(
        ["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True
    )
    return dict(zip(done.stdout.splitlines(), names, strict=True))


def jumps(pairs: Iterable[tuple[str, str]], named: bool) -> str:
    """Assembler: each symbol jumps to its handler; ``named`` gives it the symbol as argument."""
    lines = [".text"]
    for symbol, handler in pairs:
        lines += [f".globl {symbol}", f".type {symbol},@function", f"{symbol}:"]
        if named:
            lines += [f'.section .rodata\n.L_{symbol}: .string "{symbol}"\n.text']
            lines += [f"lea .L_{symbol}(%rip), %rdi"]
        lines += [f"jmp {handler}@PLT", f".size {symbol}, .-{symbol}"]
    return "\n".join(lines)


def zeros(symbols: Iterable[str]) -> str:
    """Assembler: data that is only ever addressed, such as the type information of a class."""
    lines = [".data", ".balign 16"]
    for symbol in symbols:
        lines += [f".globl {symbol}", f".type {symbol},@object", f".size {symbol}, 256"]
        lines += [f"{symbol}: .zero 256"]
    return "\n".join(lines)


def compile_library(out: Path, *sources: Path, flags: Iterable[str] = ()) -> None:
    old_abi = "-D_GLIBCXX_USE_CXX11_ABI=0"  # std::string as MindSpore's own libraries have it
    options = ["-O2", "-std=c++17", "-fPIC", "-shared", "-Wall", "-Wl,-z,noexecstack"]
    options += [old_abi, f'-DCANN_VERSION="{CANN_VERSION}"']
    run("g++", *options, *flags, "-o", out, *sources, "-ldl", "-lpthread")


@dataclass(frozen=True)
class Plugin:
    """What MindSpore's Ascend plug-in asks for.

    asking: its libraries and those of the wheel that they need. libraries: these and others of the
    wheel, which may define something. missing: names of libraries that nobody has. functions, data:
    symbols that nobody defines.
    """

    asking: dict[Path, Library]
    libraries: dict[Path, Library]
    missing: list[str]
    functions: list[str]
    data: list[str]


def read_plugin() -> Plugin:
    """Of the MindSpore of this python; ends the program where that has no such plug-in."""
    package = mindspore_folder()
    plugin = package / "lib" / "plugin"
    roots = sorted(plugin.glob("libmindspore_ascend.so*"))
    if not roots:
        sys.exit(f"{plugin} has no libmindspore_ascend.so; this wheel is without Ascend")
    # opened by the plug-in itself, where they can be
    more = ("hccl_plugin", "graph_ir", "mindspore_internal_kernels")
    roots += [p for m in more for p in sorted((plugin / "ascend").glob(f"lib*{m}.so"))]

    files = [p for p in package.rglob("*.so*") if p.is_file() and is_x86_64(p)]
    of_wheel = {p.name: p for p in files}
    asking = closure(roots, of_wheel)
    libraries = dict(asking)
    for path in (p for p in files if p.parent in (package, package / "lib", plugin)):
        libraries.setdefault(path, Library(path))
    of_system = system_libraries()
    needed = {name for library in asking.values() for name in library.needed}
    missing = sorted(n for n in needed if n not in of_wheel and n not in of_system)

    defined = set().union(*(library.defined for library in libraries.values()))
    for name in sorted(needed & of_system.keys()):
        defined |= Library(of_system[name]).defined
    defined |= python_symbols(of_system) | NEVER
    wanted: dict[str, str] = {}
    for library in asking.values():
        # _ZTH: initializers of thread-local variables, weak, mean something by being absent
        for symbol, kind in library.undefined.items():
            if symbol not in defined and not symbol.startswith("_ZTH"):
                wanted[symbol] = kind
    data = sorted(s for s, k in wanted.items() if k in ("OBJECT", "TLS") or s[:4] in DATA)
    return Plugin(asking, libraries, missing, sorted(wanted.keys() - set(data)), data)


def build(out: Path) -> dict[str, object]:
    """Writes the folder, whole or not at all; returns what it holds, for people."""
    if platform.machine() != "x86_64":
        sys.exit(f"the generated assembler is for x86-64; this machine is {platform.machine()}")
    if absent := [tool for tool in ("g++", "readelf", "c++filt") if shutil.which(tool) is None]:
        sys.exit(f"{absent[0]} is not installed; expected g++ and binutils")
    if out.exists() and not (out / SUMMARY).exists():
        sys.exit(f"{out} exists and was not built here; expected a new folder")
    plugin = read_plugin()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{out.name}-", dir=out.parent) as temporary:
        made = Path(temporary) / out.name
        summary = write(made, plugin)
        shutil.rmtree(out, ignore_errors=True)
        made.rename(out)
    return summary


def write(out: Path, plugin: Plugin) -> dict[str, object]:
    cann, work = out / "cann" / "latest", out / "build"  # MindSpore 2.7 looks for "latest"
    work.mkdir(parents=True)
    runtime, stubs = work / "runtime.so", work / "stubs.s"
    compile_library(runtime, HERE / "runtime.cpp")
    functions = sorted(set(plugin.functions) - Library(runtime).defined)
    called = jumps(((symbol, "dry_run_called") for symbol in functions), True)
    stubs.write_text(f"{called}\n{zeros(plugin.data)}\n")

    lib64 = cann / "lib64"
    (lib64 / "driver").mkdir(parents=True)
    compile_library(lib64 / STUB, HERE / "runtime.cpp", stubs, flags=[f"-Wl,-soname,{STUB}"])
    opened = opened_by_name(plugin.asking)
    for name in sorted({f"lib64/{n}" for n in plugin.missing} | opened):
        (cann / name).symlink_to(("../" if "driver/" in name else "") + STUB)
    overridden = write_overrides(work, plugin.asking, plugin.libraries)
    compile_library(
        out / "libascend_dry_run_preload.so",
        *(HERE / "preload.cpp", work / "overrides.s"),
        flags=[f"-I{work}"],
    )
    write_folder(cann)
    write_python(out / "python")
    summary = {
        "mindspore": metadata.version("mindspore"),
        "libraries": plugin.missing,
        "opened_by_name": sorted(opened),
        "functions": {group: len(names) for group, names in groups(functions).items()},
        "data": len(plugin.data),
        "overridden": overridden,
    }
    (out / SUMMARY).write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def python_symbols(of_system: dict[str, Path]) -> set[str]:
    """What the interpreter gives to extension modules."""
    executable = Path(sys.executable).resolve()
    library = Library(executable)
    names = set(library.defined)
    for name in library.needed:
        path = of_system.get(name)
        for folder in (executable.parent.parent / "lib", executable.parent):
            path = path or ((folder / name) if (folder / name).exists() else None)
        if path is not None:
            names |= Library(path).defined
    return names


def groups(symbols: Iterable[str]) -> dict[str, list[str]]:
    """By the part of CANN that they are of."""
    of: dict[str, list[str]] = defaultdict(list)
    for symbol in symbols:
        plain = re.match(r"(acl[a-z]*|Hccl|hal|rt|Msprof|Nnopbase|OpApi|mm|drv)(?=[A-Z_])", symbol)
        spaced = re.match(r"_ZNK?(\d+)(\w+)", symbol)
        group = plain[1] if plain else spaced[2][: int(spaced[1])] + "::" if spaced else "other"
        of[group].append(symbol)
    return dict(sorted(of.items()))


def write_overrides(
    work: Path, asking: dict[Path, Library], libraries: dict[Path, Library]
) -> dict[str, str]:
    """The names that preload.cpp takes from MindSpore, and which of them this MindSpore has."""
    symbols = {s for library in asking.values() for s in library.defined}
    names = demangled(s for s in symbols if "AclKernelMod" in s or "AclConverter" in s)
    pairs = {
        mangled: handler
        for prefix, handler in OVERRIDES.items()
        for plain, mangled in names.items()
        if plain.startswith(prefix)
    }
    symbol = library = ""
    for path, each in libraries.items():
        resizes = demangled(s for s in each.defined if "9KernelMod6Resize" in s)
        for plain, mangled in resizes.items():
            if plain.startswith(BASE_RESIZE):
                symbol, library = mangled, path.name
    (work / "overrides.s").write_text(jumps(sorted(pairs.items()), False) + "\n")
    (work / "overrides.h").write_text(
        f'#define BASE_RESIZE "{symbol}"\n#define BASE_RESIZE_LIBRARY "{library}"\n'
    )
    found = {p: any(plain.startswith(p) for plain in names) for p in OVERRIDES}
    for prefix in (p for p, there in found.items() if not there):
        log.warning("this MindSpore has no %s to replace", prefix[:-1])
    return {prefix[:-1]: "found" if there else "absent" for prefix, there in found.items()}


def write_folder(cann: Path) -> None:
    """The files that MindSpore reads the version from, and folders that it looks for."""
    for folder in ("compiler", "opp", "opp_kernel", "runtime"):
        (cann / folder).mkdir(parents=True)
        (cann / folder / "version.info").write_text(f"Version={CANN_VERSION}\n")
    (cann / "opp" / "built-in" / "op_impl" / "ai_core" / "tbe").mkdir(parents=True)


def write_python(folder: Path) -> None:
    """Packages of CANN that MindSpore imports, to compare versions and to register kernels."""
    for package in ("te", "tbe", "hccl"):
        (folder / package).mkdir(parents=True)
        shutil.copy(HERE / "anything.py", folder / package / "__init__.py")
        for module, name in (("version", "version"), ("sys_version", "__sys_version__")):
            (folder / package / f"{module}.py").write_text(f'{name} = "{CANN_VERSION}"\n')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--out", type=Path, default=Path(".ascend-dry-run"))
    arguments = parser.parse_args()
    built = build(arguments.out.resolve())
    log.info("%s: MindSpore %s, %s", arguments.out, built["mindspore"], built["functions"])


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    main()
