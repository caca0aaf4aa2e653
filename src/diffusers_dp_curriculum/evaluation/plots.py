"""Draws the pictures of the report as data URIs, so that the page is a single file."""

import base64
import io

import numpy as np
import torch
from matplotlib.figure import Figure

from ..pictures import image_grid


def strip(images: torch.Tensor) -> str:
    """Draw `uint8` images of shape `(N, C, H, W)` in a row."""
    buffer = io.BytesIO()
    image_grid(images.float() / 255, columns=len(images)).save(buffer, "PNG")
    return _data_uri(buffer)


def confusion_figure(confusion: dict[str, torch.Tensor], class_names: list[str]) -> str:
    """Draw two confusion matrices on the real test images: trained on samples (left) and on real images (right).

    Args:
        confusion (`dict[str, torch.Tensor]`): As in [`metrics.Evaluation`], for one classifier.
        class_names (`list[str]`): The classes.
    """
    size = 1.5 + 0.32 * len(class_names)
    figure = Figure(figsize=(2 * size + 1, size + 0.6), layout="constrained")
    titles = {"samples": "trained on samples", "real": "trained on real images"}
    for axes, (kind, counts) in zip(figure.subplots(1, 2, sharey=True), confusion.items(), strict=True):
        shares = (counts / counts.sum(dim=1, keepdim=True).clamp(min=1)).numpy()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for row, column in np.ndindex(*shares.shape):
            percent = f"{100 * shares[row, column]:.0f}"
            color = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, "" if percent == "0" else percent, ha="center", va="center", color=color, fontsize=7)
        ticks = range(len(class_names))
        axes.set_xticks(ticks, class_names, rotation=45, ha="right", fontsize=8)
        axes.set_yticks(ticks, class_names, fontsize=8)
        axes.set(title=titles[kind], xlabel="predicted class", ylabel="true class" if kind == "samples" else None)
    return _chart(figure)


def distance_figure(distances: dict[str, torch.Tensor], space: str) -> str:
    """Draw histograms of the distances of samples and of held-out images to their nearest training images.

    Args:
        distances (`dict[str, torch.Tensor]`): As in [`metrics.Evaluation`].
        space (`str`): The name of the features in which the distances were measured.
    """
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    bins = np.histogram_bin_edges(torch.cat(list(distances.values())).numpy(), bins=60)
    for kind, label in (("samples", "samples"), ("held_out", "held-out real images")):
        axes.hist(distances[kind].numpy(), bins.tolist(), density=True, alpha=0.55, label=label)
    axes.set(xlabel=f"distance to the nearest training image ({space})", ylabel="density", yticks=[])
    axes.set_xlim(left=0)
    axes.legend(frameon=False)
    return _chart(figure)


def _chart(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return _data_uri(buffer)


def _data_uri(png: io.BytesIO) -> str:
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
