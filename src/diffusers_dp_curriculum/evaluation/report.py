"""Writes the report of an evaluation: report.json for programs, report.html for people, and a table as text."""

import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import torch

from ..data.image_dataset import ImageDataset
from .metrics import Evaluation, Measure
from .plots import confusion_figure, distance_figure, strip


TEMPLATE = Path(__file__).with_name("report_template.html")
NOT_PRIVATE = (
    "NOT PRIVATE. This report was computed from real images, and shows some, outside of any differentially private "
    "mechanism. Only people who may see the real images may see it, and it must not be published."
)
PUBLIC = "The real images of this report were declared to be public."
COLUMNS = 10  # images per row
MAX_CLASSES = 20  # rows of images
VERSIONS = ("diffusers-dp-curriculum", "torch", "torchmetrics", "transformers", "scikit-learn")


def write_report(
    output_dir: Path,
    evaluation: Evaluation,
    samples: ImageDataset,
    train: ImageDataset,
    test: ImageDataset,
    *,
    about: dict[str, Any],
    space: str,
    reference_is_public: bool = False,
) -> None:
    """Write report.json and report.html, which is self-contained.

    Args:
        output_dir (`Path`): The directory, which is created if it does not exist. None of it is ever published.
        evaluation (`Evaluation`): The results.
        samples (`ImageDataset`): The synthetic images.
        train (`ImageDataset`): The real training images.
        test (`ImageDataset`): The real test images.
        about (`dict[str, Any]`): Origin of the images and settings, shown at the top of the report.
        space (`str`): The name of the features in which the nearest images were searched.
        reference_is_public (`bool`, *optional*, defaults to False): Whether the real images are public.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    notice = PUBLIC if reference_is_public else NOT_PRIVATE
    report = {
        "not_private": not reference_is_public,
        "notice": notice,
        "about": about,
        "images": {"samples": len(samples), "real_train": len(train), "real_test": len(test)},
        "class_names": samples.class_names,
        "measures": [asdict(measure) for measure in evaluation.measures],
        "confusion": {
            classifier: {f"trained_on_{kind}": counts.tolist() for kind, counts in matrices.items()}
            for classifier, matrices in evaluation.confusion.items()
        },
        "nearest_training_image": {
            "features": space,
            "index_of_each_sample": evaluation.neighbors.tolist(),
            "distance_of_each_sample": evaluation.distances["samples"].tolist(),
            "distance_of_each_held_out_image": evaluation.distances["held_out"].tolist(),
        },
        "versions": {package: version(package) for package in VERSIONS},
    }
    (output_dir / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")

    template = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        TEMPLATE.read_text(encoding="utf-8")
    )
    page = template.render(
        report=report,
        rows=[(measure, *_cells(measure)) for measure in evaluation.measures],
        classes=_class_rows(samples, train),
        confusion={
            name: confusion_figure(matrices, test.class_names or []) for name, matrices in evaluation.confusion.items()
        },
        distances=distance_figure(evaluation.distances, space),
        neighbors=_neighbor_rows(evaluation, samples, train),
    )
    (output_dir / "report.html").write_text(page, encoding="utf-8")


def table(measures: list[Measure]) -> str:
    """Format the measures as a table for the terminal, with notes on the images from which they were computed."""
    notes = list(dict.fromkeys((measure.samples_data, measure.real_data) for measure in measures))
    rows = [("measure", "samples", "real images", "aim", "data")]
    for measure in measures:
        rows.append((*_cells(measure), f"[{notes.index((measure.samples_data, measure.real_data)) + 1}]"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if column in (1, 2) else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    lines += [
        f"[{number}] samples: {samples_data}\n    real images: {real_data}"
        for number, (samples_data, real_data) in enumerate(notes, start=1)
    ]
    return "\n".join(lines)


def _cells(measure: Measure) -> tuple[str, str, str, str]:
    """The cells of a measure in a table: name, both values and the aim."""
    form = ".1%" if measure.name.startswith(("accuracy", "share", "precision", "recall", "coverage")) else ".4g"
    return measure.name, f"{measure.samples:{form}}", f"{measure.real:{form}}", measure.aim


def _class_rows(samples: ImageDataset, train: ImageDataset) -> list[dict[str, str | None]]:
    """Draw the first synthetic and real images of every class, or of the whole data sets without classes."""
    if samples.class_names is None or train.class_names is None:
        return [{"samples": strip(samples.images[:COLUMNS]), "real": strip(train.images[:COLUMNS])}]
    return [
        {"name": name, "samples": _first(samples, label), "real": _first(train, label)}
        for label, name in enumerate(samples.class_names[:MAX_CLASSES])
    ]


def _first(dataset: ImageDataset, label: int) -> str | None:
    images = dataset.images[dataset.labels == label][:COLUMNS]
    return strip(images) if len(images) else None


def _neighbor_rows(evaluation: Evaluation, samples: ImageDataset, train: ImageDataset) -> list[dict[str, str]]:
    """Draw samples, each above its nearest training image."""
    choices = {
        "The samples that come nearest to a training image": evaluation.distances["samples"].argsort(),
        "Samples chosen at random": torch.randperm(len(samples), generator=torch.Generator().manual_seed(0)),
    }
    return [
        {
            "title": title,
            "samples": strip(samples.images[order[: 2 * COLUMNS]]),
            "real": strip(train.images[evaluation.neighbors[order[: 2 * COLUMNS]]]),
        }
        for title, order in choices.items()
    ]
