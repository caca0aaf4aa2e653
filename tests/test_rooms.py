"""The rules between the rooms of the package, checked against the imports in its source."""

import ast
from pathlib import Path

import pytest

import diffusers_dp_curriculum


PACKAGE = Path(diffusers_dp_curriculum.__file__).parent

# For each room, or file at the top, what it must not import.
RULES = {
    "mechanisms": {"training", "sampling", "sharing", "auditing", "evaluation", "commands", "trainer", "config"},
    "privacy": {"mechanisms", "training", "data", "gradients", "sampling", "sharing", "auditing", "evaluation"},
    "gradients": {"privacy", "data", "mechanisms", "training", "sampling", "sharing"},
    "data": {"privacy", "mechanisms", "training", "gradients", "sampling", "sharing", "config"},
    "sampling": {"mechanisms", "training", "auditing", "evaluation"},
    "sharing": {"mechanisms", "training", "sampling", "auditing", "evaluation"},
    "training": {"sharing", "auditing", "evaluation", "commands", "trainer", "pretraining"},
    "auditing": {"training", "sampling", "sharing", "evaluation", "config"},
    "evaluation": {"mechanisms", "training", "gradients", "privacy", "config"},
    "presets": {"mechanisms", "training", "data"},
}

# Who may import the types that hold images or their latents: `data`, which defines them, and rooms where what is
# released goes through a ledger, or is declared not private. The images of `pretraining.py` are public.
IMAGES = {"ImageDataset", "LatentDataset"}
MAY_HOLD_IMAGES = {"__init__.py", "trainer.py", "pretraining.py", "data", "mechanisms", "auditing", "evaluation"}


def imports():
    """Each import in the package: the file, the module as parts of its dotted name, and the imported names."""
    for path in sorted(PACKAGE.rglob("*.py")):
        here = path.relative_to(PACKAGE).parent.parts
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                names = [alias.name for alias in node.names]
                if node.level:
                    base = here[: len(here) - node.level + 1]
                    yield path.relative_to(PACKAGE), [*base, *(node.module or "").split(".")], names
                else:
                    yield path.relative_to(PACKAGE), absolute(node.module), names
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    yield path.relative_to(PACKAGE), absolute(alias.name), []


def absolute(module):
    parts = module.split(".")
    return parts[1:] if parts[0] == PACKAGE.name else ["/", *parts]  # "/" marks a module outside of the package


def rooms_of(module, names):
    """The rooms of an import: `from . import x` names them, and in `from .x import y` it is x."""
    return {module[0]} if module and module[0] else set(names)


@pytest.mark.parametrize("room", RULES)
def test_no_room_imports_what_it_must_not_know(room):
    found = {
        f"{path}: {'.'.join(module)}"
        for path, module, names in imports()
        if room in (path.parts[0], path.stem) and rooms_of(module, names) & RULES[room]
    }
    assert not found


def test_each_rule_is_about_a_room():
    there = {path.name.removesuffix(".py") for path in PACKAGE.iterdir()}
    assert RULES.keys() <= there
    assert set().union(*RULES.values()) <= there


def test_the_types_that_hold_images_are_imported_where_images_may_be_alone():
    holders = {path.parts[0] for path, _, names in imports() if IMAGES & set(names)}
    assert holders == MAY_HOLD_IMAGES


def test_nothing_imports_examples_or_benchmarks():
    outside = {module[1] for _, module, _ in imports() if module[:1] == ["/"]}
    assert "torch" in outside
    assert not outside & {"examples", "benchmarks", "tests"}


def test_rooms_do_not_import_each_other_in_a_circle():
    """Remove rooms that import none of the remaining ones, until no room remains."""
    rooms = {path.parent.name for path in PACKAGE.glob("*/*.py")}
    below = {room: set() for room in rooms}
    for path, module, _ in imports():
        if path.parts[0] in rooms and module and module[0] in rooms - {path.parts[0]}:
            below[path.parts[0]].add(module[0])
    while below:
        lowest = {room for room, others in below.items() if not others & below.keys()}
        assert lowest, f"a circle in {below}"
        below = {room: others for room, others in below.items() if room not in lowest}
