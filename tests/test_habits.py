"""The files for contributors and for GitHub agree with the repository and with each other."""

import re
import shlex
import subprocess

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import diffusers_dp_curriculum
from helpers import REPOSITORY
from helpers.repository import constraints, pyproject, read


WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
FILE = re.compile(r"(?<![\w/.*-])[\w.-]+(?:/[\w.-]+)*\.(?:txt|toml|md|yml|py)\b")


def makefile() -> dict[str, list[str]]:
    """The commands of each target of the Makefile."""
    targets: dict[str, list[str]] = {}
    for line in read("Makefile").splitlines():
        if match := re.match(r"([a-z]+):  ## \w", line):
            targets[match[1]] = []
        elif line.startswith("\t"):
            targets[list(targets)[-1]].append(line.strip())
    return targets


def jobs(workflow):
    return yaml.safe_load(workflow.read_text("utf-8"))["jobs"]


def commands(job) -> list[list[str]]:
    return [shlex.split(line) for step in job["steps"] for line in step.get("run", "").splitlines()]


def python_versions(job) -> list[str]:
    settings = [step["with"]["python-version"] for step in job["steps"] if "setup-python" in step.get("uses", "")]
    matrix = [row["python"] for row in job.get("strategy", {}).get("matrix", {}).get("include", [])]
    return matrix if "${{ matrix.python }}" in settings else settings


def test_there_are_workflows_for_each_change_and_for_the_night():
    assert [path.stem for path in WORKFLOWS] == ["gpu", "nightly", "tests"]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_ask_for_little_and_end(workflow):
    content = yaml.safe_load(workflow.read_text("utf-8"))
    assert content[True], "YAML 1.1 reads the key `on` as True"
    assert content["permissions"] == {"contents": "read"}
    assert content["concurrency"]["cancel-in-progress"] is True
    for job in content["jobs"].values():
        assert job["runs-on"]
        assert job["timeout-minutes"] <= 360
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            assert re.fullmatch(r"actions/[a-z-]+@v\d+", step.get("uses", "actions/checkout@v6"))
        assert {job.get("needs")} <= {None, *content["jobs"]}


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_what_there_is(workflow):
    for file in FILE.findall(workflow.read_text("utf-8")):
        assert (REPOSITORY / file).is_file(), f"{workflow.name} names {file}"
    extras = pyproject()["project"]["optional-dependencies"]
    for job in jobs(workflow).values():
        for command, *arguments in commands(job):
            assert command in ("make", "pip", "dp-curriculum", "echo") or command.startswith("files=")
            if command == "make":
                assert arguments[0] in makefile()
            if command == "pip":
                assert set(re.findall(r"\.\[(\w+)\]", " ".join(arguments))) <= set(extras)


def test_tests_take_the_oldest_the_usual_and_the_newest_python():
    project = pyproject()["project"]
    prefix = "Programming Language :: Python :: "
    stated = [line.removeprefix(prefix) for line in project["classifiers"] if re.fullmatch(rf"{prefix}\d\.\d+", line)]
    assert project["requires-python"] == f">={stated[0]}"
    for workflow in WORKFLOWS:
        for job in jobs(workflow).values():
            assert set(python_versions(job)) <= set(stated)
    tests = jobs(REPOSITORY / ".github" / "workflows" / "tests.yml")["test"]
    assert python_versions(tests) == [stated[0], "3.11", stated[-1]]
    oldest, usual, _ = (row["constraints"] for row in tests["strategy"]["matrix"]["include"])
    assert (oldest, usual) == ("constraints-lowest.txt", "constraints.txt")
    assert "Python 3.11" in read("constraints.txt").splitlines()[0]


