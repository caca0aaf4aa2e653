"""Checks the directory of a run, and creates or opens the journal in it."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..config import DPCurriculumConfig
from ..errors import DPCurriculumError, InputError, StorageError
from ..files import is_left_behind
from ..privacy.composition import read_prior_runs
from ..privacy.counted_runs import CountedRun
from ..privacy.journal import Journal, read_released
from ..privacy.ledger import INITIAL_WEIGHTS, PrivacyLedger, unit_and_assumptions
from ..privacy.publishability import journal_in
from ..run_paths import RunPaths, check_output_dir
from ..units import RECORD
from .checkpointing import Checkpoint, Checkpoints


logger = logging.getLogger(__name__)
ERROR_NOTE = "seen-by-process-"  # followed by the number of the process

# Files in private/ that are created before anything is released.
FILES_BEFORE_RELEASE = {".gitignore", "journal.jsonl", "journal.lock", "journal.reserve"}


def find_prior_runs(config: DPCurriculumConfig, unit: str = RECORD) -> list[CountedRun]:
    """The previous runs that a run counts: the given ones for a new run, the recorded ones for a run that is resumed.

    Args:
        config (`DPCurriculumConfig`): `prior_runs`, `output_dir` and `resume_from_checkpoint` are used.
        unit (`str`, *optional*, defaults to `"record"`): The unit of privacy of the run.

    Raises:
        InputError: If a previous run cannot be counted, or the run to resume was started with other previous runs.
    """
    journal = journal_in(Path(config.output_dir))
    if journal is None or config.resume_from_checkpoint is None:
        return read_prior_runs(config.prior_runs or [], unit)
    existing = CountedRun.of_header(read_released(journal).header)
    if config.prior_runs is not None:
        try:
            given = read_prior_runs(config.prior_runs, unit)
        except DPCurriculumError as error:
            raise InputError(
                f"`prior_runs` cannot be compared with those that the run in {config.output_dir} was started with "
                f"({error}): leave `prior_runs` out to resume it with those."
            ) from error
        _check_prior_runs(existing, given, config)
    return existing


def open_ledger(
    config: DPCurriculumConfig,
    checkpoints: Checkpoints,
    prior_runs: Sequence[CountedRun] = (),
    unit: str = RECORD,
    initial_weights: str = INITIAL_WEIGHTS,
    public_models: Sequence[str] = (),
) -> tuple[PrivacyLedger, Checkpoint | None]:
    """Create the directories and the journal of a new run, or open those of the run to resume.

    The checkpoint is chosen only once the journal is locked: before that, another process may write a newer checkpoint.

    Args:
        config (`DPCurriculumConfig`): `output_dir`, `resume_from_checkpoint` and the target are used.
        checkpoints (`Checkpoints`): The checkpoints of the run.
        prior_runs (`Sequence[CountedRun]`, *optional*): The previous runs with which the run was planned.
        unit (`str`, *optional*, defaults to `"record"`): The unit of privacy of the run.
        initial_weights (`str`, *optional*): What is assumed of the weights that training begins with.
        public_models (`Sequence[str]`, *optional*): What is assumed of other models that the run uses.

    Returns:
        `tuple[PrivacyLedger, Checkpoint or None]`: The ledger, and the checkpoint from which the run continues.

    Raises:
        InputError:
            If the directory holds other files, or its run has another target, other previous runs, another start or
            other public models.
        StorageError: If the directory cannot be written to, or its journal or checkpoint is damaged.
    """
    output_dir = Path(config.output_dir)
    paths = RunPaths(output_dir)
    private = paths.private
    check_output_dir(output_dir, config.resume_from_checkpoint)
    make_directories(paths)
    if not _has_run(paths):
        ledger = PrivacyLedger(
            config.target_delta,
            config.accountant,
            paths.journal,
            config.target_epsilon,
            prior_runs,
            unit,
            initial_weights,
            public_models,
        )
        return ledger, None
    existing = Journal(paths.journal)
    try:
        _check_target(existing, config)
        _check_prior_runs(CountedRun.of_header(existing.header), prior_runs, config)
        _check_assumptions(existing.header, initial_weights, public_models, config)
        checkpoints.remove_partial()
        checkpoint = checkpoints.load(config.resume_from_checkpoint or "latest")
        _count_noted_errors(existing, private)
        if checkpoint is None:
            return PrivacyLedger.resume(existing, 0), None
        logger.info("Resuming the run in %s from %s.", output_dir, checkpoint.name)
        return PrivacyLedger.resume(existing, checkpoint.position, checkpoint.check), checkpoint
    except BaseException:
        existing.close()
        raise


def make_directories(paths: RunPaths) -> None:
    """Create the directory of a run, and the one in it that is never published.

    Args:
        paths (`RunPaths`): The paths of the run.

    Raises:
        StorageError: If they cannot be created.
    """
    try:
        paths.output_dir.mkdir(parents=True, exist_ok=True)
        paths.private.mkdir(mode=0o700, exist_ok=True)
        _ignore_private(paths.output_dir)
    except OSError as error:
        raise StorageError(
            f"{paths.output_dir} cannot be created ({error.strerror}): choose another `output_dir`."
        ) from error


@contextmanager
def note_errors_for_resume(output_dir: Path, process_index: int) -> Iterator[None]:
    """Leave a note in `private/` if a process other than the main one, which writes the journal, ends with an error.

    The main process may then be killed before it records anything, although someone could read the error. Because of
    the note a resumed run counts the steps up to the error.

    Args:
        output_dir (`Path`): The directory of the run.
        process_index (`int`): The index of this process.
    """
    try:
        yield
    except BaseException:
        note = RunPaths(output_dir).private / f"{ERROR_NOTE}{process_index}"
        note.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # another machine may not have the directory yet
        note.touch()
        raise


def _count_noted_errors(journal: Journal, private: Path) -> None:
    """Record in the journal that errors of other processes may have been seen, and remove the notes."""
    notes = list(private.glob(f"{ERROR_NOTE}*"))
    if notes:
        journal.append("visible", "an error of another process")
    for note in notes:
        note.unlink()


def _ignore_private(output_dir: Path) -> None:
    """Make `git add` and an upload of the whole directory (`hf upload`) leave out private/."""
    ignored = output_dir / ".gitignore"  # the Hub applies only the one at the top of an upload
    if not ignored.exists():
        ignored.write_text("private/\n", encoding="utf-8")
    (RunPaths(output_dir).private / ".gitignore").write_text("*\n", encoding="utf-8")


def _check_target(journal: Journal, config: DPCurriculumConfig) -> None:
    for name in ("target_epsilon", "target_delta", "accountant"):
        value = journal.header[name.replace("target_delta", "delta")]
        if value != getattr(config, name):
            raise InputError(f"The run in {config.output_dir} has `{name}` {value}: resume it with that.")


def _check_prior_runs(existing: Sequence[CountedRun], given: Sequence[CountedRun], config: DPCurriculumConfig) -> None:
    if len(existing) != len(given) or not all(run in existing for run in given):
        raise InputError(
            f"The run in {config.output_dir} was started with other `prior_runs` than are given, or they have released "
            "more since: leave `prior_runs` out to resume it with those, or start a new run that counts all of them."
        )


def _check_assumptions(
    header: dict[str, Any], initial_weights: str, public_models: Sequence[str], config: DPCurriculumConfig
) -> None:
    _, existing_weights, existing_models = unit_and_assumptions(header)
    if existing_weights != initial_weights:
        raise InputError(
            f"The run in {config.output_dir} was started with other weights ({existing_weights}): resume it with the "
            "`pretrained_model_name_or_path` that it was started with."
        )
    if existing_models != tuple(public_models):
        raise InputError(
            f"The run in {config.output_dir} was started with other public models "
            f"({'; '.join(existing_models) or 'none'}): resume it with the `vae_name_or_path` and the "
            "`feature_extractor` that it was started with."
        )


def _has_run(paths: RunPaths) -> bool:
    """Whether anything can have been released; a process killed at its start leaves at most an empty journal."""
    names = {path.name for path in paths.private.iterdir()} - FILES_BEFORE_RELEASE
    other_files = not all(is_left_behind(name) for name in names)
    return other_files or journal_in(paths.output_dir) is not None
