"""Makes flags from declared options, and rewrites messages of the library to name flags."""

import argparse
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..checks import AUTO, Range
from ..errors import DPCurriculumError, InputError
from ..options import Option, declared_options


METAVARS = {int: "INT", float: "NUMBER", str: "TEXT"}


def add_options(parser: argparse.ArgumentParser, *declarations: Any) -> None:
    """Add a flag for each option of dataclasses to a parser, in groups.

    Args:
        parser (`argparse.ArgumentParser`): The parser, which is changed in place.
        *declarations (`type`): Dataclasses whose fields are declared by `options.option`.
    """
    add_flags(parser, [option for declaration in declarations for option in declared_options(declaration)])


def add_flags(parser: argparse.ArgumentParser, options: Iterable[Option]) -> None:
    """Add a flag for each of some options to a parser, in groups.

    Args:
        parser (`argparse.ArgumentParser`): The parser, which is changed in place.
        options (`Iterable[Option]`): The options.
    """
    groups: dict[str, Any] = {}
    for option in options:
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        _add(groups[option.group], option)


def _add(group: Any, option: Option) -> None:
    help = option.description.replace("%", "%%")
    if option.item_type is bool:
        group.add_argument(
            f"--{option.name}",
            type=_parse_bool,
            nargs="?",
            const=True,
            default=option.default,
            metavar="BOOL",
            help=help,
        )
        if option.default:
            group.add_argument(
                f"--no_{option.name}", action="store_false", dest=option.name, help=f"turn --{option.name} off"
            )
        return
    group.add_argument(
        f"--{option.name}",
        type=number_or_auto(option.item_type) if option.may_be_auto else option.item_type,
        nargs="+" if option.is_list else None,
        default=option.default,
        metavar=("auto|" if option.may_be_auto else "") + METAVARS[option.item_type],
        help=help,
    )


def _parse_bool(text: str) -> bool:
    """Parse a boolean on the command line."""
    if text.lower() in ("yes", "true", "t", "y", "1"):
        return True
    if text.lower() in ("no", "false", "f", "n", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text} is neither true nor false")


def number_or_auto(number: type) -> Callable[[str], Any]:
    """Make a parser of `"auto"` or a number, for a flag.

    Args:
        number (`type`): `int` or `float`.
    """

    def parse(text: str) -> Any:
        return text if text == AUTO else number(text)

    parse.__name__ = number.__name__  # which argparse shows in its message about a wrong value
    return parse


def with_defaults(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Name the default of each flag in its help, unless the help says already what the default is.

    Args:
        parser (`argparse.ArgumentParser`): The parser, which is changed in place and returned.
    """
    for action in parser._actions:
        has_default = not any(action.default is none for none in (None, False, argparse.SUPPRESS))  # 0 is a default
        if has_default and "default" not in (action.help or ""):
            default = " ".join(action.default) if isinstance(action.default, list) else action.default
            action.help = f"{action.help} (default: {default})"
    return parser


def in_range(limits: Range) -> type[argparse.Action]:
    """Make an action that stores the value of a flag, or each of several values, if it is in a range.

    Args:
        limits (`Range`): The allowed values.
    """

    class InRange(argparse.Action):
        def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
            for value in values if isinstance(values, list) else [values]:
                limits.check(self.dest, value)
            setattr(namespace, self.dest, values)

    return InRange


def parse_flags(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse flags, and refuse one that does not exist as all errors are worded.

    Args:
        parser (`argparse.ArgumentParser`): The parser of the command.
        arguments (`Sequence[str]`): The flags.

    Raises:
        InputError: If there is no such flag.
    """
    chosen, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise InputError(f"There is no flag {unknown[0]}: see --help for the list of flags.")
    return chosen


def with_underscores(arguments: Sequence[str]) -> list[str]:
    """Replace hyphens in flags by underscores, so that `--hub-token` is accepted for `--hub_token`."""
    return [re.sub(r"^--[\w-]+", lambda flag: "--" + flag[0][2:].replace("-", "_"), word) for word in arguments]


def with_home(arguments: Sequence[str]) -> list[str]:
    """Put the home directory in place of `~`, which no shell does in `--output_dir=~/x`."""
    parts = [re.fullmatch(r"(--[\w-]+=)?(.*)", word, re.DOTALL) for word in arguments]
    return [(part[1] or "") + os.path.expanduser(part[2]) for part in parts if part]


@contextmanager
def rename_arguments(**names: str) -> Iterator[None]:
    """A context in which error messages name arguments of the library as a command does.

    Args:
        **names (`str`): For each argument of the library, the name of the command's flag or positional argument.
    """
    try:
        yield
    except DPCurriculumError as error:
        renamed = re.sub(r"`(\w+)`", lambda match: f"`{names.get(match[1], match[1])}`", str(error))
        raise type(error)(renamed) from error


def in_flags(message: str, parser: argparse.ArgumentParser) -> str:
    """Rewrite a message so that it names the arguments of a command as on the command line.

    Args:
        message (`str`): A message that names arguments in backticks.
        parser (`argparse.ArgumentParser`): The parser of the command. Other arguments are not changed.

    Returns:
        `str`: The message with flags, such as `--train_data_dir`.
    """
    spelled = {action.dest: _spelling(action) for action in reversed(parser._actions)}
    return re.sub(r"`(\w+)`", lambda match: spelled.get(match[1], match[0]), message)


def _spelling(action: argparse.Action) -> str:
    return action.option_strings[-1] if action.option_strings else str(action.metavar or action.dest.upper())
