"""Writes the loss on the sensitive records if asked to: the only output that the privacy budget does not cover."""

from pathlib import Path

import torch

from ..gradients.losses import NoiseDraws, denoising_error


class SensitiveCurves:
    """A table of the loss on the records, in `private/`; anyone who reads it learns more than epsilon says.

    Args:
        path (`Path`): The CSV file, in the run's private directory.
    """

    def __init__(self, path: Path):
        self.path = path

    def write(self, step: int, unet: torch.nn.Module, draws: NoiseDraws) -> None:
        """Append the loss of a physical batch of this process."""
        with torch.no_grad():
            error = denoising_error(unet, draws.flatten())
        with self.path.open("a") as curves:
            curves.write(f"{step},{error.item()}\n")

    def remarks(self) -> list[str]:
        """The remark for `privacy.json` if the file exists, also if it was written before the run was resumed."""
        if not self.path.exists():
            return []
        return [
            "The loss on the records was written to private/sensitive_curves.csv, outside of all mechanisms: epsilon "
            "covers what is published, not what readers of that file learn, nor choices that they base on it."
        ]
