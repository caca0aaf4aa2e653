import os
import subprocess
import sys
from collections import Counter
from importlib.metadata import version

import torch

from diffusers_dp_curriculum.commands import env


def test_nothing_that_tells_of_people_or_places_is_printed(tmp_path):
    """In a new process, since Accelerate finds the place of its configuration when it is imported."""
    home = tmp_path / "home" / "dr-secret-person"
    config = home / "hf" / "accelerate" / "default_config.yaml"
    config.parent.mkdir(parents=True)
    config.write_text(
        "distributed_type: MULTI_GPU\nnum_machines: 2\nnum_processes: 8\nmixed_precision: bf16\n"
        "main_process_ip: 10.99.98.97\ntpu_name: secret-machine\n"
        f"deepspeed_config: {{deepspeed_config_file: {home}/deepspeed.json}}\n"
    )
    planted = {
        "HF_TOKEN": "hf_secretToken",
        "HOME": str(home),
        "HF_HOME": str(home / "hf"),
        "USER": "dr-secret-person",
        "LOGNAME": "dr-secret-person",
        "HOSTNAME": "secret-machine",
    }
    done = subprocess.run(
        [sys.executable, "-m", "diffusers_dp_curriculum.cli", "env"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, **planted},
    )
    assert done.returncode == 0, done.stderr
    assert "accelerate config: distributed_type=MULTI_GPU, num_machines=2, num_processes=8" in done.stdout
    for planted_text in ("secret", "10.99", str(tmp_path), os.path.expanduser("~"), sys.prefix, os.uname().nodename):
        assert planted_text not in done.stdout


def test_it_says_what_a_bug_report_needs(capsys):
    assert env.main([]) == 0
    facts = dict(line.removeprefix("- ").split(": ", 1) for line in capsys.readouterr().out.splitlines())
    for package in env.PACKAGES:
        assert facts[package] == version(package)
    assert facts["Python"].startswith("3.")
    assert int(facts["CPUs"]) >= 1
    assert facts["memory"].endswith(" GiB")
    assert facts["accelerators"] == env.accelerators()


def test_a_package_that_is_missing_is_named(monkeypatch, capsys):
    monkeypatch.setattr(env, "PACKAGES", ["torch", "no-such-package"])
    env.main([])
    assert "- no-such-package: not installed\n" in capsys.readouterr().out


def test_accelerators_are_counted_by_model(monkeypatch):
    models = ["NVIDIA H100", "NVIDIA H100", "NVIDIA A100"]
    device_module = type("DeviceModule", (), {"get_device_name": staticmethod(models.__getitem__)})
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: len(models))
    monkeypatch.setattr(torch, "get_device_module", lambda kind: device_module)
    assert Counter(env.accelerators().split(", ")) == Counter(["2 x NVIDIA H100", "1 x NVIDIA A100"])
