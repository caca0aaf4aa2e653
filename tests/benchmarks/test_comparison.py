"""The comparison with DP-SGD alone: its arms, resuming, and the report."""

import gzip
import json
import sys

import numpy as np
import pytest
import torch

from diffusers_dp_curriculum import DatasetInfo, ImageDataset
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


def config_of(profile, arm, epsilon=10.0, trial=None, tmp_path=None):
    comparison = object.__new__(benchmark.Comparison)
    comparison.profile, comparison.output = profile, tmp_path or REPOSITORY / "outputs"
    return comparison.config(benchmark.Cell(arm, epsilon, 0, trial))


@pytest.mark.parametrize("profile", benchmark.PROFILES.values(), ids=benchmark.PROFILES)
def test_arms_differ_in_their_stages(profile):
    stages = {
        arm: (
            config.central_statistic != "none",
            config.frequency_features != 0,
            config.max_train_steps > 0,
        )
        for arm in profile.arms
        for config in [config_of(profile, arm)]
    }
    assert stages == {
        "three_stages": (True, True, True),
        "longer": (True, True, True),
        "without_dp_sgd": (True, True, False),
        "two_stages": (True, False, True),
        "dp_sgd_alone": (False, False, True),
        "non_private": (True, False, True),  # its warm-up is on records
        "random_users": (True, True, True),
        "users_of_a_class": (True, True, True),
        "users_without_dp_sgd": (True, True, False),
    }


def test_every_private_arm_has_as_many_trials_and_the_setting_of_one():
    profile = benchmark.PROFILES["cpu"]
    assert set(profile.trials) == {"three_stages", "two_stages", "dp_sgd_alone"}
    assert len({len(tried) for tried in profile.trials.values()}) == 1
    for arm, tried in profile.trials.items():
        assert {name: profile.settings(arm)[name] for name in tried[0]} in tried


def test_users_have_five_records_each():
    comparison = object.__new__(benchmark.Comparison)
    labels = torch.arange(100) % 10
    comparison.train = ImageDataset(torch.zeros(100, 1, 8, 8, dtype=torch.uint8), labels, list("0123456789"))
    for arm in ("random_users", "users_of_a_class", "users_without_dp_sgd"):
        users = comparison._records(benchmark.Cell(arm, 1.0, 0)).users
        assert torch.bincount(users).tolist() == [5] * 20
        classes = [len(labels[users == user].unique()) for user in range(20)]
        assert (max(classes) == 1) == (arm == "users_of_a_class")


def test_the_cpu_profile_is_the_preset():
    profile = benchmark.PROFILES["cpu"]
    script, config = parse_arguments(["--preset", "fashion_mnist_16"])
    assert config.training_parameters() == config_of(profile, "three_stages").training_parameters()
    assert config.guidance_scale == profile.config["guidance_scale"]
    comparison = object.__new__(benchmark.Comparison)
    comparison.profile = profile
    unet = network_of(script, DatasetInfo(60_000, 1, 16, tuple("0123456789")))
    comparison.train = ImageDataset(torch.zeros(10, 1, 16, 16, dtype=torch.uint8), torch.arange(10), list("0123456789"))
    comparison.num_classes = 10
    assert comparison.unet().config == unet.config
    scheduler = scheduler_of(script)
    ours, theirs = benchmark.make_scheduler().config, scheduler.config
    assert {**ours, "_use_default_values": None} == {**theirs, "_use_default_values": None}
    assert (script.resolution, config.num_inference_steps) == (profile.resolution, profile.num_inference_steps)


def test_cells_come_seed_by_seed():
    names = [cell.name for cell in benchmark.cells(["real", "two_stages", "dp_sgd_alone"], [1.0, 10.0], 2)]
    assert len(set(names)) == len(names) == 2 * (1 + 2 * 2)
    assert [name[-1] for name in names] == ["0"] * 5 + ["1"] * 5


def test_the_documented_tables_are_those_of_the_results():
    docs = REPOSITORY / "docs"
    text = (docs / "results.md").read_text(encoding="utf-8")
    results = docs / "results" / "fashion_mnist_16"
    rows = comparison_report.results(results)
    assert comparison_report.table([row for row in rows if "users" not in row["arm"]]) in text
    assert comparison_report.table([row for row in rows if "users" in row["arm"]]) in text
    assert comparison_report.trials_table(rows, benchmark.PROFILES["cpu"]) in text
    assert comparison_report.table(comparison_report.results(results / "earlier")) in text


@pytest.mark.slow
def test_every_arm_runs_and_is_reported(tmp_path, monkeypatch, capsys):
    write_idx(tmp_path / "data")
    output = tmp_path / "comparison"
    arguments = ["--data", str(tmp_path / "data"), "--profile", "smoke", "--seeds", "1", "--epsilons", "10"]
    arguments += ["--arms", *comparison_report.ARMS, "--output", str(output)]
    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments])
    benchmark.main()
    results = {path.stem: json.loads(path.read_text()) for path in (output / "cells").iterdir()}
    assert sorted(result["arm"] for result in results.values()) == sorted(benchmark.ARMS)
    for result in results.values():
        assert 0 <= result["accuracy"] <= 1
        assert result["frechet_distance"] > 0
        assert result["arm"] == "real" or result["core_minutes"] > 0
        if result["epsilon"] is not None:
            assert 0 < result["epsilon_spent"] <= 10
    for arm in ("random_users", "users_of_a_class"):
        assert json.loads((output / "runs" / f"{arm}-10-0" / "privacy.json").read_text())["unit"] == "user"
    assert "| 10 | DP-SGD alone | 1 |" in (output / "table.md").read_text()
    assert {"epsilon.png", "samples.png"} <= {path.name for path in output.iterdir()}

    (output / "cells" / "real-no-0.json").unlink()
    capsys.readouterr()
    benchmark.main()  # runs the missing cell
    assert [line for line in capsys.readouterr().out.splitlines() if line.endswith(": done")] == ["real-no-0: done"]

    monkeypatch.setattr(sys, "argv", ["benchmark", *arguments, "--trials"])
    benchmark.main()
    trials = sorted(path.stem for path in (output / "cells").glob("*trial*"))
    assert trials == ["three_stages-10-trial0", "three_stages-10-trial1"]
    assert "`learning_rate` 0.002" in (output / "table.md").read_text()
