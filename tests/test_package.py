"""The package as others get it: a wheel, installed where the repository is not."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from diffusers_dp_curriculum import cli
from helpers import REPOSITORY, write_privacy_json


PACKAGE = REPOSITORY / "src" / "diffusers_dp_curriculum"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A directory that holds what the wheel installs."""
    directory = tmp_path_factory.mktemp("wheel")
    # A copy without what earlier builds have left: setuptools would put it into the wheel.
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
    assert {path.name for path in (REPOSITORY / "examples").glob("*.py")} <= {
        path.name for path in (site / PACKAGE.name / "examples").iterdir()
    }


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


def test_every_command_explains_its_flags(site, tmp_path):
    code = """
import contextlib, io, sys
from diffusers_dp_curriculum import cli
assert cli.__file__.startswith(sys.argv[1]), cli.__file__
for command in [None, *cli.COMMANDS]:
    sys.argv = ["dp-curriculum", *([command] if command else []), "--help"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        cli.main()
    assert printed.getvalue().startswith("usage: " + " ".join(sys.argv[:1])), command
"""
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", code, site], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr


def test_what_is_no_command_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["dp-curriculum", "trian"])
    assert cli.main() == f"error: There is no command trian: choose one of {', '.join(cli.COMMANDS)}."
    assert "usage: dp-curriculum COMMAND" in capsys.readouterr().err
