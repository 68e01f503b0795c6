"""The rules between the packages: arrows go left to right, and through public names only."""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

try:
    import tomllib
except ImportError:  # Python 3.10, where pytest brings it
    import tomli as tomllib

ROOT = Path(__file__).parents[1] / "packages"
ORDER = ("var_tokenizer", "var_transformer", "var_train", "var_convert")
MAY_IMPORT = {
    "var_tokenizer": (),
    "var_transformer": ("var_tokenizer",),
    "var_train": ("var_tokenizer", "var_transformer"),
    "var_convert": ("var_tokenizer", "var_transformer"),
}
SHARED = (  # the room of var-tokenizer that is for the siblings
    "var_tokenizer.common",
    "var_tokenizer.common.command",
    "var_tokenizer.common.progress",
)


def source(package: str) -> Path:
    return ROOT / package.replace("_", "-") / "src" / package


def imports(folder: Path) -> Iterator[tuple[Path, str, tuple[str, ...]]]:
    """(file, module, names) of every import statement in a folder."""
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                yield path, node.module, tuple(alias.name for alias in node.names)
            elif isinstance(node, ast.Import):
                yield from ((path, alias.name, ()) for alias in node.names)


def public_names(module: str) -> set[str]:
    """Those in ``__all__``; without it, what is defined without a ``_`` or imported as itself."""
    package, _, inner = module.partition(".")
    path = source(package) / inner.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree, defined = ast.parse(path.read_text()), set()
    for node in tree.body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                names = target.elts if isinstance(target, ast.Tuple) else [target]
                defined |= {name.id for name in names if isinstance(name, ast.Name)}
            if "__all__" in defined:
                return set(ast.literal_eval(node.value))
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            defined |= {alias.name for alias in node.names if alias.asname == alias.name}
    return {name for name in defined if not name.startswith("_")}


@pytest.mark.parametrize("package", ORDER)
def test_a_package_reaches_into_siblings_through_their_public_names_only(package):
    for path, module, names in imports(source(package)):
        sibling = module.split(".")[0]
        if sibling not in ORDER or sibling == package:
            continue
        assert sibling in MAY_IMPORT[package], f"{path} imports {module}"
        assert module == sibling or module in SHARED, f"{path} reaches into {module}"
        # a package's own __init__.py may, so that MindSpore's import is quiet
        assert names or path.name == "__init__.py", f"{path} imports the whole of {module}"
        assert set(names) <= public_names(module), f"{path} imports {names} from {module}"


def test_benchmarks_train_through_public_names_only():
    measures_parts = "data_growth.py"  # of a start and of a step, each by itself
    for path, module, names in imports(ROOT.parent / "benchmarks"):
        if module.split(".")[0] == "var_train" and path.name != measures_parts:
            assert module == "var_train", f"{path} reaches into {module}"
            assert set(names) <= public_names(module), f"{path} imports {names} from {module}"


@pytest.mark.parametrize("package", ORDER)
def test_a_package_declares_the_siblings_it_imports(package):
    project = tomllib.loads((source(package).parents[1] / "pyproject.toml").read_text())["project"]
    declared = {name for name in ORDER if name.replace("_", "-") in project["dependencies"]}
    used = {module.split(".")[0] for _, module, _ in imports(source(package))} & set(ORDER)
    assert declared == used - {package}


@pytest.mark.parametrize("package", [name for name in ORDER if name != "var_convert"])
def test_torch_is_for_var_convert_alone(package):
    found = imports(source(package))
    assert not [path for path, module, _ in found if module.split(".")[0] == "torch"]


@pytest.mark.parametrize("package", ORDER)
def test_every_package_has_its_version_readme_changelog_licence_and_tests(package):
    folder = source(package).parents[1]
    version = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["version"]
    assert f"## {version}" in (folder / "CHANGELOG.md").read_text()
    assert len((folder / "README.md").read_text()) > 200
    assert (folder / "LICENSE").is_file()
    assert list((folder / "tests").glob("test_*.py"))


@pytest.mark.parametrize("package", ORDER)
def test_what_a_package_ships_is_there_and_not_ignored_by_git(package):
    project = tomllib.loads((source(package).parents[1] / "pyproject.toml").read_text())
    found = {}
    for pattern in project["tool"]["setuptools"]["package-data"][package]:
        found[pattern] = list(source(package).glob(pattern))
    assert all(found.values()), found
    files = [str(path) for paths in found.values() for path in paths]
    ignored = subprocess.run(["git", "check-ignore", *files], cwd=ROOT, capture_output=True)
    assert ignored.stdout == b""
