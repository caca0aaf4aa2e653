"""Recompute epsilon from a privacy.json and compare it with what the file states, or add up several runs.

    dp-curriculum epsilon my-model/privacy.json
    dp-curriculum epsilon my-model my-second-model USER/NAME --output all-runs.json

A privacy.json is enough: no model, data or journal is needed. In the directory of a run its journal is read instead, so
that an interrupted run counts too. Several runs are added up to one epsilon, each run once. The exit status is 1 if a
file states less than its run has released, or says that the run is not private.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..checks import ACCOUNTANT, DELTA
from ..errors import InputError
from ..names import check_run_name
from .flags import in_range


if TYPE_CHECKING:
    from ..privacy.accounting import Mechanism
    from ..privacy.composition import FoundStatement


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the flags."""
    parser = argparse.ArgumentParser(
        prog="dp-curriculum epsilon", description="Recompute epsilon from a privacy.json, or add up several runs."
    )
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        help="a privacy.json, the directory of a run or of a synthetic data set, or the Hub id of a model or data set",
    )
    parser.add_argument(
        "--delta",
        type=float,
        action=in_range(DELTA),
        help="delta of all runs together; by default the smallest of their deltas",
    )
    parser.add_argument(
        "--accountant",
        choices=ACCOUNTANT.values,
        help="accountant for all runs together; by default that of the runs if it is the same for all, else prv",
    )
    parser.add_argument(
        "--output", type=Path, help="new file for the statement about all runs together, in the format of privacy.json"
    )
    return parser


def print_mechanisms(mechanisms: "list[Mechanism]") -> None:
    """Print one line per mechanism."""
    for mechanism in mechanisms:
        print(
            f"  {mechanism.name:20} noise multiplier {mechanism.noise_multiplier:.6g}, sample rate "
            f"{mechanism.sample_rate:.6g}, steps {mechanism.steps}"
        )


def judge(found: "FoundStatement") -> int:
    """Print the mechanisms of one statement, both epsilons and a verdict; return the exit status."""
    from ..privacy.publishability import understates
    from ..privacy.statement import recompute_epsilon

    statement = found.statement
    epsilon = recompute_epsilon(statement)
    own, *previous = statement.runs
    print_mechanisms(own.mechanisms)
    for number, run in enumerate(previous, start=1):
        print(f"  previous run {number}:")
        print_mechanisms(run.mechanisms)
    print(f"  recomputed epsilon   {epsilon:.4f} at delta {statement.delta}, {statement.accountant} accountant")
    print(f"  stated epsilon       {found.stated_epsilon}")
    for remark in statement.remarks:
        print(f"  remark               {remark}")
    print(f"  unit of privacy      one {statement.unit}")
    print(f"  scope                {statement.scope}")
    if understates(statement, epsilon):
        print("The file understates what its mechanisms amount to.")
        return 1
    if not statement.private:
        print("The file says that the run is not private.")
        return 1
    if found.outdated is not None:
        print(found.outdated)
        return 1
    if found.stated_epsilon is None:
        print("This is what the run has released so far: no privacy.json states it yet.")
        return 0
    print("The statement holds.")
    return 0


def add_up(statements: "list[FoundStatement]", delta: float | None, accountant: str | None, output: Path | None) -> int:
    """Print each counted run and the epsilon of all of them together; return the exit status."""
    from ..privacy.accounting import LooseEpsilonWarning, compute_epsilon
    from ..privacy.composition import compose

    composition = compose(statements, delta, accountant)
    together = composition.statement
    for name, run in composition.counted:
        with warnings.catch_warnings():
            # The remarks below have this warning for all runs together.
            warnings.simplefilter("ignore", LooseEpsilonWarning)
            alone = compute_epsilon(run.mechanisms, together.delta, together.accountant)
        print(f"{name}: epsilon {alone:.4f} alone")
        print_mechanisms(run.mechanisms)
    for remark in [*composition.remarks, *together.remarks]:
        print(remark)
    print(
        f"Together: epsilon {together.epsilon:.4f} at delta {together.delta:g}, {together.accountant} "
        f"accountant, for one {together.unit}. {together.scope}"
    )
    if output is not None:
        output.write_text(together.to_json(), encoding="utf-8")
        print(f"The statement about all runs together is in {output}.")
    return int(any(found.outdated is not None for found in statements))


def main(arguments: Sequence[str] | None = None) -> int:
    """Check one statement, or add up several, and return the exit status."""
    args = make_parser().parse_args(arguments)
    if args.output is not None and (args.output.exists() or not args.output.parent.is_dir()):
        raise InputError(f"{args.output} exists already, or its directory does not exist: choose another file.")
    for run in args.runs:
        check_run_name(run)

    from ..privacy.composition import find_statements

    statements = [found for run in args.runs for found in find_statements(run)]
    if len(statements) == 1 and args.delta is None and args.accountant is None and args.output is None:
        return judge(statements[0])
    return add_up(statements, args.delta, args.accountant, args.output)


if __name__ == "__main__":
    from ..cli import run

    sys.exit(run("epsilon"))
