"""Options of a run as fields of dataclasses: default, help, range and group of each are declared in one place."""

from collections.abc import Callable
from dataclasses import Field, InitVar, dataclass, field
from functools import partial
from os import PathLike
from typing import Any, get_args

from .checks import AUTO, Choice, Range
from .errors import InputError


def option(
    default: Any, help: str, *, group: str, limits: Range | Choice | None = None, execution: bool = False
) -> Any:
    """Declare a field of a dataclass as an option.

    Args:
        default: The default value; a list is copied for each object.
        help (`str`): What the option means.
        group (`str`): Title of the section of `--help` that has the option.
        limits (`Range` or `Choice`, *optional*): The allowed values; a default of None is allowed as well.
        execution (`bool`, *optional*, defaults to False):
            Whether the option only says where and how a run is executed and shared. Such an option changes results by
            rounding at most, may differ between machines, and is no hyper-parameter.
    """
    metadata = {"help": help, "group": group, "limits": limits, "execution": execution}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def options_of_group(group: str, execution: bool = False) -> Callable[..., Any]:
    """[`option`] with its group given, for several options of one group."""
    return partial(option, group=group, execution=execution)


@dataclass(frozen=True)
class Option:
    """An option as its dataclass declares it; the attributes are the arguments of [`option`]."""

    name: str
    type: Any
    default: Any
    help: str
    group: str
    limits: Range | Choice | None
    execution: bool

    @property
    def description(self) -> str:
        """The help text with limits and default."""
        facts = [] if self.limits is None else [self.limits.words]
        if self.default is not None:
            default = " ".join(map(str, self.default)) if isinstance(self.default, list) else self.default
            facts.append(f"default: {default}")
        return f"{self.help} ({'; '.join(facts)})" if facts else self.help

    @property
    def item_type(self) -> Any:
        """The type of the value, or of its items if it is a list, without None."""
        kinds = [kind for kind in (get_args(self.type) or (self.type,)) if kind is not type(None)]
        return get_args(kinds[0])[0] if get_args(kinds[0]) else kinds[0]

    @property
    def may_be_auto(self) -> bool:
        """Whether the value may be the word "auto" instead, for a value that the run chooses."""
        return bool(self.default == AUTO)

    @property
    def is_list(self) -> bool:
        """Whether the value is a list."""
        return "list[" in str(self.type)

    def check(self, value: Any) -> None:
        """Raise an `InputError` that names the option if `value` has the wrong type or is out of range."""
        if value == self.default and value in (None, AUTO):
            return
        if self.is_list and not (isinstance(value, list) and "" not in value):
            raise InputError(f"`{self.name}` is {value!r}: give a list without empty items.")
        if self.item_type is bool and not isinstance(value, bool):
            raise InputError(f"`{self.name}` is {value!r}: give True or False.")
        for item in value if self.is_list else [value]:
            if self.item_type is int and not isinstance(item, int):
                raise InputError(f"`{self.name}` is {value!r}: give a whole number.")
            if self.item_type is str and not isinstance(item, (str, PathLike)):
                raise InputError(f"`{self.name}` is {value}: give text.")
            if item == "":  # as from `--train_data_dir "$DIRECTORY"` without that variable
                raise InputError(f"`{self.name}` is empty: give text, or leave it out.")
            if self.limits is not None:
                self.limits.check(self.name, item)


def declared_options(declaration: Any) -> list[Option]:
    """All options of a dataclass in order, including those that `dataclasses.asdict` does not show, such as a token.

    Args:
        declaration (`type`): A dataclass whose fields are made by [`option`].
    """
    return [_as_option(declared) for declared in declaration.__dataclass_fields__.values()]


def _as_option(declared: Field[Any]) -> Option:
    kind = declared.type.type if isinstance(declared.type, InitVar) else declared.type
    default = declared.default if not callable(declared.default_factory) else declared.default_factory()
    return Option(declared.name, kind, default, **declared.metadata)


def check_options(instance: Any) -> None:
    """Raise an `InputError` for the first option of a dataclass whose value is not allowed.

    A number of NumPy, such as a rounded one, becomes a number of Python.
    """
    for declared in declared_options(instance):
        value = getattr(instance, declared.name)
        if type(value).__module__ == "numpy" and not value.shape:
            object.__setattr__(instance, declared.name, value := value.item())
        declared.check(value)
