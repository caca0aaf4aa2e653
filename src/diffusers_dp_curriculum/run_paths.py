"""Where everything of a run is."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RunPaths:
    """The files of a run: `output_dir` may be published as it stands, but for `private` in it, which never is.

    Args:
        output_dir (`Path`): The directory of the run.
    """

    output_dir: Path

    @property
    def private(self) -> Path:
        """Everything that stays with the owner of the data."""
        return self.output_dir / "private"

    @property
    def journal(self) -> Path:
        """What the run has released, one JSON line an event."""
        return self.private / "journal.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The directory of the checkpoints."""
        return self.private / "checkpoints"

    @property
    def samples(self) -> Path:
        """The directory of the pictures of samples that are made during training."""
        return self.private / "samples"

    @property
    def sensitive_curves(self) -> Path:
        """The table of the loss on the records, for those who asked for it."""
        return self.private / "sensitive_curves.csv"

    @property
    def card_on_hub(self) -> Path:
        """The model card as it was when it was last seen on the Hub."""
        return self.private / "README.hub.md"

    @property
    def privacy_json(self) -> Path:
        """The published statement about privacy, which is written last."""
        return self.output_dir / "privacy.json"

    @property
    def card(self) -> Path:
        """The model card."""
        return self.output_dir / "README.md"

    def released(self, stage: str) -> Path:
        """The directory of what a warm-up stage has released.

        Args:
            stage (`str`): The name of the stage.
        """
        return self.private / stage

    def picture(self, name: str) -> Path:
        """A published picture.

        Args:
            name (`str`): What it shows: `"samples"`, or the name of a stage.
        """
        return self.output_dir / f"{name}.png"

    def traceback(self, process_index: int) -> Path:
        """What an unexpected error said in a process; it may tell of records.

        Args:
            process_index (`int`): The number of the process.
        """
        return self.private / f"traceback-{process_index}.txt"
