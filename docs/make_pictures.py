"""Make the pictures of the digits that the documentation shows: `python docs/make_pictures.py` (ten minutes).

Trains by README's first command, with a grid of samples every 100 steps, or takes the finished run that is there.
Writes docs/images/digits_*.png.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import matplotlib


matplotlib.use("Agg")

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from PIL import Image

from diffusers_dp_curriculum import CentralImageDataset, PrivacyLedger, load_image_dataset, load_preset


ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
WARM_UP_STEPS = load_preset("digits")["central_train_steps"]
COLUMNS = 5


def train(run: Path) -> None:
    """Run README's first command, unless its result is there."""
    if not (run / "samples.png").is_file():
        launch = [sys.executable, "-m", "accelerate.commands.launch", ROOT / "examples" / "train_dp_curriculum.py"]
        options = ["--output_dir", run, "--save_images_steps", "100", "--resume_from_checkpoint", "latest"]
        subprocess.run([*launch, *options], check=True)


def picture_of_the_run(stages: dict[str, Image.Image]) -> None:
    """Draw the first columns of the grid of each stage side by side."""
    figure, axes = plt.subplots(1, len(stages), figsize=(2.5 * len(stages), 4.7), layout="constrained")
    for axis, (title, grid) in zip(axes, stages.items(), strict=True):
        cell = grid.height // 10  # ten classes
        axis.imshow(grid.crop((0, 0, COLUMNS * cell, grid.height)))
        axis.set_title(title, fontsize=10)
        axis.axis("off")
    figure.savefig(IMAGES / "digits_run.png", dpi=100)


def central_images_with_more_and_less_noise(noise_multipliers: list[float]) -> None:
    """Draw one mean image per class for each noise multiplier, with its epsilon."""
    digits = load_image_dataset(dataset_name="digits")
    figure, axes = plt.subplots(len(noise_multipliers), 1, figsize=(6.6, 3.2), layout="constrained")
    for axis, noise_multiplier in zip(axes, noise_multipliers, strict=True):
        ledger = PrivacyLedger(1e-5)
        central = CentralImageDataset.from_dataset(
            digits, images_per_class=1, noise_multiplier=noise_multiplier, sample_rate=1.0, ledger=ledger
        )
        apart = F.pad(central.images[:, 0], (0, 1))  # a black column after each
        axis.imshow(torch.cat(list(apart), dim=1), cmap="gray", vmin=0, vmax=1)
        axis.set_title(f"noise multiplier {noise_multiplier:g}: epsilon {ledger.epsilon():.2f}", fontsize=9)
        axis.axis("off")
    figure.savefig(IMAGES / "digits_central_noise.png", dpi=100)


def main() -> None:
    """Train if needed, and draw all pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("outputs/pictures/digits"), help="directory of the run")
    run = parser.parse_args().run
    train(run)
    central, samples = Image.open(run / "central_images.png"), Image.open(run / "samples.png")
    warm = Image.open(run / "private" / "samples" / f"step-{WARM_UP_STEPS}.png")
    picture_of_the_run({"1. DP central images": central, "2. after the warm-up": warm, "3. after DP-SGD": samples})
    for name, picture in {"central_images": central, "samples": samples}.items():
        picture.convert("L").save(IMAGES / f"digits_{name}.png", optimize=True)
    central_images_with_more_and_less_noise([1, 5, 20])


if __name__ == "__main__":
    main()
