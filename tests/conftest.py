import logging
import os

import huggingface_hub
import pytest
import torch
from accelerate.state import AcceleratorState

from diffusers_dp_curriculum import cli
from helpers.hub_server import HubServer


# The networks of the tests are too small to share between cores: with one thread they run several times faster, here
# and in the processes that the tests start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture
def messages(caplog):
    """The messages that the library logs, as `messages.text`."""
    caplog.set_level(logging.INFO, logger="diffusers_dp_curriculum")
    return caplog


@pytest.fixture
def fresh_accelerator():
    """Reset the state of Accelerate, which otherwise keeps its first precision for the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def hub(monkeypatch):
    """A Hub on this machine, to which this process is logged in."""
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

    def run(*arguments):
        status = cli.main(["epsilon", *map(str, arguments)])
        return status, *capsys.readouterr()

    return run
