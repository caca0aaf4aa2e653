"""The docstrings of public names explain every argument."""

import inspect
import re
from dataclasses import is_dataclass
from enum import Enum

import pytest

import diffusers_dp_curriculum
from diffusers_dp_curriculum.options import declared_options


def public_functions():
    """Every public function, class and method that has arguments, with the docstring that explains them."""
    for name in diffusers_dp_curriculum.__all__:
        thing = getattr(diffusers_dp_curriculum, name)
        if isinstance(thing, str) or (inspect.isclass(thing) and issubclass(thing, Enum)):
            continue
        if not inspect.isclass(thing):
            yield pytest.param(thing, thing.__doc__, id=name)
            continue
        if issubclass(thing, Exception):
            continue
        if not is_dataclass(thing):
            yield pytest.param(thing, thing.__doc__, id=name)
        for method, function in vars(thing).items():
            function = getattr(function, "__func__", function)  # of class methods
            if inspect.isfunction(function) and not method.startswith("_"):
                yield pytest.param(function, function.__doc__, id=f"{name}.{method}")


@pytest.mark.parametrize(("function", "docstring"), list(public_functions()))
def test_every_argument_is_documented(function, docstring):
    signature = inspect.signature(function)
    assert docstring
    for name, parameter in signature.parameters.items():
        if name not in ("self", "cls") and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            assert re.search(rf"\b{name} \(\[?`", docstring), f"{name} is not explained"


def test_every_hyper_parameter_is_documented_where_it_is_declared():
    for option in declared_options(diffusers_dp_curriculum.DPCurriculumConfig):
        assert option.help, f"{option.name} is not explained"
