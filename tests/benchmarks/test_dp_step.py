"""The benchmark of a DP-SGD step runs, and the documentation shows its results."""

import contextlib
import json
import sys

import torch

from helpers import REPOSITORY


sys.path.insert(0, str(REPOSITORY / "benchmarks"))

import dp_step


def test_the_documented_tables_are_those_of_the_measurement():
    docs = REPOSITORY / "docs"
    report = json.loads((docs / "results" / "dp_step.json").read_text(encoding="utf-8"))
    assert [runs[0]["case"] for runs in report["cases"]] == [str(case) for case in dp_step.CPU_CASES]
    assert dp_step.report_as_text(report) in (docs / "performance.md").read_text(encoding="utf-8")


def test_every_arm_takes_its_steps():
    case = dp_step.Case(8, (16, 16), num_records=4, noise_multiplicity=2, physical=2)
    result = dp_step.measure(case, dp_step.ARMS, torch.device("cpu"), contextlib.nullcontext, budget=0)
    assert list(result["arms"]) == list(dp_step.ARMS)
    for row in result["arms"].values():
        assert row["repetitions"] == 3
        assert row["passes_per_second"] == 8 / row["seconds"]
        assert row["ratio"] == row["seconds"] / result["arms"]["non-private"]["seconds"]


def test_tables_have_the_median_and_the_range_of_the_runs():
    def run(ratio):
        rows = {"plain": {"seconds": ratio / 10, "ratio": ratio, "passes_per_second": 4.0, "peak_bytes": 2**20}}
        return {"case": "a case", "parameters": 1000, "arms": {**rows, "large": {"error": "out of memory"}}}

    lines = dp_step.table([run(1.0), run(3.0), run(1.5)]).splitlines()
    assert lines[-2:] == ["| plain | 150.0 ms | 1.50 (1.00 to 3.00) | 4 | 1 MiB |", "| large | out of memory | | | |"]
    assert "| plain | 100.0 ms | 1.00 | 4 | 1 MiB |" in dp_step.table([run(1.0)])
