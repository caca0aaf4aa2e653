"""Checkpoints: what is saved during a run, and what it can be resumed from.

A checkpoint holds no state of any random generator: after a resume sampling and noise are seeded afresh, or whoever
found the file could take the noise away.
"""

import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import SchedulerMixin, UNet2DModel
from diffusers.training_utils import EMAModel

from ..config import DPCurriculumConfig
from ..errors import InputError, StorageError
from ..files import sync
from ..mechanisms.released_images import ReleasedImages
from ..privacy.ledger import PrivacyLedger
from .planning import Plan
from .stages import WarmUpStage


logger = logging.getLogger(__name__)
PARTIAL = ".partial"


@dataclass
class TrainingState:
    """What the steps of a stage change.

    Args:
        stage (`str`): The name of the stage, such as `"central_images"` or `"dp_sgd"`.
        unet (`torch.nn.Module`): The network.
        optimizer (`torch.optim.Optimizer`): Its optimizer.
        ema (`EMAModel`): The average of its weights.
        lr_scheduler (`torch.optim.lr_scheduler.LRScheduler`, *optional*): The schedule, if the stage has one.
        step (`int`): Steps taken in this stage.
    """

    stage: str
    unet: torch.nn.Module
    optimizer: torch.optim.Optimizer
    ema: EMAModel
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler | None = None
    step: int = 0

    def advance(self) -> None:
        """Follow a step of the optimizer."""
        if self.lr_scheduler is not None:
            self.lr_scheduler.step()
        self.ema.step(self.unet.parameters())
        self.step += 1

    def state_dict(self) -> dict[str, Any]:
        """Everything but the names, as tensors and plain values."""
        return {
            "unet": self.unet.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.state_dict(),
            "lr_scheduler": None if self.lr_scheduler is None else self.lr_scheduler.state_dict(),
            "step": self.step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what [`state_dict`] gave, on any device."""
        self.unet.load_state_dict(state["unet"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.load_state_dict(state["ema"])
        self.ema.to(next(self.unet.parameters()).device)
        if self.lr_scheduler is not None:
            self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        self.step = state["step"]


def make_ema(unet: torch.nn.Module, config: DPCurriculumConfig) -> EMAModel:
    """The exponential moving average of the weights that each stage keeps."""
    return EMAModel(
        unet.parameters(),
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
        name (`str`): `"checkpoint-N"`, N being the steps taken in all stages.
        stage (`str`): The stage of `state`.
        state (`dict`): Content of a [`TrainingState`].
        position (`int`): The ledger's position when it was made.
        check (`int`): The ledger's check when it was made, by which a checkpoint of a copy of the run is known.
        plan (`Plan`): The run's plan; its noise multiplier was found once and stays.
        released (`dict[str, ReleasedImages]`): What the warm-up stages have released so far, by the stage's name.
    """

    name: str
    stage: str
    state: dict[str, Any]
    position: int
    check: int
    plan: Plan
    released: dict[str, ReleasedImages]


class Checkpoints:
    """The checkpoints of one run: directories `checkpoint-N`, each complete or not there at all.

    Args:
        directory (`Path`): Where they are. Beside it lies the run's secret, which keys the checksum of the records.
        identity (`dict`): What makes two runs the same one, as [`run_identity`] has it.
        stages (`Sequence[WarmUpStage]`): The warm-up stages of the run.
        records_checksum (`Callable[[bytes], str]`):
            Gives the checksum of the sensitive records for a key; the records must be the same as well.
        total_limit (`int`, *optional*): How many to keep, the newest ones; all by default.
    """

    def __init__(
        self,
        directory: Path,
        identity: dict[str, Any],
        stages: Sequence[WarmUpStage],
        records_checksum: Callable[[bytes], str],
        total_limit: int | None = None,
    ):
        self.directory = directory
        self.identity = identity
        self.stages = stages
        self.records_checksum = records_checksum
        self.total_limit = total_limit
        self._checksums: dict[bytes, str] = {}

    def save(
        self,
        number: int,
        state: TrainingState,
        ledger: PrivacyLedger,
        plan: Plan,
        released: Mapping[str, ReleasedImages],
    ) -> Path:
        """Write `checkpoint-{number}`, replacing one of that name; a crash leaves those that were there usable.

        From here on everything in the ledger counts for good, whatever becomes of the files.
        """
        ledger.mark_visible(f"checkpoint-{number}")
        path = self.directory / f"checkpoint-{number}"
        partial = path.with_name(path.name + PARTIAL)
        partial.mkdir(parents=True)
        torch.save(state.state_dict(), partial / "state.pt")
        for name, images in released.items():
            images.save_to_disk(partial / name)
        facts = {"stage": state.stage, "position": ledger.position, "check": ledger.check, "plan": asdict(plan)}
        facts["released"] = list(released)
        facts["identity"] = self.identity | {"records": self._records_checksum()}
        (partial / "checkpoint.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        _sync(partial)
        if path.exists():  # the run was resumed from an earlier checkpoint, which is still there
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
            which (`str`): `"latest"`, for which there may be none, or the path or name of one of this run.

        Raises:
            InputError: If it is missing, or of a run with other settings, network or records.
            StorageError: If it is damaged.
        """
        if which == "latest":
            if not (there := self.all()):
                return None
            path = there[-1]
        else:
            path = self.directory / Path(which).name
            if not path.is_dir() or (Path(which).exists() and not path.samefile(which)):
                raise InputError(
                    f"{which} is no checkpoint of the run in {self.directory.parents[1]}: give latest, or one of "
                    f"{', '.join(p.name for p in self.all()) or 'none that there are'}."
                )
        facts = _facts(path)
        self._check_same_run(path, facts["identity"])
        try:
            state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
            released = {
                stage.name: stage.queries.released.load_from_disk(path / stage.name)
                for stage in self.stages
                if stage.name in facts["released"]
            }
        except Exception as error:  # the formats have many for a damaged file, and torch's would say how to trust it
            raise StorageError(
                f"{path} cannot be read ({type(error).__name__}): give an earlier checkpoint."
            ) from error
        plan = Plan.from_dict(facts["plan"])
        return Checkpoint(path.name, facts["stage"], state, facts["position"], facts["check"], plan, released)

    def remove_partial(self) -> None:
        """Remove what a crash left half written."""
        for partial in self.directory.glob(f"*{PARTIAL}"):
            shutil.rmtree(partial)

    def all(self) -> list[Path]:
        """All complete checkpoints, in the order in which they were written."""
        there = [
            path for path in self.directory.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()
        ]
        return sorted(there, key=lambda path: (_facts(path)["position"], int(path.name.removeprefix("checkpoint-"))))

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
                raise StorageError(f"{path} is missing, without which no checkpoint can be checked: restore the file.")
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_bytes(32))
            sync(path)
        key = path.read_bytes()
        if key not in self._checksums:
            self._checksums[key] = self.records_checksum(key)
        return self._checksums[key]


def run_identity(config: DPCurriculumConfig, unet: UNet2DModel, noise_scheduler: SchedulerMixin) -> dict[str, Any]:
    """What must be the same when a run is resumed, besides its records, as values that JSON can hold."""
    public = {
        **{f"unet {name}": value for name, value in unet.config.items()},
        **{f"scheduler {name}": value for name, value in noise_scheduler.config.items()},
        **config.hyper_parameters(),
    }
    identity = {name: value for name, value in public.items() if not name.split()[-1].startswith("_")}
    return json.loads(json.dumps(identity))


def _facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads((path / "checkpoint.json").read_text(encoding="utf-8"))
        return {name: facts[name] for name in ("stage", "position", "check", "plan", "released", "identity")}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StorageError(
            f"{path / 'checkpoint.json'} cannot be read ({type(error).__name__}): restore it, or move {path.name} away "
            "to resume from another checkpoint."
        ) from error


def _remove(path: Path) -> None:
    """Delete a checkpoint so that a crash leaves no half of it under its name."""
    superseded = path.with_name(f"{path.name}.superseded{PARTIAL}")
    path.rename(superseded)
    shutil.rmtree(superseded)


def _sync(directory: Path) -> None:
    """Make a directory's files durable, and their names."""
    for path in directory.rglob("*"):
        sync(path)
    sync(directory)
