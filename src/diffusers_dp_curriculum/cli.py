"""The command `dp-curriculum`: finds the sub-command, and turns errors into messages and exit statuses.

    dp-curriculum train --train_data_dir DIR --resolution 28 --output_dir my-model

`dp-curriculum COMMAND --help` explains the flags of a sub-command. With several processes:
`accelerate launch --multi_gpu --num_processes 4 -m diffusers_dp_curriculum.cli train ...`.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper

from .commands.flags import in_flags, with_home
from .errors import DPCurriculumError, first_line
from .files import is_full_disk
from .verbosity import printed_messages


COMMANDS = {
    "train": "train a pipeline on sensitive images, under one (epsilon, delta)",
    "pretrain": "train a pipeline on public images, without privacy, for train to start from",
    "generate": "make a synthetic data set with a trained pipeline",
    "evaluate": "measure fidelity and utility of a pipeline or a synthetic data set",
    "audit": "attack a whole run, and compare the epsilon that the attack proves with the claim",
    "push": "push a finished run to the Hub",
    "epsilon": "recompute epsilon from a privacy.json, or add up several runs",
    "app": "look at samples of a trained pipeline in a browser",
    "env": "describe this machine for a bug report",
}
INTERRUPTED = 130  # the exit status that shells use for Ctrl-C


def usage() -> str:
    """The help text: the sub-commands, one per line."""
    lines = [f"  {command:<10}{purpose}" for command, purpose in COMMANDS.items()]
    return "\n".join(["usage: dp-curriculum COMMAND [flags]   (COMMAND --help explains the flags)", "", *lines])


def run(command: str, arguments: Sequence[str] | None = None) -> int:
    """Run a sub-command; the package's own errors are printed in one line, without a traceback.

    Args:
        command (`str`): Name of the sub-command.
        arguments (`Sequence[str]`, *optional*): The flags of the sub-command; `sys.argv[1:]` by default.

    Returns:
        `int`: The exit status: 0 for success, 1 for an error, 130 after Ctrl-C.
    """
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a class name that cannot be printed does not end a run
    module = import_module(f".commands.{command}", __package__)
    parser = module.make_parser()
    try:
        with printed_messages(lambda message: in_flags(message, parser)):
            status: int = module.main(with_home(sys.argv[1:] if arguments is None else arguments))
    except DPCurriculumError as error:
        print(f"error: {in_flags(str(error), parser)}", file=sys.stderr)
        return 1
    except Exception as error:
        if not is_full_disk(error):
            raise
        print(f"error: A disk is full ({first_line(error)}): make room, and repeat the command.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED  # the command has already printed what to do next
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sub-command that the first argument names.

    Args:
        arguments (`Sequence[str]`, *optional*): A sub-command and its flags; `sys.argv[1:]` by default.

    Returns:
        `int`: The exit status, see [`run`].
    """
    command, *flags = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if command in ("-h", "--help"):
        print(usage())
        return 0
    if command not in COMMANDS:
        print(usage(), file=sys.stderr)
        print(f"error: There is no command {command}: choose one of {', '.join(COMMANDS)}.", file=sys.stderr)
        return 1
    return run(command, flags)


if __name__ == "__main__":
    sys.exit(main())
