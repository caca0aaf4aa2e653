"""Kill a run at random moments, resume it, and repeat until it is finished; then check the finished run.

    python tests/kill_harness.py DIRECTORY [--kills 20] [--processes 1]

Every kill is a SIGKILL to all processes of the run, at a random moment after the run has written to its journal.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
from diffusers import DiffusionPipeline

from diffusers_dp_curriculum import recompute_epsilon
from diffusers_dp_curriculum.privacy.journal import Journal
from helpers import TESTS


RUN = """
import sys
import time
import torch
from diffusers_dp_curriculum import DPCurriculumTrainer, RunStatus
from helpers import smallest_unet, tiny_records, tiny_scheduler
from helpers.runs import make_config

torch.manual_seed(0)
args = make_config(
    sys.argv[1], resume_from_checkpoint="latest", checkpointing_steps=3, checkpoints_total_limit=2,
    central_train_steps=int(sys.argv[2]), max_train_steps=int(sys.argv[2]), save_images_steps=None,
)
trainer = DPCurriculumTrainer(smallest_unet(), tiny_scheduler(), args, tiny_records())
after_step = trainer._after_step

def after_a_pause(*state, **flags):
    time.sleep(0.15)  # otherwise a fast machine would finish the run before the last kill
    return after_step(*state, **flags)

trainer._after_step = after_a_pause
if trainer.train() is RunStatus.FINISHED:
    trainer.save_pipeline()
"""


def command(directory, num_processes, steps):
    script = directory / "run.py"
    script.write_text(RUN, encoding="utf-8")
    launcher = [sys.executable]
    if num_processes > 1:
        launcher += ["-m", "accelerate.commands.launch", "--multi_gpu", "--main_process_port", "0"]
        launcher += ["--num_processes", str(num_processes)]
    return [*launcher, script, directory / "model", str(steps)]


def size_of(journal):
    return journal.stat().st_size if journal.exists() else 0


def start(directory, num_processes=1, steps=15):
    """Start the run in a process group of its own, and wait until it has written to its journal."""
    journal = directory / "model" / "private" / "journal.jsonl"
    size_before = size_of(journal)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(
        command(directory, num_processes, steps),
        stdout=subprocess.PIPE,
        stderr=(directory / "stderr").open("w"),
        text=True,
        env=environment,
        start_new_session=True,
    )
    while size_of(journal) == size_before:  # a new run writes the header, a resumed run an event
        assert process.poll() is None, f"The run ended before it began to work: {(directory / 'stderr').read_text()}"
        time.sleep(0.01)
    return process


def kill(process):
    """Send SIGKILL to the launcher and to each process of the run; every one has a process group of its own."""
    everybody = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in everybody:
        one.kill()
    psutil.wait_procs(everybody[1:])


def kill_until_done(directory, kills, num_processes=1, steps=15, longest=3.0):
    """Kill and resume the run, then let it finish; return the DP-SGD steps in the journal after each kill."""
    left = []
    journal = directory / "model" / "private" / "journal.jsonl"

    def steps_of_dp_sgd():
        return journal.read_text().count('"dp_sgd"') if journal.exists() else 0

    while len(left) < kills:
        process = start(directory, num_processes, steps)
        # The second half of the kills has to hit DP-SGD, on slow machines as well.
        while len(left) >= kills / 2 and steps_of_dp_sgd() == 0 and process.poll() is None:
            time.sleep(0.05)
        try:
            process.wait(timeout=random.uniform(0, longest))
        except subprocess.TimeoutExpired:
            kill(process)
        if process.wait() == 0:
            break
        assert process.returncode == -signal.SIGKILL, (directory / "stderr").read_text()
        left.append(steps_of_dp_sgd())
    process = start(directory, num_processes, steps)
    process.stdout.read()
    assert process.wait() == 0, (directory / "stderr").read_text()
    return left


def check(output_dir, steps=15):
    """Check a finished run: its statement counts all releases, no partial file is left, and the pipeline samples."""
    statement = json.loads((output_dir / "privacy.json").read_text())
    journal = Journal(output_dir / "private" / "journal.jsonl")
    counted = [(mechanism.name, mechanism.steps) for mechanism in journal.counted()]
    totals = {name: sum(n for other, n in counted if other == name) for name, _ in counted}
    stated = {entry["name"]: entry["steps"] for entry in statement["mechanisms"]}
    assert stated == totals, f"stated {stated}, released {totals}"
    # A kill right before a checkpoint is written leaves steps that count although the checkpoint is lost.
    assert steps <= stated["dp_sgd"] <= 1.05 * steps
    assert recompute_epsilon(statement) == statement["epsilon"] <= 10
    assert any(event.get("visible") == "pipeline" for event in journal.events)
    journal.close()
    assert not [path for path in output_dir.rglob("*") if "partial" in path.name or path.suffix in (".tmp", ".part")]
    pipeline = DiffusionPipeline.from_pretrained(output_dir, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    assert len(pipeline(class_labels=[0, 2], num_inference_steps=2).images) == 2


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    options.directory.mkdir(parents=True)
    many = 8 * options.kills  # steps of each stage, so that the kills are spread over both
    left = kill_until_done(options.directory, options.kills, options.processes, many)
    check(options.directory / "model", many)
    print(f"Killed {len(left)} times, after {left} DP-SGD steps, and resumed each time: the finished run is correct.")
