"""The scripts of examples/."""

import importlib.util
import sys

from helpers import REPOSITORY


EXAMPLES = REPOSITORY / "examples"


def script_module(name="train_dp_curriculum"):
    """A script of examples/ as a module, whose functions can be called."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
