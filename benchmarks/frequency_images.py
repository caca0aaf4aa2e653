"""Measure the images of the auxiliary generator alone, for several noise multipliers and kernel widths.

    python benchmarks/frequency_images.py --data fashion-mnist/ --noise_multipliers 5 10 20

Each row is one query of all training images of Fashion-MNIST at 16x16, and a generator fitted to what it releases. The
measures are those of `curriculum_vs_dpsgd.py`, with its CNN if `--output` has one. They read records outside of all
mechanisms, so they are only for public data sets such as this one.
"""

import argparse
import time
from pathlib import Path

import torch

from comparison_profiles import DELTA, PROFILES
from curriculum_vs_dpsgd import Comparison
from diffusers_dp_curriculum import FrequencyFeatures, FrequencyImageDataset, PrivacyLedger


def balanced(images: FrequencyImageDataset, per_class: int, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first images of each class as `uint8`, and their labels."""
    chosen = torch.cat([(images.labels == label).nonzero()[:per_class, 0] for label in range(num_classes)])
    return (images.images[chosen] * 255).round().to(torch.uint8), images.labels[chosen]


def main() -> None:
    """Print a row for each noise multiplier and each pair of kernel widths."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="zalando-datasets/fashion_mnist", help="directory of IDX files, or Hub id")
    parser.add_argument("--noise_multipliers", type=float, nargs="+", default=[5.0, 10.0, 20.0])
    parser.add_argument("--kernel_widths", type=float, nargs="+", action="append", help="once or several times")
    parser.add_argument("--num_features", type=int, default=3000)
    parser.add_argument("--train_steps", type=int, default=1600, help="steps of fitting the generator")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs/curriculum_vs_dpsgd"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    comparison = Comparison(args.data, PROFILES["cpu"], args.output)
    print("| noise multiplier | epsilon | kernel widths | accuracy | Frechet distance | core-seconds |")
    print("|---|---|---|---|---|---|", flush=True)
    for noise_multiplier in args.noise_multipliers:
        for widths in args.kernel_widths or [None]:
            ledger = PrivacyLedger(DELTA)
            features = FrequencyFeatures.from_dataset(
                comparison.train,
                num_features=args.num_features,
                noise_multiplier=noise_multiplier,
                kernel_widths=widths,
                seed=args.seed,
                ledger=ledger,
            )
            start = time.process_time()
            generated = FrequencyImageDataset.from_features(features, args.train_steps, seed=args.seed)
            seconds = time.process_time() - start
            images, labels = balanced(generated, comparison.profile.images_per_class, comparison.num_classes)
            found = comparison.measure(images, labels, args.seed)
            print(
                f"| {noise_multiplier:g} | {ledger.epsilon():.2f} | {widths or 'default'} | {found['accuracy']:.1%} | "
                f"{found['frechet_distance']:.1f} | {seconds:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
