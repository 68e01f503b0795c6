"""What the pages say holds: paths exist, links lead somewhere, commands parse, imports work."""

import ast
import importlib
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tyro

ROOT = Path(__file__).parents[1]
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md", *ROOT.glob("packages/**/README.md")]
MAPS = [ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", *READMES]
PAGES = sorted([*MAPS, *ROOT.glob("packages/*/CHANGELOG.md"), *ROOT.glob("docs/**/*.md")])
WRITTEN = {
    "dist/",
    "pictures/",
    "checkpoints/",
    "tensorboard/",
    "runs/",
}  # by commands, not in the tree


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, text) of the code blocks of a page: fenced ones, then indented ones."""
    text = page.read_text()
    fence = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    found = fence.findall(text)
    indented = re.compile(r"(?:^|\n\n)((?: {4}.*(?:\n|$)|\n(?= {4}))+)")
    return found + [("", block) for block in indented.findall(fence.sub("", text))]


def commands(page: Path) -> Iterator[str]:
    """The lines of a page's code blocks that call a command of ours, without what is around it."""
    for language, block in blocks(page):
        if language in ("", "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                line = line.split("  #")[0].strip().removeprefix("$ ")
                line = re.sub(r"^\S*nox -s digits -- ", "python -m var_train.run ", line)
                line = re.sub(r"^(msrun|python -m var_train.launch) .*?(?=python -m)", "", line)
                if re.match(r"python -m var_\w+\.|var-convert ", line):
                    yield " ".join(line.split())


COMMANDS = sorted({(name(page), line) for page in PAGES for line in commands(page)})


class Parsed(BaseException):
    """Raised in place of what a command would do."""


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=lambda value: value[:60])
def test_a_command_of_a_page_parses(page, line, monkeypatch, capfd, tmp_path):
    words = shlex.split(line)
    module = "var_convert.cli" if words[0] == "var-convert" else words[2]
    command = importlib.import_module(module)
    if hasattr(command, "__path__"):  # a package
        command = importlib.import_module(f"{module}.__main__")
    real = tyro.cli

    def stop(*_, **__):
        raise Parsed

    def parse(*arguments, **options):
        real(*arguments, **options)
        stop()

    monkeypatch.setattr(tyro, "cli", parse)
    of_subcommands = tyro.extras.subcommand_cli_from_dict

    def parse_subcommand(*arguments, **options):
        of_subcommands(*arguments, **options)
        stop()

    monkeypatch.setattr(tyro.extras, "subcommand_cli_from_dict", parse_subcommand)
    if hasattr(command, "evaluate_tokenizer"):  # its parser calls it
        monkeypatch.setattr(command, "evaluate_tokenizer", stop)
        monkeypatch.setattr(command, "evaluate_samples", stop)
        monkeypatch.setattr(command, "make_classifier", stop)
    monkeypatch.setattr(sys, "argv", [words[0], *words[1 if words[0] == "var-convert" else 3 :]])
    monkeypatch.chdir(tmp_path)
    try:
        code = command.main()
    except Parsed:
        return
    except SystemExit as end:
        code = end.code
    said = capfd.readouterr()
    assert code == 0 and "--help" in words, f"{page}: {line}\n{said.out}{said.err}"


def test_pages_have_commands():
    """So that the test above does not pass because it finds none."""
    assert len(COMMANDS) > 30
    assert {words.split()[2] for _, words in COMMANDS if words.startswith("python")} >= {
        "var_train.run",
        "var_train.tokenize",
        "var_train.evaluate",
        "var_transformer.sample",
        "var_transformer.edit",
        "var_transformer.serve",
        "var_transformer.cost",
    }


def test_the_commands_of_both_readmes_are_equal():
    assert blocks(ROOT / "README.md") == blocks(ROOT / "README.zh-CN.md")
    assert len(blocks(ROOT / "README.md")) >= 5


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_nox_sessions_that_a_page_names_exist(page):
    sessions = set(re.findall(r"^def (\w+)\(session", (ROOT / "noxfile.py").read_text(), re.M))
    for named in re.findall(r"nox -s ([\w ]+)", page.read_text()):
        assert set(named.split()[:1]) <= sessions, named


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        linked = page.parent / path if path else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
            slugs |= {re.sub("-+", "-", slug) for slug in slugs}  # as MkDocs has it
            assert anchor in slugs, target


@pytest.mark.parametrize("page", MAPS, ids=name)
def test_paths_that_a_page_names_exist(page):
    """Files and rooms in backticks: from the root, the page's folder, or inside a package."""
    package = [page.parent] if page.parent != ROOT else []
    sources = [*(package or ROOT.glob("packages/*"))]
    roots = [ROOT, page.parent, *(src for p in sources for src in (p / "src", *p.glob("src/*")))]
    for path in re.findall(
        r"`([\w./-]+(?:\.(?:py|md|toml|txt|ini|yaml|yml|cc|cpp|h)|/))`", page.read_text()
    ):
        if path in WRITTEN or path.isupper() or re.match(r"[A-Z]+/", path):
            continue
        found = any((root / path).exists() for root in roots)
        if "/" not in path.rstrip("/"):
            found = found or any(list(p.glob(f"**/{path}")) for p in sources)
        assert found, path


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_of_a_page_imports_what_there_is(page):
    for language, block in blocks(page):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("var_"):
                module = importlib.import_module(node.module)
                assert not [a.name for a in node.names if not hasattr(module, a.name)], page


@pytest.mark.parametrize("notebook", sorted(ROOT.glob("notebooks/*.ipynb")), ids=name)
def test_a_notebook_is_stored_without_outputs(notebook):
    """They change with every build and processor; `nox -s slow` runs the cells."""
    for cell in json.loads(notebook.read_text())["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None


def test_pre_commit_has_the_versions_of_ci():
    pins = re.findall(r"[\w-]+==[\w.]+", (ROOT / ".pre-commit-config.yaml").read_text())
    assert pins and set(pins) <= set(
        re.findall(r"[\w-]+==[\w.]+", (ROOT / "noxfile.py").read_text())
    )


@pytest.mark.parametrize("page", ["README.md", "README.zh-CN.md", "docs/speed.md"])
def test_the_figures_of_a_page_are_those_of_the_record(page, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "speed")
    tables = importlib.import_module("tables")
    text = (ROOT / page).read_text()
    assert "<!-- " in text
    assert tables.with_tables(text, *tables.records()) == text
