"""Small runs, whole or interrupted."""

import json
import os
import signal

from diffusers_dp_curriculum import DPCurriculumConfig, DPCurriculumTrainer
from diffusers_dp_curriculum.training.interruption import RunStatus
from helpers import smallest_unet, tiny_records, tiny_scheduler


def make_config(output_dir, **options):
    settings = {
        "output_dir": str(output_dir),
        "accountant": "rdp",  # plans in a tenth of the time that prv takes
        "central_sample_rate": 0.5,
        "central_train_steps": 3,
        "central_batch_size": 4,
        "train_batch_size": 10,
        "max_train_steps": 4,
        "noise_multiplicity": 2,
        "num_inference_steps": 2,
    }
    return DPCurriculumConfig(**{**settings, **options})


def make_trainer(output_dir, unet=None, records=None, **options):
    return DPCurriculumTrainer(
        unet=smallest_unet() if unet is None else unet,
        noise_scheduler=tiny_scheduler(),
        args=make_config(output_dir, **options),
        train_dataset=tiny_records() if records is None else records,
    )


def finish(trainer):
    """Train and save; return the content of privacy.json."""
    trainer.train()
    trainer.save_pipeline()
    trainer.ledger.close()
    return json.loads((trainer.output_dir / "privacy.json").read_text())


def interrupted(output_dir, after, **options):
    """Start a run, and send it SIGTERM in the step with number `after`, counted over both stages."""
    trainer = make_trainer(output_dir, **options)
    original = trainer._after_step

    def after_step(state, *others, **flags):
        if trainer._number(state) == after:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(state, *others, **flags)

    trainer._after_step = after_step
    assert trainer.train() is RunStatus.TERMINATED
