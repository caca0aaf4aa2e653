"""The content of files of the repository, for tests that compare them with each other."""

import sys
from typing import Any

from helpers import REPOSITORY


if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest installs it there


PACKAGE = REPOSITORY / "src" / "diffusers_dp_curriculum"


def read(name: str) -> str:
    """The text of a file of the repository."""
    return (REPOSITORY / name).read_text(encoding="utf-8")


def pyproject() -> dict[str, Any]:
    """The content of pyproject.toml."""
    return tomllib.loads(read("pyproject.toml"))


def constraints(name: str = "constraints.txt") -> dict[str, str]:
    """The version of each package in a file of constraints."""
    return dict(line.split("==") for line in read(name).splitlines() if not line.startswith("#"))
