"""The comparison with DP-SGD alone: equal passes, resuming, and the report."""

import gzip
import json
import sys

import numpy as np
import pytest

from diffusers_dp_curriculum import DatasetInfo, load_preset
from diffusers_dp_curriculum.commands.train import network_of, parse_arguments, scheduler_of
from helpers import REPOSITORY


sys.path.insert(0, str(REPOSITORY / "benchmarks"))

import comparison_report
import curriculum_vs_dpsgd as benchmark


def write_idx(directory):
    """Write 40 training and 20 test images of 8x8 pixels under the names of MNIST's files."""
    generator = np.random.default_rng(0)
    directory.mkdir()
    for prefix, count in (("train", 40), ("t10k", 20)):
        images = generator.integers(0, 256, (count, 8, 8), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
            (directory / f"{prefix}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))


@pytest.mark.parametrize("profile", benchmark.PROFILES.values(), ids=benchmark.PROFILES)
def test_equal_passes(profile, tmp_path):
    comparison = object.__new__(benchmark.Comparison)
    comparison.profile, comparison.output = profile, tmp_path
    alone = comparison._config(benchmark.Cell("dp_sgd_alone", 10.0, 0))
    assert 0 <= alone.max_train_steps * profile.step_passes - profile.passes < profile.step_passes
    mean, mode = (comparison._config(benchmark.Cell(f"curriculum_{kind}", 10.0, 0)) for kind in ("mean", "mode"))
    assert (mean.central_statistic, mode.central_statistic) == ("mean", "mode")
    assert {config.target_epsilon for config in (alone, mean, mode)} == {10.0}


def test_the_cpu_profile_is_the_preset():
    profile = benchmark.PROFILES["cpu"]
    preset = load_preset("fashion_mnist_16")
    script, config = parse_arguments(["--preset", "fashion_mnist_16"])
    assert {name: preset[name] for name in profile.config if name in preset} == {
        name: value for name, value in profile.config.items() if name != "target_delta"
    }
    assert config.target_delta == profile.config["target_delta"]
    comparison = object.__new__(benchmark.Comparison)
    comparison.profile = profile
    unet = network_of(script, DatasetInfo(60_000, 1, 16, tuple("0123456789")))
    assert comparison._unet().config == unet.config
    scheduler = scheduler_of(script)
    ours, theirs = benchmark.make_scheduler().config, scheduler.config
    assert {**ours, "_use_default_values": None} == {**theirs, "_use_default_values": None}
    assert (script.resolution, config.num_inference_steps) == (profile.resolution, profile.num_inference_steps)


def test_cells_come_seed_by_seed():
    names = [cell.name for cell in benchmark.cells([1.0, 10.0], 2)]
    assert len(set(names)) == len(names) == 2 * (4 * 2 + 2)
    assert [name[-1] for name in names] == ["0"] * 10 + ["1"] * 10


def test_the_documented_tables_are_those_of_the_results():
    docs = REPOSITORY / "docs"
    results = docs / "results" / "fashion_mnist_16"
    text = (docs / "results.md").read_text(encoding="utf-8")
    for run in (results, results / "earlier" / "first", results / "earlier" / "second"):
        assert comparison_report.table(comparison_report.results(run)) in text
    rows = comparison_report.results(results)
    assert len(rows) == len(benchmark.cells([1.0, 10.0], 3))
    assert comparison_report.gain(rows) in text


@pytest.mark.slow
def test_every_arm_runs_and_is_reported(tmp_path, monkeypatch, capsys):
    write_idx(tmp_path / "data")
    output = tmp_path / "comparison"
    arguments = ["--data", str(tmp_path / "data"), "--profile", "smoke", "--seeds", "1", "--epsilons", "10"]
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments, "--output", str(output)])
    benchmark.main()
    results = {path.stem: json.loads(path.read_text()) for path in (output / "cells").iterdir()}
    assert sorted(result["arm"] for result in results.values()) == sorted(benchmark.ARMS)
    for result in results.values():
        assert 0 <= result["accuracy"] <= 1
        assert result["frechet_distance"] > 0
        if result["epsilon"] is not None:
            assert 0 < result["epsilon_spent"] <= 10
    curve = results["curriculum_mean-10-0"]["curve"]
    assert len(curve) == benchmark.SNAPSHOTS
    assert [point["passes"] for point in curve] == sorted({point["passes"] for point in curve})
    assert "the Frechet distance of curriculum, mean images is" in (output / "table.md").read_text()
    assert {"epsilon.png", "passes.png", "samples.png"} <= {path.name for path in output.iterdir()}

    (output / "cells" / "real-no-0.json").unlink()
    capsys.readouterr()
    benchmark.main()  # runs the missing cell
    assert [line for line in capsys.readouterr().out.splitlines() if line.endswith(": done")] == ["real-no-0: done"]
