"""Kill a run at points of chance, resume it, and repeat until it is done; then see that nothing is wrong.

    python tests/kill_harness.py DIRECTORY [--kills 20] [--processes 1]

Every kill is a SIGKILL to all processes of the run, at a moment of chance after it has started its work.
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
    time.sleep(0.15)  # or a fast machine would be done before the last kill
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
    """Start the run, in a process group of its own, and wait until it begins to work."""
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
    while size_of(journal) == size_before:  # it begins with an entry, that of a resume if nothing else
        assert process.poll() is None, f"The run could not go on: {(directory / 'stderr').read_text()}"
        time.sleep(0.01)
    return process


def kill(process):
    """SIGKILL to the run and all its processes, each of which the launcher has given a process group of its own."""
    everybody = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in everybody:
        one.kill()
    psutil.wait_procs(everybody[1:])


def kill_until_done(directory, kills, num_processes=1, steps=15, longest=3.0):
    """Returns for each attempt that was killed how many steps of DP-SGD its journal knew."""
    left = []
    journal = directory / "model" / "private" / "journal.jsonl"

    def steps_of_dp_sgd():
        return journal.read_text().count('"dp_sgd"') if journal.exists() else 0

    while len(left) < kills:
        process = start(directory, num_processes, steps)
        # On a slow machine, too, the second half of the kills is for the second stage.
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
    """What must hold of a finished run, however often it was killed."""
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
    print(f"killed {len(left)} times, after {left} steps of DP-SGD; resumed each time, and all is well at the end")
