"""If one of the processes of a run dies or is stopped, the others end and say so; real processes, without a launcher.

A launcher on the same machine would end the others itself. Nobody does so for processes on other machines.
"""

import logging
import os
import signal
import socket
import time

import pytest
from accelerate.state import AcceleratorState

from diffusers_dp_curriculum.distributed import process_index
from diffusers_dp_curriculum.errors import TrainingError
from diffusers_dp_curriculum.mechanisms.dp_sgd import DPSGD
from diffusers_dp_curriculum.training import heartbeat
from diffusers_dp_curriculum.training.accelerator import PROCESS_GROUP_TIMEOUT
from diffusers_dp_curriculum.training.heartbeat import Heartbeat
from helpers.processes import exit_code, fork
from helpers.runs import make_trainer


SENTENCE = "Process {} of this run has died, stopped or cannot be reached"
DIED, ENDED = 3, 1


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def run(directory, port, rank, number, which):
    """One process of a run of two; that of rank `which` sends itself the signal in the second step of DP-SGD."""
    said = open(directory / f"says-{rank}", "w")  # noqa: SIM115 (until the process ends)
    logging.getLogger("diffusers_dp_curriculum").addHandler(logging.StreamHandler(said))
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    heartbeat.BEAT_SECONDS, heartbeat.SILENCE_AFTER_ERROR_SECONDS, heartbeat.SILENCE_SECONDS = 0.2, 4.0, 6.0
    AcceleratorState._reset_state(reset_partial_state=True)
    step, steps = DPSGD.step, []

    def step_and_die(mechanism):
        steps.append(step(mechanism))
        if len(steps) == 2 and process_index() == which:
            os.kill(os.getpid(), number)

    DPSGD.step = step_and_die
    trainer = make_trainer(directory / "model", central_statistic="none", frequency_features=0, max_train_steps=10_000)
    try:
        trainer.train()
    except TrainingError as error:
        print(error, file=said, flush=True)
        return DIED


@pytest.mark.parametrize(
    ("number", "which", "code"),
    [
        (signal.SIGKILL, 1, DIED),  # gloo notices that the connection is closed
        (signal.SIGKILL, 0, DIED),  # with the main process, the store is gone as well
        (signal.SIGSTOP, 1, ENDED),  # nothing notices but the heartbeat, and nothing interrupts a collective operation
    ],
)
def test_the_surviving_process_ends_and_says_how_to_resume(tmp_path, number, which, code):
    port = free_port()
    children = [fork(lambda rank=rank: run(tmp_path, port, rank, number, which)) for rank in (0, 1)]
    try:
        assert exit_code(children[1 - which]) == code, (tmp_path / f"says-{1 - which}").read_text()
    finally:
        os.kill(children[which], signal.SIGKILL)
        exit_code(children[which])
    said = (tmp_path / f"says-{1 - which}").read_text()
    assert said.count(SENTENCE.format(which)) == 1
    assert "`resume_from_checkpoint` latest" in said


class Counts(dict):
    """The store of two processes, in memory."""

    set = dict.__setitem__

    def multi_get(self, names):
        if names[0] not in self:
            raise RuntimeError("wait timeout")
        return [self[name] for name in names]


@pytest.fixture
def beats(monkeypatch):
    """A heartbeat of process 0 that hears process 1 in the returned store."""
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(heartbeat, "SILENCE_AFTER_ERROR_SECONDS", 0.5)
    store = Counts()
    listening = Heartbeat(store, 0, 2)
    yield listening, store
    listening.stop()


def test_a_process_that_has_not_begun_is_not_silent(beats):
    listening, _ = beats
    time.sleep(0.1)
    assert listening.silent_process(0.01) is None


def test_a_process_that_waits_for_hours_is_heard_until_it_stops(beats):
    """Its thread counts, whatever it does."""
    listening, store = beats
    other = Heartbeat(store, 1, 2)
    while not listening._heard:
        time.sleep(0.01)
    assert listening.silent_process_after_error() is None
    assert listening.silent_process(30) is None
    other.stop()
    assert listening.silent_process_after_error() == 1
    assert listening.silent_process(0.1) == 1


def test_a_silent_process_is_noticed_within_a_minute_and_a_slow_one_is_left_alone():
    assert heartbeat.SILENCE_SECONDS + heartbeat.BEAT_SECONDS + heartbeat.STORE_TIMEOUT.total_seconds() < 60
    assert PROCESS_GROUP_TIMEOUT.total_seconds() >= 3600
