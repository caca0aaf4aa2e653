"""The directory of a run: whether it may be written to, and the journal in it."""

import os
from pathlib import Path

from .checkpointing import Checkpoint
from .config import DPCurriculumConfig
from .errors import InputError
from .ledger import PrivacyLedger


def check_output_dir(output_dir: Path, resume_from_checkpoint: str | None = None) -> None:
    """Refuse a directory that a run must not write to.

    Args:
        output_dir (`Path`): Where the run is to write.
        resume_from_checkpoint (`str`, *optional*): Given for a run that may be there already.

    Raises:
        InputError: If `output_dir` is a file, holds anything but the run to go on with, or cannot be created.
    """
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        if resume_from_checkpoint is None:
            raise InputError(
                f"{output_dir} already holds another run or other files, which would be lost or mixed up: choose "
                "another --output_dir, move it away, or go on with it by --resume_from_checkpoint latest."
            )
        if not (output_dir / "private").is_dir():
            raise InputError(f"{output_dir} holds no run to resume: give the --output_dir of one.")
    elif resume_from_checkpoint not in (None, "latest"):
        raise InputError(f"{output_dir} holds no run to resume: give the --output_dir of one.")
    existing = next(path for path in (output_dir.absolute(), *output_dir.absolute().parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        raise InputError(f"{output_dir} cannot be created in {existing}: choose another --output_dir.")


def open_ledger(config: DPCurriculumConfig, checkpoint: Checkpoint | None) -> PrivacyLedger:
    """Make the directories and the journal of a new run, or go on with those of an interrupted one.

    Args:
        config (`DPCurriculumConfig`): `output_dir`, `resume_from_checkpoint` and the target are used.
        checkpoint (`Checkpoint`, *optional*): What the run goes on from.

    Raises:
        InputError: If the directory must not be written to, or its run has another target.
    """
    output_dir = Path(config.output_dir)
    private = output_dir / "private"
    journal = private / "journal.jsonl"
    check_output_dir(output_dir, config.resume_from_checkpoint)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        private.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output_dir} cannot be created ({error.strerror}): choose another.") from error
    if checkpoint is None and not _has_run(private):
        return PrivacyLedger(config.target_delta, config.accountant, journal, config.target_epsilon)
    positions = (0,) if checkpoint is None else (checkpoint.position, checkpoint.seen)
    ledger = PrivacyLedger.resume(journal, *positions)
    if (ledger.delta, ledger.accountant, ledger.target_epsilon) != (
        config.target_delta,
        config.accountant,
        config.target_epsilon,
    ):
        ledger.close()
        raise InputError(
            f"The run in {output_dir} has target_epsilon {ledger.target_epsilon}, target_delta {ledger.delta} and the "
            f"accountant {ledger.accountant}: resume it with these."
        )
    return ledger


def _has_run(private: Path) -> bool:
    """Whether anything can have been released: a process killed right at its start leaves an empty journal at most."""
    return any(path.name != "journal.jsonl" or path.stat().st_size > 0 for path in private.iterdir())
