"""Every public name has an example in its docstring, and every example of the package is executed."""

import doctest
import importlib
import logging
from pathlib import Path

import pytest

import diffusers_dp_curriculum


PACKAGE = Path(diffusers_dp_curriculum.__file__).parent


def modules_with_examples():
    """The modules whose source has an example; importing all modules would take longer than the examples."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if ">>> " in path.read_text(encoding="utf-8"):
            parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
            yield importlib.import_module(".".join(parts).removesuffix(".__init__"))


def examples():
    """The examples; each has only the names that it imports itself, so that a reader can copy it."""
    for module in modules_with_examples():
        for found in doctest.DocTestFinder(exclude_empty=True).find(module, globs={}):
            if found.examples:
                yield pytest.param(found, id=found.name.removeprefix("diffusers_dp_curriculum."))


@pytest.fixture
def in_a_new_directory(tmp_path, monkeypatch, fresh_accelerator):
    """Examples may write files and set the verbosity, and do not see the verbosity that other tests have set."""
    monkeypatch.chdir(tmp_path)
    library = logging.getLogger("diffusers_dp_curriculum")
    level, handlers = library.level, list(library.handlers)
    library.setLevel(logging.NOTSET)
    library.handlers.clear()
    yield
    library.setLevel(level)
    library.handlers[:] = handlers


@pytest.mark.parametrize("example", list(examples()))
@pytest.mark.usefixtures("in_a_new_directory")
def test_an_example_prints_what_it_shows(example):
    output = []
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=output.append)
    assert result.failed == 0, "".join(output)


@pytest.mark.parametrize("name", [name for name in diffusers_dp_curriculum.__all__ if name != "__version__"])
def test_every_public_name_has_an_example(name):
    docstring = getattr(diffusers_dp_curriculum, name).__doc__
    assert doctest.DocTestParser().get_examples(docstring), f"the docstring of {name} has no example"
