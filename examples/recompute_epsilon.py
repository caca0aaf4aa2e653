"""Recompute epsilon from a privacy.json, and compare it with what the file states.

    python examples/recompute_epsilon.py my-model/privacy.json

Needs the file alone: no model, no data, no journal. Ends with status 1 if the file states less than what its mechanisms
amount to, or says itself that the run is not private.
"""

import argparse
import json
import sys
from pathlib import Path

from diffusers_dp_curriculum import InputError, recompute_epsilon
from diffusers_dp_curriculum.statement import understates


def main() -> int:
    """Print the mechanisms, both epsilons and a verdict; return the exit status."""
    parser = argparse.ArgumentParser(description="Recompute epsilon from a privacy.json.")
    parser.add_argument("privacy_json", type=Path, help="the file, as published beside a pipeline or a data set")
    path = parser.parse_args().privacy_json
    try:
        statement = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a privacy.json ({error}): give the path of one.") from error
    epsilon = recompute_epsilon(statement)
    for mechanism in statement["mechanisms"]:
        print(
            f"  {mechanism['name']:20} noise multiplier {mechanism['noise_multiplier']:.6g}, sample rate "
            f"{mechanism['sample_rate']:.6g}, steps {mechanism['steps']}"
        )
    print(f"  recomputed epsilon   {epsilon:.4f} at delta {statement['delta']}, {statement['accountant']} accountant")
    print(f"  stated epsilon       {statement.get('epsilon')}")
    for remark in statement.get("remarks", []):
        print(f"  remark               {remark}")
    if understates(statement, epsilon):
        print("The file understates what its mechanisms amount to.")
        return 1
    if statement.get("private") is not True:
        print("The file says that the run is not private.")
        return 1
    print("The statement holds.")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        sys.exit(f"error: {error}")
