"""The project's chores; `nox --list` names them. Each installs what it needs."""

from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "test"]
nox.options.reuse_existing_virtualenvs = True
nox.needs_version = ">=2024.10"

ROOT = Path(__file__).parent
PACKAGES = ("var-tokenizer", "var-transformer", "var-train", "var-convert")
TORCH = "torch==2.13.0"  # a range would take a CUDA build of several GB
PYTHON = "3.11"


def install(session: nox.Session, *packages: str, extras: tuple[str, ...] = ()) -> None:
    """Installs packages of this repository, with `extras` from the registry."""
    session.install(*(str(ROOT / "packages" / name) for name in packages), *extras)


def pytest(session: nox.Session, python: str, *arguments: str) -> None:
    environment = {"GLOG_v": "3"}
    session.run(python, "-m", "pytest", *arguments, env=environment, external=True)


@nox.session(python=PYTHON)
def lint(session: nox.Session) -> None:
    """Formatting and lint."""
    session.install("ruff==0.17.6")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")


@nox.session(python=PYTHON)
def types(session: nox.Session) -> None:
    """Type checking (mypy.ini), from sources alone: neither MindSpore nor torch is installed.

    All that mypy reads is pinned, or a release elsewhere would turn this red.
    """
    tools = ("mypy==2.4.1", "nox==2026.10.20")
    libraries = ("numpy==1.26.4", "pillow==12.3.0", "rich==15.0.0", "safetensors==0.8.0")
    session.install(*tools, *libraries, "tyro==1.0.17")
    session.run("mypy")


@nox.session(python=PYTHON)
def test(session: nox.Session) -> None:
    """The fast tests of all packages."""
    web = str(ROOT / "packages" / "var-transformer") + "[web]"
    browser = ("selenium", "axe-selenium-python")
    tools = ("pytest", "hypothesis", "ninja", *browser)
    install(session, *PACKAGES, extras=(web, TORCH, *tools))
    tests = ["tests", *(f"packages/{name}/tests" for name in PACKAGES)]
    pytest(session, "python", *tests, "-m", "not slow", *session.posargs)


@nox.session(venv_backend="none", requires=["test"])
def slow(session: nox.Session) -> None:
    """Full published sizes, long runs and the web page, in the environment of `test`.

    The web page's tests need Chromium, are skipped without it, and fail without it where
    REQUIRE_CHROMIUM is set.
    """
    python = str(ROOT / ".nox" / "test" / "bin" / "python")
    # a process for each file: MindSpore keeps the gigabytes that it once took
    for path in sorted(ROOT.glob("packages/*/tests/**/test_*.py")):
        if "mark.slow" in path.read_text():
            pytest(session, python, str(path), "-m", "slow")


@nox.session(venv_backend="none", requires=["test"])
def sanitizers(session: nox.Session) -> None:
    """The native kernels in two threads under Thread-, Address- and UndefinedBehaviorSanitizer.

    In a program of its own, built here; of the environment of `test` it uses MindSpore's oneDNN.
    """
    python = str(ROOT / ".nox" / "test" / "bin" / "python")
    session.run(python, "tests/native/sanitizers.py", *session.posargs, external=True)


@nox.session(python=PYTHON)
def alone(session: nox.Session) -> None:
    """The tokenizer installs and works without a sibling and without torch."""
    install(session, "var-tokenizer")
    session.run("python", "packages/var-tokenizer/tests/standalone.py", env={"GLOG_v": "3"})


@nox.session(python=PYTHON)
def digits(session: nox.Session) -> None:
    """The main job: trains both stages on the embedded digits and samples new ones."""
    install(session, "var-tokenizer", "var-transformer", "var-train")
    # at Ctrl-C nox would kill the run half a second later, before it has saved
    command = ("python", "-m", "var_train.run", *session.posargs)
    session.run(*command, interrupt_timeout=None)


@nox.session(python=PYTHON)
def bench(session: nox.Session) -> None:
    """This project beside PyTorch on this machine: ratios, and benchmarks/latest.json."""
    install(session, *PACKAGES, extras=(TORCH,))
    session.run("python", "benchmarks/speed/pairs.py", *session.posargs)


@nox.session(python=PYTHON)
def growth(session: nox.Session) -> None:
    """How time grows with batch, depth and resolution; draws docs/pictures/speed.png."""
    install(session, "var-tokenizer", "var-transformer", extras=("matplotlib",))
    session.run("python", "benchmarks/speed/growth.py", *session.posargs)
    session.run("python", "benchmarks/speed/chart.py")
