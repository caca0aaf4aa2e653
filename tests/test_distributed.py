"""Launches of two and three processes, and a single process, execute the same mechanism."""

import os
import subprocess
import sys

import pytest
import torch

import several_processes
from helpers import TESTS
from helpers.processes import exit_code, fork


def launch(num_processes, script, *arguments):
    """Run `accelerate launch` on this machine's CPU, where the flag for several processes is the same."""
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(num_processes)),
        *("--main_process_port", "0", script, *arguments),
    ]
    return subprocess.run(command, cwd=TESTS, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": PATH})


PATH = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    """A function from a number of processes to the facts that each process of such a launch found."""
    known = {}

    def of(num_processes):
        if num_processes not in known:
            directory = tmp_path_factory.mktemp("launch")
            if num_processes == 1:  # a copy of this process, which has no process group
                assert exit_code(fork(lambda: several_processes.main(directory))) == 0
                finished = None
            else:
                finished = launch(num_processes, "several_processes.py", directory)
                assert finished.returncode == 0, finished.stderr
            known[num_processes] = torch.load(directory / "facts.pt", weights_only=True), finished, directory
        return known[num_processes]

    return of


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_step_is_the_same_whatever_the_number_of_processes(facts, count):
    """Sampling, noise and draws follow from a seed here."""
    alone, together = facts(1)[0][0], facts(count)[0]
    assert len(together) == count
    for name in ("gradient", "gradient_of_users", "empty_shares", "warm_up"):
        for of_process in together:
            assert (of_process[name] - alone[name]).norm() < 1e-5 * alone[name].norm().clamp(min=1)
            assert torch.equal(of_process[name], together[0][name])


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_a_run_is_the_same_whatever_the_number_of_processes(facts, count):
    alone, together = facts(1)[0][0]["run"], [of_process["run"] for of_process in facts(count)[0]]
    for run in together:
        assert (run["parameters"] - alone["parameters"]).abs().max() < 1e-5
        assert torch.equal(run["parameters"], together[0]["parameters"])
        for name in ("central_images", "frequency_sums"):
            assert torch.equal(run[name], alone[name])
        assert torch.equal(run["frequency_images"], together[0]["frequency_images"])
        assert torch.allclose(run["frequency_images"], alone["frequency_images"], atol=1e-4)
        for name in ("epsilon", "steps", "not_private"):
            assert run[name] == alone[name]


def test_processes_agree_on_a_public_start_and_on_adapters(facts):
    """Ordinary training depends on the number of processes by rounding, which Adam enlarges; the noise does not."""
    (alone,), together = ([of_process["from_a_public_start"] for of_process in facts(count)[0]] for count in (1, 2))
    for name, tolerance in (("public", 2e-2), ("adapted", 2e-2)):
        assert torch.equal(together[0][name], together[1][name])
        assert (together[0][name] - alone[name]).norm() < tolerance * alone[name].norm()
    for start in (alone, together[0]):
        assert not torch.equal(start["public"], start["adapted"])


@pytest.mark.parametrize("name", ["noise", "secure_noise"])
@pytest.mark.parametrize("count", [1, 2])
def test_noise_of_the_released_sum_does_not_depend_on_the_number_of_processes(facts, count, name):
    for of_process in facts(count)[0]:
        assert of_process[name].std() == pytest.approx(2.0 * 0.5, rel=0.02)
        assert torch.equal(of_process[name], facts(count)[0][0][name])


def test_noise_is_added_once_to_the_whole_sum_in_double_precision(facts):
    """The noise would not hide anything that is added after it or rounded before it."""
    (alone,), (main, other) = ([of_process["before_the_noise"] for of_process in facts(count)[0]] for count in (1, 2))
    assert other is None
    assert alone.dtype == main.dtype == torch.float64
    assert (alone != alone.float().double()).any()
    assert (main - alone).norm() < 1e-13 * alone.norm()


@pytest.mark.parametrize("count", [1, 2])
def test_the_expected_batch_size_does_not_depend_on_the_number_of_processes(facts, count):
    assert all(of_process["expected_batch_size"] == pytest.approx(20) for of_process in facts(count)[0])


def test_no_record_is_taken_twice_and_the_shares_are_even(facts):
    first, second = (of_process["records"] for of_process in facts(2)[0])
    assert first[0] != first[1] != first[2]
    for one, other in zip(first, second, strict=True):
        assert not set(one) & set(other)
        assert len(one) - len(other) in (0, 1)
    assert 20 < sum(len(share) for share in first + second) < 100  # of 60 expected


def test_every_process_has_draws_of_its_own(facts):
    first, second = (of_process["first_draws"] for of_process in facts(2)[0])
    assert not torch.equal(first, second)


def test_what_one_process_finds_all_know(facts):
    for of_process in facts(2)[0]:
        assert of_process["refusal"] == "The main process refuses."
        assert of_process["any"] == [False, True, True]


def test_a_private_step_pickles_nothing_for_the_other_process(facts):
    """Only the last step writes a checkpoint; what the first one counts was needed to begin."""
    for of_process in facts(2)[0]:
        _, *others, last = of_process["run"]["pickled"]
        assert others == [0, 0, 0]
        assert last > 0


def test_the_main_process_alone_prints_and_writes(facts):
    _, finished, directory = facts(2)
    for of_each_private_run in ("Plan for 60 records", "processes       2 on cpu", "DP-SGD:   0%"):
        assert finished.stderr.count(of_each_private_run) == 2
    assert (directory / "model" / "private" / "journal.jsonl").read_text().count('"release"') == 5 + 1 + 5
    assert (directory / "model" / "samples.png").exists()