def test_the_night_takes_every_file_with_slow_tests():
    (script,) = (
        step["run"] for step in jobs(REPOSITORY / ".github/workflows/nightly.yml")["files"]["steps"] if "run" in step
    )
    listing = re.search(r"grep .*? tests(?= )", script)[0]
    found = subprocess.run(
        listing, shell=True, cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.split()
    marked = [path for path in REPOSITORY.glob("tests/**/test_*.py") if "mark" + ".slow" in path.read_text("utf-8")]
    assert marked
    assert sorted(found) == sorted(path.relative_to(REPOSITORY).as_posix() for path in marked)


def test_the_lowest_versions_are_the_lower_bounds():
    project = pyproject()["project"]
    extras = project["optional-dependencies"]
    required = [*project["dependencies"], *extras["test"], *extras["lora"]]
    lowest = {
        canonicalize_name(Requirement(line).name): bound.version
        for line in required
        for bound in Requirement(line).specifier
        if bound.operator == ">="
    }
    assert {
        canonicalize_name(name): version for name, version in constraints("constraints-lowest.txt").items()
    } == lowest


def test_the_makefile_has_one_definition_of_each_command():
    targets = makefile()
    assert list(targets) == ["help", "test", "slow", "lint", "types", "docs", "format"]
    done = subprocess.run(["make", "help"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert [line.split(":")[0].strip() for line in done.stdout.splitlines()] == [f"make {name}" for name in targets]
    ci = [line.split("  #")[0].strip() for line in read(".ci/run").splitlines()]
    for command in (*targets["docs"], *targets["lint"], *targets["types"]):
        assert command in ci, f".ci/run does not call {command}"
        assert command in read("CONTRIBUTING.md")
    assert f"&& {targets['test'][0]}\n" in read("README.md")
    assert targets["test"][0] in read("CONTRIBUTING.md")


def test_pre_commit_has_the_ruff_of_the_constraints():
    tested = constraints()["ruff"]
    hooks = {entry["repo"]: entry for entry in yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]}
    ruff = hooks["https://github.com/astral-sh/ruff-pre-commit"]
    assert ruff["rev"] == f"v{tested}"
    assert [hook["id"] for hook in ruff["hooks"]] == ["ruff-check", "ruff-format"]
    assert f"ruff>={tested}" in pyproject()["project"]["optional-dependencies"]["dev"]


@pytest.mark.parametrize("form", [path for path in FORMS if path.stem != "config"], ids=lambda path: path.stem)
def test_forms_are_such_as_github_takes(form):
    content = yaml.safe_load(form.read_text("utf-8"))
    assert set(content) == {"name", "description", "body"}
    identifiers = [element["id"] for element in content["body"] if element["type"] != "markdown"]
    assert len(set(identifiers)) == len(identifiers)
    for element in content["body"]:
        assert set(element) <= {"type", "id", "attributes", "validations"}
        needed = {"markdown": "value", "textarea": "label", "checkboxes": "options", "dropdown": "options"}
        assert element["attributes"][needed[element["type"]]]


def test_a_bug_report_brings_versions_and_no_records():
    content = yaml.safe_load(read(".github/ISSUE_TEMPLATE/bug.yml"))
    notice, promise, *_ = content["body"]
    for forbidden in ("no records", "samples of records", "journal", "`private/`"):
        assert forbidden in re.sub(r"\s+", " ", notice["attributes"]["value"])
    (option,) = promise["attributes"]["options"]
    assert option["required"] is True
    (environment,) = (element for element in content["body"] if element.get("id") == "environment")
    assert "`dp-curriculum env`" in environment["attributes"]["label"]
    assert environment["validations"] == {"required": True}


def test_pull_requests_say_what_they_read():
    template = read(".github/PULL_REQUEST_TEMPLATE.md")
    assert "## What does it read?" in template
    for target in re.search(r"`make (.+?)`", template)[1].split():
        assert target in makefile()
    for file in FILE.findall(template):
        assert (REPOSITORY / file).is_file()


def test_the_address_of_the_repository_has_one_home():
    urls = pyproject()["project"]["urls"]
    source = urls["Source"]
    assert set(urls) == {"Source", "Documentation", "Issues", "Changelog"}
    for url in urls.values():
        assert url.startswith(source)
        if "/blob/main/" in url:
            assert (REPOSITORY / url.split("/blob/main/")[1]).is_file()
    assert yaml.safe_load(read("CITATION.cff"))["repository-code"] == source
    pages = [path.read_text("utf-8") for path in (*FORMS, *REPOSITORY.glob("*.md"), *REPOSITORY.glob("docs/*.md"))]
    for address in re.findall(r"https://github\.com/[\w-]+/diffusers-dp-curriculum[\w/.-]*", "\n".join(pages)):
        assert address.startswith(f"{source}/")
        assert "/blob/main/" not in address or (REPOSITORY / address.split("/blob/main/")[1]).is_file()
    assert f"{source}/security/policy" in read(".github/ISSUE_TEMPLATE/config.yml")


def test_the_version_has_one_home():
    version = pyproject()["project"]["version"]
    assert diffusers_dp_curriculum.__version__ == version
    assert yaml.safe_load(read("CITATION.cff"))["version"] == version
    assert f"\n## {version}" in read("CHANGELOG.md")
