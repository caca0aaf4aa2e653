"""The paths of all files of a run, and whether a run may write there."""

from dataclasses import dataclass
from pathlib import Path

from .errors import InputError
from .files import check_can_write, is_new_or_empty


# The file beside a synthetic data set that says how it is generated, and so how its generation can be continued.
GENERATION_SETTINGS = "generation.json"


@dataclass(frozen=True)
class RunPaths:
    """The files of a run: all of `output_dir` may be published except its directory `private`, which never is.

    Args:
        output_dir (`Path`): The directory of the run.
    """

    output_dir: Path

    @property
    def private(self) -> Path:
        """The directory of everything that stays with the owner of the data."""
        return self.output_dir / "private"

    @property
    def journal(self) -> Path:
        """The journal: what the run has released, one JSON line per event."""
        return self.private / "journal.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The directory of the checkpoints."""
        return self.private / "checkpoints"

    @property
    def samples(self) -> Path:
        """The directory of the sample images that are made during training."""
        return self.private / "samples"

    @property
    def sensitive_curves(self) -> Path:
        """The table of the loss on the sensitive records, which is only written on request."""
        return self.private / "sensitive_curves.csv"

    @property
    def card_on_hub(self) -> Path:
        """The model card as last seen on the Hub."""
        return self.private / "README.hub.md"

    @property
    def privacy_json(self) -> Path:
        """The published privacy statement, which is written last."""
        return self.output_dir / "privacy.json"

    @property
    def card(self) -> Path:
        """The model card."""
        return self.output_dir / "README.md"

    def released(self, name: str) -> Path:
        """The directory of something that the run has released, or of images made of it.

        Args:
            name (`str`): The name of the release, such as `"central_images"`.
        """
        return self.private / name

    def picture(self, name: str) -> Path:
        """A published picture.

        Args:
            name (`str`): What it shows: `"samples"`, or the name of a stage.
        """
        return self.output_dir / f"{name}.png"

    def traceback(self, process_index: int) -> Path:
        """The traceback of an unexpected error in one process, which may reveal something about records.

        Args:
            process_index (`int`): The rank of the process.
        """
        return self.private / f"traceback-{process_index}.txt"


def check_output_dir(output_dir: Path, resume_from_checkpoint: str | None = None) -> None:
    """Refuse a directory that a run must not write to.

    Args:
        output_dir (`Path`): Where the run is to write.
        resume_from_checkpoint (`str`, *optional*): Given if the directory may hold a run to resume.

    Raises:
        InputError: If `output_dir` is a file, or holds anything but the run to resume.
        StorageError: If `output_dir` cannot be created.
    """
    is_free = is_new_or_empty(output_dir)
    if not is_free and resume_from_checkpoint is None:
        raise InputError(
            f"{output_dir} already holds another run or other files, which would be lost or mixed up: choose another "
            "`output_dir`, move it away, or resume it by `resume_from_checkpoint` latest."
        )
    starts_a_run = is_free and resume_from_checkpoint in (None, "latest")
    if not starts_a_run and not RunPaths(output_dir).private.is_dir():
        raise InputError(f"{output_dir} holds no run to resume: give the `output_dir` of one.")
    check_can_write(output_dir)
