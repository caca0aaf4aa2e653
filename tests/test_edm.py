"""A network trained with the EDM loss, alone and by the trainer, and what diffusers' EDM schedulers sample from it."""

import json

import pytest
import torch
from diffusers import DDPMPipeline, EDMDPMSolverMultistepScheduler, EDMEulerScheduler

from diffusers_dp_curriculum import ClassConditionalPipeline, DPCurriculumConfig, DPCurriculumTrainer, InputError
from diffusers_dp_curriculum.gradients.losses import DenoisingLoss, denoising_error
from diffusers_dp_curriculum.sampling.saved_pipelines import use_scheduler
from diffusers_dp_curriculum.sampling.synthesis import generate_dataset
from helpers import tiny_records, tiny_scheduler, tiny_unet


def test_both_schedulers_sample_what_the_network_learned():
    """Learn two classes, bright above or bright below, in 150 steps without DP, and sample them."""
    torch.manual_seed(0)
    images = torch.full((2, 1, 8, 8), -0.5)
    images[0, :, :4] = images[1, :, 4:] = 0.5
    unet = tiny_unet(num_classes=2)
    loss = DenoisingLoss(EDMEulerScheduler(), null_label=2)
    optimizer = torch.optim.Adam(unet.parameters(), lr=5e-3)
    for _ in range(150):
        labels = torch.arange(32) % 2
        denoising_error(unet, loss.draw(images[labels], labels, 1).flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    for scheduler in (EDMEulerScheduler(), EDMDPMSolverMultistepScheduler()):
        pipeline = ClassConditionalPipeline(unet, scheduler)
        pipeline.set_progress_bar_config(disable=True)
        labels = torch.tensor([0, 1] * 5)
        options = {"num_inference_steps": 18, "generator": torch.Generator().manual_seed(0), "output_type": "pt"}
        samples = pipeline(labels.tolist(), **options).images * 2 - 1
        assert (samples - images[labels]).abs().mean() < 0.15


def test_a_run_with_edm(tmp_path):
    """A run with the EDM loss goes through both stages, and writes its card and its pipeline."""
    config = DPCurriculumConfig(
        output_dir=str(tmp_path / "model"),
        accountant="rdp",
        central_train_steps=2,
        max_train_steps=2,
        train_batch_size=8,
        noise_multiplicity=2,
        num_inference_steps=4,
        s_churn=2.0,
    )
    records = tiny_records()
    trainer = DPCurriculumTrainer(tiny_unet(), EDMEulerScheduler(sigma_data=0.6), config, records)
    trainer.train()
    trainer.save_pipeline()
    pipeline = ClassConditionalPipeline.from_pretrained(tmp_path / "model")
    assert isinstance(pipeline.scheduler, EDMEulerScheduler)
    assert pipeline.scheduler.config.sigma_data == 0.6
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| sigma_data | 0.6 |" in card
    assert "num_inference_steps=4, s_churn=2.0, s_tmin=0.05, s_tmax=50.0).images" in card
    assert json.loads((tmp_path / "model" / "privacy.json").read_text())["epsilon"] <= 10


def test_what_cannot_be_sampled_is_refused_before_training(tmp_path):
    config = {"output_dir": str(tmp_path / "model"), "train_batch_size": 8}
    with pytest.raises(InputError, match="use a DDPMScheduler"):
        DPCurriculumTrainer(
            tiny_unet(None), EDMEulerScheduler(), DPCurriculumConfig(**config), tiny_records(num_classes=None)
        )
    with pytest.raises(InputError, match="`s_churn` belongs to EDM's sampler"):
        DPCurriculumTrainer(tiny_unet(), tiny_scheduler(), DPCurriculumConfig(**config, s_churn=1.0), tiny_records())


def test_a_data_set_by_churn_or_by_the_other_solver(tmp_path):
    pipeline = ClassConditionalPipeline(tiny_unet(), EDMEulerScheduler())
    generate_dataset(pipeline, 1, output_dir=tmp_path / "churned", num_inference_steps=4, s_churn=2.0)
    settings = json.loads((tmp_path / "churned" / "generation.json").read_text())
    assert (settings["s_churn"], settings["s_tmin"], settings["s_tmax"]) == (2.0, 0.05, 50.0)
    for other in (3.0, 0.0):  # otherwise half of the images would have another churn
        with pytest.raises(InputError, match=r"other settings \(s_churn"):
            generate_dataset(pipeline, 1, output_dir=tmp_path / "churned", num_inference_steps=4, s_churn=other)
    generate_dataset(pipeline, 1, output_dir=tmp_path / "plain", num_inference_steps=4)
    with pytest.raises(InputError, match=r"other settings \(s_churn"):
        generate_dataset(pipeline, 1, output_dir=tmp_path / "plain", num_inference_steps=4, s_churn=2.0)

    use_scheduler(pipeline, "EDMDPMSolverMultistepScheduler")
    assert isinstance(pipeline.scheduler, EDMDPMSolverMultistepScheduler)
    assert len(generate_dataset(pipeline, 2, num_inference_steps=4)) == 6
    with pytest.raises(InputError, match="EDMEulerScheduler"):
        generate_dataset(pipeline, 2, num_inference_steps=4, s_churn=2.0)
    with pytest.raises(InputError, match="EDMDPMSolverMultistepScheduler, EDMEulerScheduler here"):
        use_scheduler(pipeline, "DDIMScheduler")


def test_churn_without_classes_is_refused():
    with pytest.raises(InputError, match="unconditional .* leave `s_churn` at 0"):
        generate_dataset(DDPMPipeline(tiny_unet(None), EDMEulerScheduler()), 1, num_inference_steps=2, s_churn=2.0)
