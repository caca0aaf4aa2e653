"""Measure the images of the auxiliary generator alone, for several noise multipliers and kinds of features.

    python benchmarks/frequency_images.py --data fashion-mnist/ --noise_multipliers 5 10 20
    python benchmarks/frequency_images.py --data cifar10/ --resolution 32 --feature_extractor efficientnet-lite0

Each row is one query of all training images, of Fashion-MNIST at 16x16 by default, and a generator fitted to what it
releases. Features are random ones of some kernel widths, or those of a public model: `efficientnet-lite0`, which needs
two packages (`efficientnet_eyes.py`), or a vision model of transformers. The measures are those of
`curriculum_vs_dpsgd.py`, with its CNN if `--output` has one; every data set and resolution needs a directory of its
own. They read records outside of all mechanisms, so they are only for public data sets such as these.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from comparison_profiles import DELTA, PROFILES
from curriculum_vs_dpsgd import Comparison
from diffusers_dp_curriculum import FrequencyImageDataset, MechanismRandomness, PrivacyLedger, PublicEyes
from diffusers_dp_curriculum.mechanisms.class_features import ClassFeatureQuery
from diffusers_dp_curriculum.mechanisms.frequency_features import FrequencyFeatureQuery
from diffusers_dp_curriculum.mechanisms.perceptual_features import PerceptualFeatureQuery
from diffusers_dp_curriculum.training.public_eyes import VisionModelEyes


EFFICIENTNET = "efficientnet-lite0"


def balanced(images: FrequencyImageDataset, per_class: int, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first images of each class as `uint8`, and their labels."""
    chosen = torch.cat([(images.labels == label).nonzero()[:per_class, 0] for label in range(num_classes)])
    return (images.images[chosen] * 255).round().to(torch.uint8), images.labels[chosen]


def load_eyes(args: argparse.Namespace) -> PublicEyes | None:
    """The public model that the flags name."""
    if args.feature_extractor != EFFICIENTNET:
        return None if args.feature_extractor is None else VisionModelEyes(args.feature_extractor)
    from efficientnet_eyes import EfficientNetEyes

    return EfficientNetEyes(args.efficientnet_size)


def queries(args: argparse.Namespace, eyes: PublicEyes | None) -> Iterator[tuple[str, ClassFeatureQuery]]:
    """The queries of all rows, and what kind of features they have in words."""
    for noise_multiplier in args.noise_multipliers:
        if eyes is not None:
            yield f"{eyes.num_features} of {eyes.name}", PerceptualFeatureQuery(eyes, noise_multiplier)
            continue
        for widths in args.kernel_widths or [None]:
            words = f"{args.num_features} random ones, kernel widths {widths or 'by default'}"
            yield words, FrequencyFeatureQuery(args.num_features, noise_multiplier, widths, args.seed)


def main(arguments: list[str] | None = None) -> None:
    """Print a row for each noise multiplier, and for each list of kernel widths if features are random."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="zalando-datasets/fashion_mnist", help="directory of a data set, or Hub id")
    parser.add_argument("--profile", choices=PROFILES, default="cpu", help="profile of curriculum_vs_dpsgd.py")
    parser.add_argument("--resolution", type=int, help="that of the profile by default")
    parser.add_argument("--noise_multipliers", type=float, nargs="+", default=[5.0, 10.0, 20.0])
    parser.add_argument("--kernel_widths", type=float, nargs="+", action="append", help="once or several times")
    parser.add_argument("--num_features", type=int, default=3000, help="number of random features")
    parser.add_argument("--feature_extractor", help=f"{EFFICIENTNET}, or a vision model of transformers")
    parser.add_argument("--efficientnet_size", type=int, default=64, help=f"pixels that {EFFICIENTNET} sees")
    parser.add_argument("--train_steps", type=int, default=1600, help="steps of fitting the generator")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs/curriculum_vs_dpsgd"))
    args = parser.parse_args(arguments)
    args.output.mkdir(parents=True, exist_ok=True)
    profile = PROFILES[args.profile]
    comparison = Comparison(args.data, replace(profile, resolution=args.resolution or profile.resolution), args.output)
    eyes, device = load_eyes(args), "cuda" if torch.cuda.is_available() else "cpu"
    if eyes is not None:
        eyes.to(device)
    print("| noise multiplier | epsilon | features | accuracy | Frechet distance | core-seconds |")
    print("|---|---|---|---|---|---|", flush=True)
    for words, query in queries(args, eyes):
        ledger = PrivacyLedger(DELTA)
        start = time.process_time()
        features = query.release(comparison.train, ledger, MechanismRandomness())
        generated = FrequencyImageDataset.from_features(features, args.train_steps, args.seed, device, eyes)
        seconds = time.process_time() - start
        images, labels = balanced(generated, comparison.profile.images_per_class, comparison.num_classes)
        found = comparison.measure(images, labels, args.seed)
        print(
            f"| {query.noise_multiplier:g} | {ledger.epsilon():.2f} | {words} | {found['accuracy']:.1%} | "
            f"{found['frechet_distance']:.1f} | {seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
