"""`dp-curriculum`: the scripts of `examples/`, for those who have the package and not the repository.

    dp-curriculum train --train_data_dir DIR --resolution 28 --output_dir my-model

Each sub-command is one script, with the flags that `dp-curriculum COMMAND --help` explains. With several processes:
`accelerate launch --multi_gpu --num_processes 4 -m diffusers_dp_curriculum.cli train ...`.
"""

import sys
from importlib import import_module

from .errors import DPCurriculumError


COMMANDS = {
    "train": ("train_dp_curriculum", "train a pipeline on sensitive images, under one (epsilon, delta)"),
    "generate": ("generate_dataset", "make a synthetic data set with a trained pipeline"),
    "evaluate": ("evaluate", "measure what a pipeline or a synthetic data set is good for"),
    "audit": ("audit", "attack the mechanism, and compare what that proves with the claim"),
    "push": ("push_to_hub", "push a finished run to the Hub"),
    "epsilon": ("recompute_epsilon", "recompute epsilon from a privacy.json, or add up several runs"),
    "env": ("env", "describe this machine for a bug report"),
}


def usage() -> str:
    """The sub-commands, a line each."""
    lines = [f"  {command:<10}{what}" for command, (_, what) in COMMANDS.items()]
    return "\n".join(["usage: dp-curriculum COMMAND [flags]   (COMMAND --help explains the flags)", "", *lines])


def main() -> int | str | None:
    """Run the script of a sub-command as if it had been called itself; returns what `sys.exit` takes."""
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help"):
        print(usage())
        return 0
    if command not in COMMANDS:
        print(usage(), file=sys.stderr)
        return f"error: There is no command {command}: choose one of {', '.join(COMMANDS)}."
    package = "commands" if command == "env" else "examples"
    script = import_module(f"diffusers_dp_curriculum.{package}.{COMMANDS[command][0]}")
    sys.argv = [f"dp-curriculum {command}", *arguments]
    try:
        return script.main()
    except DPCurriculumError as error:
        return f"error: {error}"
    except KeyboardInterrupt:
        return 130  # as a shell has it for Ctrl-C


if __name__ == "__main__":
    sys.exit(main())
