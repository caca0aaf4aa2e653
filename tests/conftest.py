"""What tests share. It imports nothing that takes long: the process that shares the tests out reads it, too."""

import logging
import os
import subprocess
from functools import lru_cache

import pytest


# The networks of the tests are too small to share between cores: with one thread they run several times faster, here
# and in the processes that the tests start. PyTorch reads it when it is imported.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session", autouse=True)
def remembered_divergences():
    """Every question for an epsilon lets Opacus compute the same Rényi divergences, for half a second: here, once."""
    from opacus.accountants.analysis import rdp

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(rdp, "_compute_rdp", lru_cache(maxsize=None)(rdp._compute_rdp))
        yield


@pytest.fixture
def messages(caplog):
    """The messages that the library logs, as `messages.text`."""
    caplog.set_level(logging.INFO, logger="diffusers_dp_curriculum")
    return caplog


@pytest.fixture
def small_batches(monkeypatch):
    """Let the generator of frequency images take small batches, and make few images."""
    from diffusers_dp_curriculum.training import auxiliary_generator

    monkeypatch.setattr(auxiliary_generator, "BATCH_SIZE", 12)
    monkeypatch.setattr(auxiliary_generator, "NUM_IMAGES", 60)


@pytest.fixture
def fresh_accelerator():
    """Reset the state of Accelerate, which otherwise keeps its first precision for the whole process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def small_disk(tmp_path):
    """A directory on a disk of half a megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", disk], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("only root can mount a small disk")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


@pytest.fixture
def hub(monkeypatch):
    """A Hub on this machine, to which this process is logged in."""
    import huggingface_hub

    from helpers.hub_server import HubServer

    with HubServer() as hub:
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_writes")
        yield hub


@pytest.fixture
def recompute(capsys):
    """A function that runs `dp-curriculum epsilon`, and returns the exit status and what was printed."""
    from diffusers_dp_curriculum import cli

    def run(*arguments):
        status = cli.main(["epsilon", *map(str, arguments)])
        return status, *capsys.readouterr()

    return run
