"""All measures of a synthetic data set against a real one.

Every measure is taken twice: of the samples, and of real images in their place, which says how good the samples could
be. Real training images are what samples may have learned from; the real test images are nobody's training images.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from tqdm.auto import tqdm

from ..data.image_dataset import ImageDataset
from ..errors import InputError
from .features import extract_features
from .fidelity import frechet_distance, kernel_distance, precision_recall_density_coverage
from .nearest import distances_to_nearest
from .utility import check_architecture, confusion_matrix, train_classifier


CLOSE = 0.01  # the share of held-out images that count as close to a training image
MIN_IMAGES = 20


@dataclass
class Measure:
    """One figure, and what it was computed from.

    Args:
        name (`str`): What is measured, and with what.
        samples (`float`): The figure of the synthetic images.
        real (`float`): The same of real images in their place.
        aim (`str`): `"low"`, `"high"`, or `"equal"` if `samples` had better be like `real`.
        samples_data (`str`): Which images `samples` was computed from.
        real_data (`str`): Which images `real` was computed from.
    """

    name: str
    samples: float
    real: float
    aim: str
    samples_data: str
    real_data: str


@dataclass
class Evaluation:
    """What was measured.

    Args:
        measures (`list[Measure]`): The figures.
        confusion (`dict[str, dict[str, torch.Tensor]]`):
            By classifier and by what it was trained on (`"samples"` or `"real"`), how many real test images of each
            class (row) it took for each (column). Empty if there are no classes.
        neighbors (`torch.Tensor`): The index of the nearest training image of every sample, `(N,)`.
        distances (`dict[str, torch.Tensor]`):
            The distance to the nearest training image of each of the `"samples"` and of the `"held_out"` images.
    """

    measures: list[Measure]
    confusion: dict[str, dict[str, torch.Tensor]]
    neighbors: torch.Tensor
    distances: dict[str, torch.Tensor]


def evaluate(
    samples: ImageDataset,
    train: ImageDataset,
    test: ImageDataset,
    extractors: Mapping[str, nn.Module],
    classifiers: Sequence[str] = ("cnn", "resnet"),
    *,
    epochs: int = 20,
    seed: int = 0,
) -> Evaluation:
    """Measure samples against real images.

    The result is as sensitive as the real images are: none of it is differentially private.

    Args:
        samples (`ImageDataset`): The synthetic images.
        train (`ImageDataset`): The real images that the samples were learned from.
        test (`ImageDataset`): Real images that nothing was learned from.
        extractors (`Mapping[str, nn.Module]`):
            What fidelity is measured in, by name; see [`features.load_feature_extractor`]. The nearest training images
            are looked for in the features of the first.
        classifiers (`Sequence[str]`, *optional*, defaults to both): Of `"cnn"` and `"resnet"`, what utility is measured
            with. Without classes none is trained.
        epochs (`int`, *optional*, defaults to 20): Of the training of each classifier.
        seed (`int`, *optional*, defaults to 0): Chooses the subsets and the classifiers' initial weights.

    Raises:
        InputError: If there is no such classifier, or the images do not fit together.
    """
    for architecture in classifiers:
        check_architecture(architecture)
    if not extractors:
        raise InputError("There are no features to measure fidelity in: pass at least one extractor.")
    check_reference(samples.images.shape[1:], samples.class_names, train, test)
    if len(samples) < MIN_IMAGES:
        raise InputError(f"There are only {len(samples)} samples, which say nothing: pass {MIN_IMAGES} or more.")

    # As many training images as samples, or all, for fidelity; nearest images are looked for among all of them.
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[: len(samples)]
    measures, confusion, nearness = [], {}, None
    for name, extractor in extractors.items():
        of_samples = extract_features(extractor, samples.images, f"Features of samples ({name})")
        of_test = extract_features(extractor, test.images, f"Features of test images ({name})")
        train_images = train.images if nearness is None else train.images[chosen]
        of_train = extract_features(extractor, train_images, f"Features of training images ({name})")
        if nearness is None:
            nearness = _nearness(name, of_samples, of_train, of_test)
            of_train = of_train[chosen]
        measures += _fidelity(name, of_samples, of_train, of_test, seed)
    if samples.class_names is not None and test.class_names is not None:
        for architecture in classifiers:
            measure, confusion[architecture] = _utility(architecture, samples, train, test, epochs, seed)
            measures.append(measure)
    assert nearness is not None  # there is a first extractor
    nearness_measures, neighbors, distances = nearness
    measures += [_copies(samples.images, train.images, test.images), *nearness_measures]
    return Evaluation(measures, confusion, neighbors, distances)


def check_reference(
    shape: Sequence[int], class_names: list[str] | None, train: ImageDataset, test: ImageDataset
) -> None:
    """Refuse real images that samples cannot be compared with.

    Args:
        shape (`Sequence[int]`): Channels, height and width of the samples.
        class_names (`list[str]`, *optional*): The classes of the samples.
        train (`ImageDataset`): The real training images.
        test (`ImageDataset`): The real test images.

    Raises:
        InputError: If they differ in size, channels or classes, or are too few.
    """
    for what, dataset in (("training", train), ("test", test)):
        if tuple(dataset.images.shape[1:]) != tuple(shape):
            raise InputError(
                f"The samples have the shape {tuple(shape)} and the real {what} images "
                f"{tuple(dataset.images.shape[1:])} (channels, height, width): convert one of them."
            )
        if len(dataset) < MIN_IMAGES:
            raise InputError(f"There are only {len(dataset)} real {what} images: pass {MIN_IMAGES} or more.")
        if class_names is not None and dataset.class_names is not None and class_names != dataset.class_names:
            raise InputError(
                f"The classes of the samples are {', '.join(class_names)} and those of the real {what} images "
                f"{', '.join(dataset.class_names)}: name the real ones alike and in this order with `class_names`."
            )


def _fidelity(space: str, samples: torch.Tensor, train: torch.Tensor, test: torch.Tensor, seed: int) -> list[Measure]:
    """Samples against test images and, beside it, training images against test images."""
    with tqdm(total=6, desc=f"Comparing features ({space})", leave=False) as progress:

        def compare(features: torch.Tensor) -> dict[str, float]:
            figures = {"Frechet distance": frechet_distance(test, features)}
            progress.update()
            figures["kernel distance"] = kernel_distance(test, features, seed)
            progress.update()
            figures |= precision_recall_density_coverage(test, features)
            progress.update()
            return figures

        of_samples, of_real = compare(samples), compare(train)
    known_as = {"Frechet distance": "FID", "kernel distance": "KID"} if space == "inception" else {}
    return [
        Measure(
            name=known_as.get(name, f"{name} ({space})"),
            samples=of_samples[name],
            real=of_real[name],
            aim="low" if "distance" in name else "high",
            samples_data=f"{len(samples)} samples, {len(test)} real test images",
            real_data=f"{len(train)} real training images, {len(test)} real test images",
        )
        for name in of_samples
    ]


def _utility(
    architecture: str, samples: ImageDataset, train: ImageDataset, test: ImageDataset, epochs: int, seed: int
) -> tuple[Measure, dict[str, torch.Tensor]]:
    """A classifier trained on samples and one trained on real images, both tested on the real test images."""
    confusion = {}
    num_classes = test.info.num_labels
    for kind, what, images in (("samples", "samples", samples), ("real", "real images", train)):
        classifier = train_classifier(
            images.images,
            images.labels,
            num_classes,
            architecture,
            epochs=epochs,
            seed=seed,
            description=f"Training {architecture} on {what}",
        )
        confusion[kind] = confusion_matrix(classifier, test.images, test.labels, num_classes)
    accuracies = {kind: float(counts.trace() / counts.sum()) for kind, counts in confusion.items()}
    measure = Measure(
        name=f"accuracy ({architecture})",
        **accuracies,
        aim="high",
        samples_data=f"trained and selected on {len(samples)} samples, tested on {len(test)} real test images",
        real_data=f"trained and selected on {len(train)} real training images, tested on {len(test)} real test images",
    )
    return measure, confusion


def _copies(samples: torch.Tensor, train: torch.Tensor, test: torch.Tensor) -> Measure:
    """Which images are training images, byte by byte: features may differ where images do not, and the reverse."""

    def digests(images: torch.Tensor) -> list[bytes]:
        return [hashlib.sha256(image.numpy().tobytes()).digest() for image in images]

    known = set(digests(train))

    def share(images: torch.Tensor) -> float:
        return sum(digest in known for digest in digests(images)) / len(images)

    return Measure(
        name="share of exact copies of a training image",
        samples=share(samples),
        real=share(test),
        aim="equal",
        samples_data=f"{len(samples)} samples, {len(train)} real training images",
        real_data=f"{len(test)} real test images (held out), {len(train)} real training images",
    )


def _nearness(
    space: str, samples: torch.Tensor, train: torch.Tensor, test: torch.Tensor
) -> tuple[list[Measure], torch.Tensor, dict[str, torch.Tensor]]:
    """How near samples come to training images, beside held-out images, which are near by chance alone."""

    def nearest(of: torch.Tensor, among: torch.Tensor, description: str) -> tuple[torch.Tensor, torch.Tensor]:
        distances, indices = distances_to_nearest(of, among, description=description)
        return distances[:, 0], indices[:, 0]

    def share(of: torch.Tensor) -> float:
        return float(of.double().mean())

    distances, neighbors = nearest(samples, train, "Training images nearest to samples")
    held_out, _ = nearest(test, train, "Training images nearest to test images")
    to_test, _ = nearest(samples, test, "Test images nearest to samples")
    close = held_out.quantile(CLOSE)
    figures = {
        "median distance to the nearest training image": (float(distances.median()), float(held_out.median())),
        f"share nearer to a training image than {1 - CLOSE:.0%} of held-out images": (
            share(distances < close),
            share(held_out < close),
        ),
    }
    of_samples = f"{len(samples)} samples, {len(train)} real training images"
    of_held_out = f"{len(test)} real test images (held out), {len(train)} real training images"
    measures = [
        Measure(f"{name} ({space})", *values, "equal", of_samples, of_held_out) for name, values in figures.items()
    ]
    measures.append(
        Measure(
            f"share nearer to a training image than to any held-out image ({space})",
            share(distances < to_test),
            len(train) / (len(train) + len(test)),
            "equal",
            f"{of_samples}, {len(test)} real test images (held out)",
            "expected of images that have nothing to do with either, from the numbers of images",
        )
    )
    return measures, neighbors, {"samples": distances, "held_out": held_out}
