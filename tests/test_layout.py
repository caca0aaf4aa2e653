"""The directories of tests are those of the package, and tests import helpers, not each other."""

import ast
from pathlib import Path

import diffusers_dp_curriculum
from helpers import TESTS


def imported(path):
    """The names of the modules that a file imports, also in programs that it holds as text."""
    found, texts = set(), [path.read_text(encoding="utf-8")]
    while texts:
        try:
            nodes = list(ast.walk(ast.parse(texts.pop())))
        except (SyntaxError, ValueError):  # not a program
            continue
        for node in nodes:
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "import" in node.value:
                texts.append(node.value)
    return found


def test_no_test_module_is_imported():
    paths = list(TESTS.rglob("*.py"))
    tests = {path.stem for path in paths if path.name.startswith("test_")}
    assert {path.name: names for path in paths if (names := imported(path) & tests)} == {}


def test_directories_of_tests_are_rooms_of_the_package():
    """Only the benchmarks are outside of the package."""
    (package,) = diffusers_dp_curriculum.__path__
    rooms = {path.name for path in Path(package).iterdir() if path.is_dir()}
    with_tests = {path.parent.relative_to(TESTS).as_posix() for path in TESTS.rglob("test_*.py")}
    assert with_tests <= rooms | {".", "benchmarks"}
