"""Push a finished run to the Hub.

    python examples/push_to_hub.py OUTPUT_DIR USER/NAME

Pushes the files that may be published and no others, in one commit: the pipeline, privacy.json, the model card and the
pictures. Refuses a run that is not finished or not private. May be repeated at will, after a push that did not succeed
as well as after README.md was edited. The token is that of `hf auth login`, or HF_TOKEN.
"""

import argparse
import sys
from pathlib import Path

from diffusers_dp_curriculum import DPCurriculumError
from diffusers_dp_curriculum.sharing.hub import push_model


def main() -> None:
    """Push, and say where to."""
    parser = argparse.ArgumentParser(description="Push a finished run to the Hub.")
    parser.add_argument("output_dir", type=Path, help="the directory that the run wrote")
    parser.add_argument("repo_id", help="repository, USER/NAME or NAME")
    parser.add_argument("--private", action="store_true", help="make the repository private, if it does not exist yet")
    parser.add_argument("--commit_message", help="the privacy budget, if none is given")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request instead")
    args = parser.parse_args()
    commit = push_model(
        args.output_dir,
        args.repo_id,
        commit_message=args.commit_message,
        private=args.private or None,
        create_pr=args.create_pr,
    )
    print(f"Pushed: {commit.commit_url}")


if __name__ == "__main__":
    try:
        main()
    except DPCurriculumError as error:
        sys.exit(f"error: {error}")
