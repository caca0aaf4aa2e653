"""The report of an evaluation: report.json for programs, report.html for people, and a table for the terminal."""

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
    "mechanism. It is for whoever may see the real images, and must not be published."
)
PUBLIC = "The real images of this report are public, as whoever made it has declared."
COLUMNS = 10  # images a row
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
    """Write report.json and report.html, which needs no other file, into a directory of their own.

    Args:
        output_dir (`Path`): Made if it does not exist; nothing in it is ever published.
        evaluation (`Evaluation`): What was measured.
        samples (`ImageDataset`): The synthetic images.
        train (`ImageDataset`): The real training images.
        test (`ImageDataset`): The real test images.
        about (`dict[str, Any]`): Where all these come from and with which settings, for the reader.
        space (`str`): The features that nearest images were looked for in.
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
    """The measures as a table for the terminal; its notes say which images each was computed from."""
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
        f"[{number}] samples: {of_samples}\n    real images: {of_real}"
        for number, (of_samples, of_real) in enumerate(notes, start=1)
    ]
    return "\n".join(lines)


def _cells(measure: Measure) -> tuple[str, str, str, str]:
    """Name, both figures and the aim as a person reads them."""
    form = ".1%" if measure.name.startswith(("accuracy", "share", "precision", "recall", "coverage")) else ".4g"
    return measure.name, f"{measure.samples:{form}}", f"{measure.real:{form}}", measure.aim


def _class_rows(samples: ImageDataset, train: ImageDataset) -> list[dict[str, str | None]]:
    """The first images of every class: synthetic and real ones; of all images together if there are no classes."""
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
    """Samples above their nearest training images."""
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
