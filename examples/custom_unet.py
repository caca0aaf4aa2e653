"""Train a network of your own, with a noise scheduler of your own, on a `datasets.Dataset`.

    python examples/custom_unet.py

The data set is a small one that is part of scikit-learn. Any `UNet2DModel` works if none of its layers mixes records;
its last class embedding means "no class".
"""

import datasets
from diffusers import DDPMScheduler, UNet2DModel
from PIL import Image
from sklearn.datasets import load_digits

from diffusers_dp_curriculum import DPCurriculumConfig, DPCurriculumTrainer


def load_records() -> datasets.Dataset:
    """Load 1,797 grey images of 8x8 pixels, with labels whose class names are declared."""
    digits = load_digits()
    images = [Image.fromarray((pixels * 15).astype("uint8")) for pixels in digits.images]
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=list("0123456789")))
    return datasets.Dataset.from_dict({"image": images, "label": digits.target}, features=features)


def train(output_dir: str = "my-digits", **settings) -> None:
    """Train under one (epsilon, delta); `settings` are further fields of the config."""
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(16, 32),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        num_class_embeds=11,  # ten digits, and "no class"
    )
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    config = DPCurriculumConfig(output_dir=output_dir, **{"target_epsilon": 10.0, "target_delta": 1e-5, **settings})
    trainer = DPCurriculumTrainer(unet=unet, noise_scheduler=scheduler, args=config, train_dataset=load_records())
    trainer.train()
    trainer.save_pipeline()
    print(trainer.summary())


if __name__ == "__main__":
    train()
