"""Checkpoints: what is saved during a run, so that the run can be resumed.

A checkpoint holds no state of a random generator, because anyone who had that state could subtract the noise. After a
resume, sampling and noise are seeded afresh.
"""

import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import SchedulerMixin, UNet2DModel

from ..config import DPCurriculumConfig
from ..errors import InputError, StorageError
from ..files import is_full_disk, sync
from ..mechanisms.public_eyes import PublicEyes
from ..privacy.ledger import PrivacyLedger
from .autoencoder import Autoencoder
from .planning import Plan
from .starting_point import starting_point_of
from .training_state import StageState


logger = logging.getLogger(__name__)
PARTIAL = ".partial"


@dataclass
class Checkpoint:
    """What a run can be resumed from.

    Args:
        name (`str`): `"checkpoint-N"`, where N is the number of steps taken in all stages.
        stage (`str`): The name of the stage in which the checkpoint was written.
        state (`dict`): The content of that stage's state.
        position (`int`): The ledger's position when the checkpoint was written.
        check (`int`):
            The ledger's check when the checkpoint was written, which tells it from a checkpoint of a copy of the run.
        plan (`Plan`, *optional*):
            The run's plan; its noise multiplier was calibrated once and does not change. None for training on public
            images, which costs nothing.
    """

    name: str
    stage: str
    state: dict[str, Any]
    position: int
    check: int
    plan: Plan | None


class Checkpoints:
    """The checkpoints of one run: directories `checkpoint-N`, each either complete or absent.

    Args:
        directory (`Path`):
            The directory of the checkpoints. Beside it lies the run's secret key for the checksum of the records.
        identity (`dict`): The settings that must not change when the run is resumed, from [`run_identity`].
        records_checksum (`Callable[[bytes], str]`):
            Computes the checksum of the sensitive records for a key; the records must not change either.
        total_limit (`int`, *optional*): How many checkpoints to keep, the newest ones; all by default.
    """

    def __init__(
        self,
        directory: Path,
        identity: dict[str, Any],
        records_checksum: Callable[[bytes], str],
        total_limit: int | None = None,
    ):
        self.directory = directory
        self.identity = identity
        self.records_checksum = records_checksum
        self.total_limit = total_limit
        self._checksums: dict[bytes, str] = {}

    def save(
        self,
        number: int,
        state: StageState,
        ledger: PrivacyLedger | None,
        plan: Plan | None,
        without_effect: Collection[str] = (),
    ) -> Path:
        """Write `checkpoint-{number}`, replacing any checkpoint of that name; existing checkpoints survive a crash.

        From this call on, every release in the ledger counts for good, even if the checkpoint is deleted later.
        Training on public images has neither a ledger nor a plan.
        Settings in `without_effect` have had no effect yet, and may change when the run is resumed from the checkpoint.
        """
        if ledger is not None:
            ledger.mark_visible(f"checkpoint-{number}")
        path = self.directory / f"checkpoint-{number}"
        identity = {name: value for name, value in self.identity.items() if name not in without_effect}
        metadata = {
            "stage": state.stage,
            "position": 0 if ledger is None else ledger.position,
            "check": 0 if ledger is None else ledger.check,
            "plan": None if plan is None else asdict(plan),
            "identity": identity | {"records": self._records_checksum()},
            "without_effect": [*without_effect],
        }
        partial = path.with_name(path.name + PARTIAL)
        try:
            _write(partial, state.state_dict(), metadata)
        except BaseException as error:
            if is_full_disk(error):
                _make_room(partial)
            raise
        if path.exists():  # left from before the run was resumed from an earlier checkpoint
            _remove(path)
        partial.rename(path)
        sync(self.directory)
        if self.total_limit is not None:
            for superseded in self.all()[: -self.total_limit]:
                _remove(superseded)
        logger.debug("Wrote %s.", path)
        return path

    def load(self, which: str) -> Checkpoint | None:
        """Read a checkpoint.

        Args:
            which (`str`): `"latest"`, or the path or name of a checkpoint of this run.

        Returns:
            `Checkpoint`, *optional*: The checkpoint; None if `which` is `"latest"` and the run has none.

        Raises:
            InputError: If the checkpoint is missing, or belongs to a run with other settings, network or records.
            StorageError: If the checkpoint is damaged.
        """
        if which == "latest":
            if not (existing := self.all()):
                return None
            path = existing[-1]
        else:
            path = self.directory / Path(which).name
            if not path.is_dir() or (Path(which).exists() and not path.samefile(which)):
                raise InputError(
                    f"{which} is no checkpoint of the run in {self.directory.parents[1]}: give one of "
                    f"{', '.join(['latest', *(p.name for p in self.all())])}."
                )
        metadata = _read_metadata(path)
        self._check_same_run(path, metadata["identity"], metadata["without_effect"])
        try:
            state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        except Exception as error:  # of many types; torch's message would advise loading without safety checks
            raise StorageError(
                f"{path} cannot be read ({type(error).__name__}): give an earlier checkpoint."
            ) from error
        plan = None if metadata["plan"] is None else Plan.from_dict(metadata["plan"])
        return Checkpoint(path.name, metadata["stage"], state, metadata["position"], metadata["check"], plan)

    def bytes_to_write(self, unet: torch.nn.Module, num_steps: int, interval: int) -> int:
        """How many bytes the checkpoints of a whole run take, besides those that are there already.

        Args:
            unet (`torch.nn.Module`): The network; a checkpoint has its weights, their average and two values of Adam.
            num_steps (`int`): The number of steps of all stages.
            interval (`int`): The number of steps between two checkpoints.
        """
        number = 2 + num_steps // interval
        if self.total_limit is not None:
            number = min(number, self.total_limit + 1)  # one is written before one is deleted
        size = 4 * sum(p.nbytes for p in unet.parameters())
        return size * max(number - len(self.all()), 1)

    def remove_steps_of(self, stage: str, first: int) -> None:
        """Remove the checkpoints of a stage that has diverged, but for those at its start.

        Args:
            stage (`str`): The name of the stage.
            first (`int`): The number of steps of all stages before it.
        """
        for path in self.all():
            if _read_metadata(path)["stage"] == stage and int(path.name.removeprefix("checkpoint-")) > first:
                _remove(path)

    def remove_partial(self) -> None:
        """Remove checkpoints that a crash left half written."""
        for partial in self.directory.glob(f"*{PARTIAL}"):
            shutil.rmtree(partial)

    def all(self) -> list[Path]:
        """All complete checkpoints, in the order in which they were written."""
        existing = [
            path for path in self.directory.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()
        ]
        return sorted(
            existing, key=lambda path: (_read_metadata(path)["position"], int(path.name.removeprefix("checkpoint-")))
        )

    def _check_same_run(self, path: Path, identity: dict[str, Any], without_effect: Collection[str]) -> None:
        for name, value in (self.identity | {"records": self._records_checksum()}).items():
            if name not in without_effect and identity.get(name) != value:
                raise InputError(
                    f"{path} was made with other {name}: resume with the settings, network and records that the run "
                    "was started with."
                )

    def _records_checksum(self) -> str:
        path = self.directory.with_name("records.key")
        if not path.exists():
            if self.all():
                raise StorageError(f"{path} is missing, and without it no checkpoint can be checked: restore the file.")
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_bytes(32))
            sync(path)
        key = path.read_bytes()
        if key not in self._checksums:
            self._checksums[key] = self.records_checksum(key)
        return self._checksums[key]


