"""Checkpoints: what is saved during a run, so that the run can be resumed.

A checkpoint holds no state of a random generator, because anyone who had that state could subtract the noise. After a
resume, sampling and noise are seeded afresh.
"""

import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import SchedulerMixin, UNet2DModel
from diffusers.training_utils import EMAModel

from ..config import DPCurriculumConfig
from ..errors import InputError, StorageError
from ..files import sync
from ..mechanisms.releases import Release
from ..privacy.ledger import PrivacyLedger
from .planning import Plan
from .stages import RELEASES


logger = logging.getLogger(__name__)
PARTIAL = ".partial"


@dataclass
class TrainingState:
    """Everything that a training step changes.

    Args:
        stage (`str`): The name of the stage, such as `"central_images"` or `"dp_sgd"`.
        unet (`torch.nn.Module`): The network.
        optimizer (`torch.optim.Optimizer`): The optimizer of the stage.
        ema (`EMAModel`): The exponential moving average of the weights of what is trained.
        lr_scheduler (`torch.optim.lr_scheduler.LRScheduler`, *optional*):
            The learning-rate schedule, if the stage has one.
        step (`int`): The number of steps taken in this stage.
        generator (`torch.nn.Module`, *optional*): The auxiliary generator, if it is what the stage trains.
    """

    stage: str
    unet: torch.nn.Module
    optimizer: torch.optim.Optimizer
    ema: EMAModel
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler | None = None
    step: int = 0
    generator: torch.nn.Module | None = None

    @property
    def trained(self) -> torch.nn.Module:
        """`torch.nn.Module`: What the stage trains: the generator if there is one, else the network."""
        return self.unet if self.generator is None else self.generator

    def advance(self) -> None:
        """Update the learning rate, the average and the step count after a step of the optimizer."""
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        self.ema.step(self.trained.parameters())
        self.step += 1

    def state_dict(self) -> dict[str, Any]:
        """The state as tensors and plain values, without the name of the stage."""
        parts = {name: part for name, part in self._parts() if part is not None}
        return {name: part.state_dict() for name, part in parts.items()} | {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what [`state_dict`] returned, on whatever device the network is now."""
        for name, part in self._parts():
            if part is not None:
                part.load_state_dict(state[name])
        self.ema.to(next(self.unet.parameters()).device)
        self.step = state["step"]

    def _parts(self) -> list[tuple[str, Any]]:
        names = ("unet", "generator", "optimizer", "ema", "lr_scheduler")
        return [(name, getattr(self, name)) for name in names]


def make_ema(network: torch.nn.Module, config: DPCurriculumConfig) -> EMAModel:
    """Create the exponential moving average of the weights; each stage has its own."""
    return EMAModel(
        network.parameters(),
        decay=config.ema_max_decay,
        use_ema_warmup=True,
        inv_gamma=config.ema_inv_gamma,
        power=config.ema_power,
        foreach=True,
    )


@dataclass
class Checkpoint:
    """What a run can be resumed from.

    Args:
        name (`str`): `"checkpoint-N"`, where N is the number of steps taken in all stages.
        stage (`str`): The name of the stage in which the checkpoint was written.
        state (`dict`): The content of that stage's [`TrainingState`].
        position (`int`): The ledger's position when the checkpoint was written.
        check (`int`):
            The ledger's check when the checkpoint was written, which tells it from a checkpoint of a copy of the run.
        plan (`Plan`): The run's plan; its noise multiplier was calibrated once and does not change.
        released (`dict[str, Release]`): What the stages have released so far, and the images made of it, by name.
    """

    name: str
    stage: str
    state: dict[str, Any]
    position: int
    check: int
    plan: Plan
    released: dict[str, Release]


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
        state: TrainingState,
        ledger: PrivacyLedger,
        plan: Plan,
        released: Mapping[str, Release],
    ) -> Path:
        """Write `checkpoint-{number}`, replacing any checkpoint of that name; existing checkpoints survive a crash.

        From this call on, every release in the ledger counts for good, even if the checkpoint is deleted later.
        """
        ledger.mark_visible(f"checkpoint-{number}")
        path = self.directory / f"checkpoint-{number}"
        partial = path.with_name(path.name + PARTIAL)
        partial.mkdir(parents=True)
        torch.save(state.state_dict(), partial / "state.pt")
        for name, images in released.items():
            images.save_to_disk(partial / name)
        metadata = {"stage": state.stage, "position": ledger.position, "check": ledger.check, "plan": asdict(plan)}
        metadata["released"] = list(released)
        metadata["identity"] = self.identity | {"records": self._records_checksum()}
        (partial / "checkpoint.json").write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")
        _sync(partial)
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
        self._check_same_run(path, metadata["identity"])
        try:
            state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
            released = {name: RELEASES[name].load_from_disk(path / name) for name in metadata["released"]}
        except Exception as error:  # of many types; torch's message would advise loading without safety checks
            raise StorageError(
                f"{path} cannot be read ({type(error).__name__}): give an earlier checkpoint."
            ) from error
        plan = Plan.from_dict(metadata["plan"])
        return Checkpoint(path.name, metadata["stage"], state, metadata["position"], metadata["check"], plan, released)

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

    def _check_same_run(self, path: Path, identity: dict[str, Any]) -> None:
        for name, value in (self.identity | {"records": self._records_checksum()}).items():
            if identity.get(name) != value:
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


def run_identity(config: DPCurriculumConfig, unet: UNet2DModel, noise_scheduler: SchedulerMixin) -> dict[str, Any]:
    """The settings that must be the same when a run is resumed, as values that JSON can hold."""
    public = {
        **{f"unet {name}": value for name, value in unet.config.items()},
        **{f"scheduler {name}": value for name, value in noise_scheduler.config.items()},
        **config.hyper_parameters(),
    }
    identity = {name: value for name, value in public.items() if not name.split()[-1].startswith("_")}
    return json.loads(json.dumps(identity))


def _read_metadata(path: Path) -> dict[str, Any]:
    try:
        metadata = json.loads((path / "checkpoint.json").read_text(encoding="utf-8"))
        return {name: metadata[name] for name in ("stage", "position", "check", "plan", "released", "identity")}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StorageError(
            f"{path / 'checkpoint.json'} cannot be read ({type(error).__name__}): restore it, or move {path.name} away "
            "to resume from another checkpoint."
        ) from error


def _remove(path: Path) -> None:
    """Delete a checkpoint; it is renamed first, so that a crash cannot leave half of it under a valid name."""
    superseded = path.with_name(f"{path.name}.superseded{PARTIAL}")
    path.rename(superseded)
    shutil.rmtree(superseded)


def _sync(directory: Path) -> None:
    """Sync the files of a directory to disk, and the directory itself, which holds their names."""
    for path in directory.rglob("*"):
        sync(path)
    sync(directory)
