"""Computes all measures of a synthetic data set against a real one.

Every measure is computed twice: for the samples, and for real images in their place, which shows how good samples could
be. The real training images are those that the model was trained on; the real test images are held out.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from tqdm.auto import tqdm

from ..arithmetic import own_arithmetic
from ..checks import CLASSIFIER
from ..data.image_dataset import ImageDataset
from ..errors import InputError
from .features import extract_features
from .fidelity import frechet_distance, kernel_distance, precision_recall_density_coverage
from .nearest import distances_to_nearest
from .utility import confusion_matrix, train_classifier


CLOSE = 0.01  # a distance to a training image is close if at most this share of held-out images is closer
MIN_IMAGES = 20


@dataclass
class Measure:
    """One measure, for the samples and for real images.

    Args:
        name (`str`): The name of the measure, with the features or the classifier in brackets.
        samples (`float`): The value for the synthetic images.
        real (`float`): The value for real images in their place.
        aim (`str`): `"low"` or `"high"` for what is better, or `"equal"` if `samples` should be like `real`.
        samples_data (`str`): The images from which `samples` was computed.
        real_data (`str`): The images from which `real` was computed.
    """

    name: str
    samples: float
    real: float
    aim: str
    samples_data: str
    real_data: str


@dataclass
class Evaluation:
    """The results of [`evaluate`].

    Args:
        measures (`list[Measure]`): The measures.
        confusion (`dict[str, dict[str, torch.Tensor]]`):
            By classifier and by its training images (`"samples"` or `"real"`): how many real test images of each class
            (row) were predicted as each class (column). Empty if there are no classes.
        neighbors (`torch.Tensor`): The index of the training image that is nearest to each sample, `(N,)`.
        distances (`dict[str, torch.Tensor]`):
            The distances of the `"samples"` and of the `"held_out"` images to their nearest training images.
    """

    measures: list[Measure]
    confusion: dict[str, dict[str, torch.Tensor]]
    neighbors: torch.Tensor
    distances: dict[str, torch.Tensor]


@own_arithmetic()
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

    The result is not differentially private, and as sensitive as the real images.

    Args:
        samples (`ImageDataset`): The synthetic images.
        train (`ImageDataset`): The real images that the model was trained on.
        test (`ImageDataset`): Real images that the model was not trained on.
        extractors (`Mapping[str, nn.Module]`):
            Feature extractors for fidelity, by name; see [`features.load_feature_extractor`]. The nearest training
            images are searched in the features of the first extractor.
        classifiers (`Sequence[str]`, *optional*, defaults to both):
            The classifiers for utility: `"cnn"`, `"resnet"` or both. Without classes no classifier is trained.
        epochs (`int`, *optional*, defaults to 20): Training epochs of each classifier.
        seed (`int`, *optional*, defaults to 0): Seed of the subsets and of the classifiers' initial weights.

    Returns:
        `Evaluation`: All measures.

    Raises:
        InputError: If a classifier is unknown, or the images differ in size, channels or classes, or are too few.
    """
    for architecture in classifiers:
        CLASSIFIER.check("classifiers", architecture)
    if not extractors:
        raise InputError("There are no features to measure fidelity in: pass at least one extractor.")
    check_reference(samples.images.shape[1:], samples.class_names, train, test)
    if len(samples) < MIN_IMAGES:
        raise InputError(f"There are only {len(samples)} samples, which say nothing: pass {MIN_IMAGES} or more.")

    # Fidelity uses as many training images as there are samples, if there are enough; the search for nearest images
    # uses all of them.
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[: len(samples)]
    measures, confusion, nearness = [], {}, None
    for name, extractor in extractors.items():
        sample_features = extract_features(extractor, samples.images, f"Features of samples ({name})")
        test_features = extract_features(extractor, test.images, f"Features of test images ({name})")
        train_images = train.images if nearness is None else train.images[chosen]
        train_features = extract_features(extractor, train_images, f"Features of training images ({name})")
        if nearness is None:
            nearness = _nearness(name, sample_features, train_features, test_features)
            train_features = train_features[chosen]
        measures += _fidelity(name, sample_features, train_features, test_features, seed)
    if samples.class_names is not None and test.class_names is not None:
        for architecture in classifiers:
            measure, confusion[architecture] = _utility(architecture, samples, train, test, epochs, seed)
            measures.append(measure)
    assert nearness is not None  # there is at least one extractor
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
        InputError: If the real images differ in size, channels or classes from the samples, or are too few.
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
    """Compare samples with test images, and training images with test images."""
    with tqdm(total=6, desc=f"Comparing features ({space})", leave=False) as progress:

        def compare(features: torch.Tensor) -> dict[str, float]:
            values = {"Frechet distance": frechet_distance(test, features)}
            progress.update()
            values["kernel distance"] = kernel_distance(test, features, seed)
            progress.update()
            values |= precision_recall_density_coverage(test, features)
            progress.update()
            return values

        sample_values, real_values = compare(samples), compare(train)
    short_names = {"Frechet distance": "FID", "kernel distance": "KID"} if space == "inception" else {}
    return [
        Measure(
            name=short_names.get(name, f"{name} ({space})"),
            samples=sample_values[name],
            real=real_values[name],
            aim="low" if "distance" in name else "high",
            samples_data=f"{len(samples)} samples, {len(test)} real test images",
            real_data=f"{len(train)} real training images, {len(test)} real test images",
        )
        for name in sample_values
    ]


def _utility(
    architecture: str, samples: ImageDataset, train: ImageDataset, test: ImageDataset, epochs: int, seed: int
) -> tuple[Measure, dict[str, torch.Tensor]]:
    """Train a classifier on samples and another on real images, and test both on the real test images."""
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
    """The share of images that equal a training image in every byte, independently of the features."""

    def digests(images: torch.Tensor) -> list[bytes]:
        return [hashlib.sha256(image.numpy().tobytes()).digest() for image in images]

    train_digests = set(digests(train))

    def share(images: torch.Tensor) -> float:
        return sum(digest in train_digests for digest in digests(images)) / len(images)

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
    """Measure how near samples come to training images; held-out images, near only by chance, are the reference."""

    def nearest(of: torch.Tensor, among: torch.Tensor, description: str) -> tuple[torch.Tensor, torch.Tensor]:
        distances, indices = distances_to_nearest(of, among, description=description)
        return distances[:, 0], indices[:, 0]

    def share(of: torch.Tensor) -> float:
        return float(of.double().mean())

    distances, neighbors = nearest(samples, train, "Training images nearest to samples")
    held_out, _ = nearest(test, train, "Training images nearest to test images")
    to_test, _ = nearest(samples, test, "Test images nearest to samples")
    close = held_out.quantile(CLOSE)
    values = {
        "median distance to the nearest training image": (float(distances.median()), float(held_out.median())),
        f"share nearer to a training image than {1 - CLOSE:.0%} of held-out images": (
            share(distances < close),
            share(held_out < close),
        ),
    }
    sample_data = f"{len(samples)} samples, {len(train)} real training images"
    held_out_data = f"{len(test)} real test images (held out), {len(train)} real training images"
    measures = [
        Measure(f"{name} ({space})", *pair, "equal", sample_data, held_out_data) for name, pair in values.items()
    ]
    measures.append(
        Measure(
            f"share nearer to a training image than to any held-out image ({space})",
            share(distances < to_test),
            len(train) / (len(train) + len(test)),
            "equal",
            f"{sample_data}, {len(test)} real test images (held out)",
            "expected for images that are independent of both, from the numbers of images",
        )
    )
    return measures, neighbors, {"samples": distances, "held_out": held_out}