def run_identity(
    config: DPCurriculumConfig,
    unet: UNet2DModel,
    noise_scheduler: SchedulerMixin,
    public_images: bool = False,
    eyes: PublicEyes | None = None,
    autoencoder: Autoencoder | None = None,
) -> dict[str, Any]:
    """The settings that must be the same when a run is resumed, as values that JSON can hold.

    Args:
        config (`DPCurriculumConfig`): The hyper-parameters.
        unet (`UNet2DModel`): The network.
        noise_scheduler (`SchedulerMixin`): The noise scheduler.
        public_images (`bool`, *optional*, defaults to False): Whether it is training on public images.
        eyes (`PublicEyes`, *optional*): The public model whose features are queried.
        autoencoder (`Autoencoder`, *optional*): The autoencoder whose latents it trains on.
    """
    start = starting_point_of(unet)
    public = {
        "kind of images": "public" if public_images else None,
        "pretrained_model_name_or_path": None if start is None else start.in_words,
        "feature_extractor": None if eyes is None else eyes.fingerprint,
        "autoencoder": None if autoencoder is None else autoencoder.checksum(),
        **{f"unet {name}": value for name, value in unet.config.items()},
        **{f"scheduler {name}": value for name, value in noise_scheduler.config.items()},
        **config.training_parameters(),
    }
    identity = {name: value for name, value in public.items() if not name.split()[-1].startswith("_")}
    return json.loads(json.dumps(identity))


def _read_metadata(path: Path) -> dict[str, Any]:
    try:
        metadata = json.loads((path / "checkpoint.json").read_text(encoding="utf-8"))
        wanted = ("stage", "position", "check", "plan", "identity")
        return {"without_effect": []} | metadata | {name: metadata[name] for name in wanted}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StorageError(
            f"{path / 'checkpoint.json'} cannot be read ({type(error).__name__}): restore it, or move {path.name} away "
            "to resume from another checkpoint."
        ) from error


def _write(directory: Path, state: dict[str, Any], metadata: dict[str, Any]) -> None:
    directory.mkdir(parents=True)
    with open(directory / "state.pt", "wb") as file:  # given a path, PyTorch would not say why writing failed
        torch.save(state, file)
    (directory / "checkpoint.json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
    _sync(directory)


def _remove(path: Path) -> None:
    """Delete a checkpoint; it is renamed first, so that a crash cannot leave half of it under a valid name."""
    superseded = path.with_name(f"{path.name}.superseded{PARTIAL}")
    path.rename(superseded)
    shutil.rmtree(superseded)


def _make_room(partial: Path) -> None:
    """Delete the files of an incomplete checkpoint; its name still shows which steps may have been seen."""
    for path in partial.glob("*"):
        path.unlink()


def _sync(directory: Path) -> None:
    """Sync the files of a directory to disk, and the directory itself, which holds their names."""
    for path in directory.rglob("*"):
        sync(path)
    sync(directory)
