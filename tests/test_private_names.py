"""Names of other libraries that begin with an underscore can disappear in any of their versions.

Each use in the package is listed here with its reason, and its library has an upper bound in pyproject.toml. A name
counts as the package's own if the package defines it: as a function, a class, a variable or an attribute of `self`.
"""

import ast

from packaging.requirements import Requirement

from helpers.repository import PACKAGE, constraints, pyproject


# By distribution and name: the one file that uses it, and why no public name does.
KNOWN = {
    "opacus": {
        "_check_processed_flag": ("mechanisms/dp_optimizer.py", "guards against gradients that are used twice"),
        "_mark_as_processed": ("mechanisms/dp_optimizer.py", "sets what `_check_processed_flag` looks for"),
        "_step_skip_queue": ("mechanisms/dp_sgd.py", "`signal_skip_step` only adds; a step that raised must be undone"),
        "_is_last_step_skipped": ("mechanisms/dp_sgd.py", "as `_step_skip_queue`"),
        "_get_dprv": ("auditing/bounds.py", "the accountant's public methods answer for one delta at a time"),
    },
    "torch": {
        "_C": ("gradients/folded_layers.py", "`DisableTorchFunctionSubclass`, as PyTorch's documentation has it"),
        "_compiled_call_impl": ("training/model_checks.py", "the only trace that `unet.compile()` leaves"),
        "_pytree": ("gradients/record_mixing.py", "nested outputs of a layer; there is no public module"),
    },
    "diffusers": {
        "_execution_device": ("sampling/pipeline.py", "the device under model offloading; every pipeline asks it"),
        "_dict_from_json_file": ("sampling/pipeline.py", "the only place between a saved file and its class name"),
    },
}

OF_PYTHON = {
    "_actions": ("commands/flags.py", "argparse has no public list of a parser's flags"),
    "_exit": ("training/heartbeat.py", "documented in spite of its name; ends a process whose main thread is stuck"),
}


def is_private(name: str) -> bool:
    return name.startswith("_") and name != "_" and not name.startswith("__")


def is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def is_super(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"


def own_names(tree: ast.AST) -> list[str]:
    """The private names that a module defines, each as often as the module defines it."""
    names = []
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                names.append(name)
            case ast.Name(id=name, ctx=ast.Store()):
                names.append(name)
            case ast.Attribute(value=value, attr=name, ctx=ast.Store()) if is_self(value):
                names.append(name)
    return [name for name in names if is_private(name)]


def used_names(tree: ast.AST) -> list[tuple[str, bool]]:
    """The private names that a module uses, and whether through `super()`."""
    names = []
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=value, attr=name):
                names.append((name, is_super(value)))
            case ast.ImportFrom(module=module, names=aliases, level=0):
                words = [*module.split("."), *(alias.name for alias in aliases)]
                names += [(word, False) for word in words]
            case ast.Import(names=aliases):
                names += [(word, False) for alias in aliases for word in alias.name.split(".")]
    return [(name, above) for name, above in names if is_private(name)]


def foreign_names(sources: dict[str, str]) -> set[tuple[str, str]]:
    """Pairs of a file and a private name of another library in it; a call through `super()` is a use as well."""
    trees = {file: ast.parse(source) for file, source in sources.items()}
    own = [name for tree in trees.values() for name in own_names(tree)]
    return {
        (file, name)
        for file, tree in trees.items()
        for name, above in used_names(tree)
        if own.count(name) < (2 if above else 1)
    }


def test_private_names_of_other_libraries_are_known():
    sources = {path.relative_to(PACKAGE).as_posix(): path.read_text("utf-8") for path in PACKAGE.rglob("*.py")}
    known = {(file, name) for names in (*KNOWN.values(), OF_PYTHON) for name, (file, _) in names.items()}
    assert foreign_names(sources) == known


def test_their_libraries_have_an_upper_bound():
    bounds = {}
    for dependency in pyproject()["project"]["dependencies"]:
        requirement = Requirement(dependency)
        bounds[requirement.name] = [bound.version for bound in requirement.specifier if bound.operator == "<"]
    tested = constraints()
    for distribution in KNOWN:
        (bound,) = bounds[distribution]
        assert Requirement(f"{distribution}<{bound}").specifier.contains(tested[distribution])


def test_a_new_use_is_noticed():
    for use in (
        "import datasets\ndatasets.load()._secret",
        "from torch._inductor import config",
        "import torch._dynamo",
        "class Mine(Theirs):\n    def _hook(self):\n        return super()._hook()",
        "class Mine(Theirs):\n    def method(self):\n        return self._inherited",
    ):
        assert len(foreign_names({"new.py": use})) == 1, use
    own = "class Mine:\n    def __init__(self, other):\n        self._own = other._own"
    assert foreign_names({"new.py": own}) == set()
