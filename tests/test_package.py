"""The package as users get it: a wheel, installed without the repository."""

import ast
import json
import os
import shutil
import subprocess
import sys

import pytest

import diffusers_dp_curriculum
from diffusers_dp_curriculum import cli
from helpers import REPOSITORY, write_privacy_json


PACKAGE = REPOSITORY / "src" / "diffusers_dp_curriculum"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A directory that holds what the wheel installs."""
    directory = tmp_path_factory.mktemp("wheel")
    # A copy without the output of earlier builds, which setuptools would put into the wheel.
    sources = directory / "sources"
    shutil.copytree(REPOSITORY, sources, ignore=shutil.ignore_patterns(".*", "build", "outputs", "*.egg-info"))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", directory, sources], check=True)
    (wheel,) = directory.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", directory / "site", wheel], check=True)
    return directory / "site"


def test_the_wheel_holds_everything_that_the_repository_does(site):
    in_repository = {path.relative_to(PACKAGE) for path in PACKAGE.rglob("*") if path.suffix != ".pyc"}
    installed = {path.relative_to(site / PACKAGE.name) for path in (site / PACKAGE.name).rglob("*")}
    assert {path for path in in_repository if path.name != "__pycache__"} <= installed


def test_the_console_script_works_without_the_repository(site, tmp_path):
    write_privacy_json(tmp_path / "privacy.json")
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, site / "bin" / "dp-curriculum", "epsilon", "privacy.json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert f"{json.loads((tmp_path / 'privacy.json').read_text())['epsilon']:.4f}" in done.stdout
    assert done.stdout.endswith("The statement holds.\n")


def test_every_command_explains_its_flags_without_importing_what_computes(site, tmp_path):
    code = """
import contextlib, io, sys
import diffusers_dp_curriculum
from diffusers_dp_curriculum import cli
assert cli.__file__.startswith(sys.argv[1]), cli.__file__
for command in [None, *cli.COMMANDS]:
    words = [command] if command else []
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        cli.main([*words, "--help"])
    assert printed.getvalue().startswith(" ".join(["usage: dp-curriculum", *words])), command
    heavy = {"torch", "diffusers", "transformers", "datasets", "numpy", "matplotlib", "gradio"} & set(sys.modules)
    assert not heavy, (command, heavy)
"""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", code, site], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr


def test_no_module_is_imported_that_windows_or_macos_lack():
    """The type checker, run as on Windows, finds functions that are missing; it does not look at missing modules."""
    unix_alone = {"crypt", "fcntl", "grp", "nis", "posix", "pty", "pwd", "resource", "spwd", "syslog", "termios", "tty"}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            module = node.module if isinstance(node, ast.ImportFrom) and not node.level else None
            assert not unix_alone & {*names, module}, path


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_is_a_module_that_python_runs(command):
    module = f"diffusers_dp_curriculum.commands.{command}"
    done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: dp-curriculum {command} ")
    assert done.stderr == ""


def test_exported_names_are_imported_when_they_are_used_and_declared_for_type_checkers():
    module = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    declared = {
        alias.name: statement.module
        for statement in ast.walk(module)
        if isinstance(statement, ast.ImportFrom) and statement.level == 1
        for alias in statement.names
    }
    assert declared == {**diffusers_dp_curriculum._MODULES, "set_verbosity": "verbosity"}
    for name in set(diffusers_dp_curriculum.__all__) - {"__version__"}:
        assert getattr(diffusers_dp_curriculum, name).__name__ == name
    with pytest.raises(AttributeError, match="has no attribute 'DPCurriculumConfg'"):
        diffusers_dp_curriculum.DPCurriculumConfg  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'trian'"):
        from diffusers_dp_curriculum import trian  # noqa: F401


def test_what_is_no_command_is_refused(capsys):
    assert cli.main(["trian"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("usage: dp-curriculum COMMAND")
    assert printed.endswith(f"error: There is no command trian: choose one of {', '.join(cli.COMMANDS)}.\n")
