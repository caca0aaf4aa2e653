"""Describe the machine and the installed packages for a bug report.

    dp-curriculum env

The output has versions, numbers of processors and accelerators, and a few of Accelerate's settings. It contains no
paths, names of users or machines, tokens, or anything about data, so it can be posted in public.
"""

import argparse
import os
import platform
import sys
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

import psutil
import yaml


PACKAGES = [
    "diffusers-dp-curriculum",
    "torch",
    "diffusers",
    "accelerate",
    "opacus",
    "peft",
    "datasets",
    "transformers",
    "huggingface_hub",
    "safetensors",
    "numpy",
]

# The other settings can hold addresses, paths and names.
ACCELERATE_SETTINGS = ["distributed_type", "num_machines", "num_processes", "mixed_precision", "use_cpu"]


def installed_version(package: str) -> str:
    """Look up the version of a package.

    Args:
        package (`str`): The name of its distribution.

    Returns:
        `str`: The version, or "not installed".
    """
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def accelerators() -> str:
    """Count the accelerators that PyTorch sees, by model.

    Returns:
        `str`: The counts, such as "4 x NVIDIA H100", or "none".
    """
    import torch

    if not torch.accelerator.is_available():
        return "none"
    kind = torch.accelerator.current_accelerator().type
    get_name = getattr(torch.get_device_module(kind), "get_device_name", lambda index: kind)  # Apple's have no name
    models = Counter(get_name(index) for index in range(torch.accelerator.device_count()))
    return ", ".join(f"{count} x {model}" for model, count in models.items())


def accelerate_settings() -> str:
    """List the settings saved by `accelerate config` that can be posted in public.

    Returns:
        `str`: The settings, such as "num_processes=4, mixed_precision=bf16", or "none saved".
    """
    from accelerate.commands.config.config_args import default_config_file

    if not os.path.isfile(default_config_file):
        return "none saved"
    with open(default_config_file, encoding="utf-8") as file:
        settings = yaml.safe_load(file)
    return ", ".join(f"{name}={settings[name]}" for name in ACCELERATE_SETTINGS if name in settings)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the flags; there are none."""
    return argparse.ArgumentParser(
        prog="dp-curriculum env", description="Describe this machine for a bug report, without names or paths."
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the description, as a list in Markdown.

    Args:
        arguments (`Sequence[str]`, *optional*): The flags; `sys.argv[1:]` by default.

    Returns:
        `int`: The exit status.
    """
    make_parser().parse_args(arguments)
    import torch

    lines = {package: installed_version(package) for package in PACKAGES}
    lines["Python"] = platform.python_version()
    lines["platform"] = f"{platform.system()} {platform.release()} {platform.machine()}"
    lines["CPUs"] = str(os.cpu_count())
    lines["memory"] = f"{psutil.virtual_memory().total / 2**30:.0f} GiB"
    lines["accelerators"] = accelerators()
    lines["CUDA that torch was built for"] = torch.version.cuda or "none"
    lines["accelerate config"] = accelerate_settings()
    for name, text in lines.items():
        print(f"- {name}: {text}")
    return 0


if __name__ == "__main__":
    from ..cli import run

    sys.exit(run("env"))
