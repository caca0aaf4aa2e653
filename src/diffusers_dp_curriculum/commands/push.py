"""Push a finished run to the Hub.

    dp-curriculum push OUTPUT_DIR USER/NAME

Pushes only the files that may be published, in one commit: the pipeline, privacy.json, the model card and the pictures.
Refuses a run that is not finished or not private. The command can be repeated, after a failed push or after README.md
was edited. The token is that of `hf auth login`, or HF_TOKEN.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import InputError
from ..names import check_repo_id


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the flags."""
    parser = argparse.ArgumentParser(prog="dp-curriculum push", description="Push a finished run to the Hub.")
    parser.add_argument("output_dir", type=Path, help="the directory that the run wrote")
    parser.add_argument("repo_id", help="repository, USER/NAME or NAME")
    parser.add_argument("--private", action="store_true", help="make the repository private, if it does not exist yet")
    parser.add_argument("--commit_message", help="commit message; the privacy budget by default")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request instead")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Push, and print the address of the commit; return the exit status."""
    args = make_parser().parse_args(arguments)
    if not args.output_dir.is_dir():
        raise InputError(f"{args.output_dir} is not a directory: give that of a finished run.")
    check_repo_id(args.repo_id)

    from ..sharing.hub import push_model

    push_model(
        args.output_dir,
        args.repo_id,
        commit_message=args.commit_message,
        private=args.private or None,
        create_pr=args.create_pr,
    )
    return 0


if __name__ == "__main__":
    from ..cli import run

    sys.exit(run("push"))
