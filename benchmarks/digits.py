"""Train variants of the digits recipe and measure the quality of their synthetic digits.

    python benchmarks/digits.py --seeds 3 --arms curriculum dp_sgd_alone --output_dir outputs/digits

For every arm and seed: train by the example script, generate 150 digits per class, train a random forest on them, test
it on the 297 real digits that were held out of training, and compute the Frechet distance to these in pixel space.
Finished runs are kept and not repeated. At the end the same is measured for the real training digits. Both measures
read real digits outside of all mechanisms, so the figures are not part of any private release.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.ensemble import RandomForestClassifier

from diffusers_dp_curriculum import ClassConditionalPipeline, generate_dataset, load_image_dataset
from diffusers_dp_curriculum.evaluation.fidelity import frechet_distance


ROOT = Path(__file__).parents[1]
IMAGES_PER_CLASS = 150

# The flags that each arm changes. DP-SGD alone takes more steps, so that it trains as long as the curriculum in all.
ARMS = {
    "curriculum": [],
    "dp_sgd_alone": ["--central_statistic", "none", "--max_train_steps", "115"],
    "mode_images": ["--central_statistic", "mode"],
    "uniform_timesteps": ["--timestep_sampling", "uniform"],
    "predict_noise": ["--prediction_type", "epsilon"],
    "predict_image": ["--prediction_type", "sample"],
}


def train(arm: str, seed: int, output_dir: Path) -> float:
    """Run the example script and return its wall time in seconds."""
    command = [sys.executable, "-m", "accelerate.commands.launch", ROOT / "examples" / "train_dp_curriculum.py"]
    start = time.perf_counter()
    subprocess.run([*command, "--output_dir", output_dir, "--seed", str(seed), *ARMS[arm]], check=True)
    return time.perf_counter() - start


def synthesize(output_dir: Path, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """Generate the digits to measure: `(N, 1, 8, 8)` in [0, 1], and their labels."""
    pipeline = ClassConditionalPipeline.from_pretrained(output_dir)
    pipeline.set_progress_bar_config(disable=True)
    dataset = generate_dataset(pipeline, IMAGES_PER_CLASS, seed=seed).with_format("numpy")
    return torch.from_numpy(dataset["image"][:]).float()[:, None] / 255, dataset["label"][:]


def forest_accuracy(images: torch.Tensor, labels: np.ndarray) -> float:
    """Train a random forest on `images`, and return its accuracy on the held-out digits."""
    held_out = load_image_dataset(dataset_name="digits", split="test")
    forest = RandomForestClassifier(n_estimators=200, random_state=0).fit(images.flatten(1).numpy(), labels)
    return float(forest.score(held_out.images.flatten(1).numpy() / 255, held_out.labels.numpy()))


def pixel_frechet_distance(images: torch.Tensor) -> float:
    """Compute the Frechet distance between `images` and the held-out digits, on pixels in [0, 1]."""
    held_out = load_image_dataset(dataset_name="digits", split="test")
    return frechet_distance(held_out.images.flatten(1).double() / 255, images.flatten(1))


def measure(arm: str, seed: int, output_dir: Path) -> dict:
    """Train, generate and measure one arm with one seed, or read the result of a finished run."""
    result_file = output_dir / f"{arm}-{seed}.json"
    if not result_file.exists():
        seconds = train(arm, seed, output_dir / f"{arm}-{seed}")
        privacy = json.loads((output_dir / f"{arm}-{seed}" / "privacy.json").read_text(encoding="utf-8"))
        images, labels = synthesize(output_dir / f"{arm}-{seed}", seed)
        result = {
            "arm": arm,
            "seed": seed,
            "epsilon": privacy["epsilon"],
            "seconds": seconds,
            "accuracy": forest_accuracy(images, labels),
            "frechet_distance": pixel_frechet_distance(images),
        }
        result_file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return json.loads(result_file.read_text(encoding="utf-8"))


def table(results: list[dict]) -> str:
    """Render mean and range of every arm as a Markdown table."""

    def cell(rows, name, form):
        values = [row[name] for row in rows]
        return f"{np.mean(values):{form}} ({min(values):{form}} to {max(values):{form}})"

    lines = [
        "| arm | seeds | epsilon | accuracy of the forest | Frechet distance | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for arm in dict.fromkeys(row["arm"] for row in results):
        rows = [row for row in results if row["arm"] == arm]
        lines.append(
            f"| {arm} | {len(rows)} | {max(row['epsilon'] for row in rows):.2f} | {cell(rows, 'accuracy', '.1%')} | "
            f"{cell(rows, 'frechet_distance', '.3f')} | {np.mean([row['seconds'] for row in rows]):.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure the arms seed by seed and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3, help="runs of each arm")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/digits"))
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    results = [measure(arm, seed, args.output_dir) for seed in range(args.seeds) for arm in args.arms]
    print(table(results))
    real = load_image_dataset(dataset_name="digits")
    images = real.images.float() / 255
    print(
        f"Trained on the {len(real):,} real digits the forest has {forest_accuracy(images, real.labels.numpy()):.1%}, "
        f"and their Frechet distance is {pixel_frechet_distance(images):.3f}."
    )


if __name__ == "__main__":
    main()
