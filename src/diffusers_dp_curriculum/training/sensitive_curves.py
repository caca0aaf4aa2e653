"""The loss on the sensitive records, for those who ask for it: the one thing that is written outside of the budget."""

from pathlib import Path

import torch

from ..gradients.losses import NoiseDraws, denoising_error


class SensitiveCurves:
    """A table of the loss on the records, in `private/`; whoever sees it learns more than epsilon says.

    Args:
        path (`Path`): The file, in the run's private directory.
    """

    def __init__(self, path: Path):
        self.path = path

    def write(self, step: int, unet: torch.nn.Module, draws: NoiseDraws) -> None:
        """Add the loss of a physical batch, of this process alone."""
        with torch.no_grad():
            error = denoising_error(unet, draws.flatten())
        with self.path.open("a") as curves:
            curves.write(f"{step},{error.item()}\n")

    def remarks(self) -> list[str]:
        """What `privacy.json` has to say of them, also of those from before the run was resumed."""
        if not self.path.exists():
            return []
        return [
            "The loss on the records was written to private/sensitive_curves.csv, outside of all mechanisms: epsilon "
            "covers what is published, not what those learn who see that file, nor choices that they make by it."
        ]
