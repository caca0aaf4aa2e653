"""Loads a trained network to start from, and keeps what a run has to know and say about it.

A start is assumed to be public: it has learned nothing from the records. A run publishes its id on the Hub, and of a
checkpoint on this machine only that it was one. A pipeline that a run on sensitive records has published may have
learned from the same records: it can be a start if the new run counts that run as well.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, EDMEulerScheduler, UNet2DModel

from ..checks import check_levels
from ..config import DPCurriculumConfig
from ..data.dataset_info import DatasetInfo
from ..errors import InputError
from ..files import local_path
from ..names import check_start_name, no_start, public_name
from ..privacy.counted_runs import CountedRun
from ..privacy.ledger import INITIAL_WEIGHTS
from ..privacy.publishability import runs_of_journal
from ..privacy.statement import PrivacyStatement
from .adaptation import adapt_network
from .autoencoder import FoundAutoencoder, autoencoder_in, find_autoencoder
from .pretrained_files import (
    check_parts,
    download_descriptions,
    download_weights,
    load_weights,
    names_of_classes,
    network_config,
    read_json,
    training_scheduler,
)


STARTED_FROM = "_started_from"  # an attribute of a loaded network; copies of the network have it too
OWN_PIPELINE = ["pipeline", "ClassConditionalPipeline"]


@dataclass(frozen=True)
class StartingPoint:
    """What a run has to know of the trained network that it starts from.

    Args:
        name (`str`): The directory or Hub id as it was given; never published, since it may be a path.
        hub_id (`str`, *optional*): The id of the repository on the Hub; None for a directory.
        runs (`tuple[CountedRun, ...]`): The runs on sensitive records whose result it is; empty for a public one.
        autoencoder (`FoundAutoencoder`, *optional*): That of a pipeline of latents, which the run takes over.
    """

    name: str
    hub_id: str | None
    runs: tuple[CountedRun, ...] = ()
    autoencoder: FoundAutoencoder | None = None

    @property
    def in_words(self) -> str:
        """`str`: What is published of it."""
        return public_name(self.hub_id)

    @property
    def assumption(self) -> str:
        """`str`: What a privacy statement assumes of the weights."""
        learned = "nothing from these records"
        if self.runs:
            learned = "from these records in the counted previous runs alone"
        return f"the initial weights of the network, those of {self.in_words}, which have learned {learned}"


@dataclass(frozen=True)
class FoundStart:
    """A trained network that was found and can be used, before its weights are loaded.

    Args:
        start (`StartingPoint`): What a run has to know of it.
        directory (`Path`): The directory of the network.
        config (`dict`): The config of the network, which is in that directory.
        known_classes (`list[str]`, *optional*):
            The names of its classes, or none if they have no names, if it has a null class after them; None otherwise.
        noise_scheduler (`DDPMScheduler` or `EDMEulerScheduler`, *optional*):
            The noise scheduler that it was trained with, where it is a pipeline.
        autoencoder (`FoundAutoencoder`, *optional*): The autoencoder of the latents that it denoises; None for pixels.
    """

    start: StartingPoint
    directory: Path
    config: dict[str, Any]
    known_classes: list[str] | None
    noise_scheduler: DDPMScheduler | EDMEulerScheduler | None
    autoencoder: FoundAutoencoder | None = None

    def load(self, info: DatasetInfo) -> UNet2DModel:
        """Load the weights, and adapt them to a data set; argument and errors as in [`load_starting_point`]."""
        if self.autoencoder is not None:
            info = self.autoencoder.latent_info(info)
        check_levels(0, len(self.config["block_out_channels"]), info.resolution)
        channels = self.config["in_channels"]
        if channels != info.num_channels and "Skip" in str(self.config["down_block_types"]):
            raise InputError(
                f"{self.start.name} has blocks for {channels} channels alone, and the images have {info.num_channels}: "
                f"load the images with `channels` {channels}."
            )
        if self.start.hub_id is not None:
            download_weights(self.start.hub_id, self.directory)
        unet = adapt_network(load_weights(self.directory, self.start.name, UNet2DModel), info, self.known_classes)
        unet.register_to_config(_name_or_path="")  # a path on this machine
        setattr(unet, STARTED_FROM, self.start)
        return unet


def load_starting_point(
    pretrained_model_name_or_path: str, info: DatasetInfo, vae_name_or_path: str | None = None
) -> tuple[UNet2DModel, DDPMScheduler | EDMEulerScheduler | None]:
    """Load a trained network to start from, and adapt it to a data set.

    The network takes images of the size and the channels of the data set, and has its classes and the null class. A
    class begins as "no label", unless the start knows a class of the same name. Give the same
    `pretrained_model_name_or_path` to the [`DPCurriculumConfig`] of the run, whose privacy statement then names what it
    was started from.

    Args:
        pretrained_model_name_or_path (`str`):
            Directory or Hub id of a pipeline with a `UNet2DModel`, of pixels or of the latents of an autoencoder that
            it has as well, or of a `UNet2DModel` alone, with weights in the format of safetensors.
        info (`DatasetInfo`): The public description of the data set, such as `dataset.info`.
        vae_name_or_path (`str`, *optional*):
            Directory or Hub id of the autoencoder, for a `UNet2DModel` of latents alone. The config of the run needs
            the same.

    Returns:
        `tuple[UNet2DModel, DDPMScheduler or EDMEulerScheduler or None]`: The network, and the noise scheduler with the
        prediction type that it was trained with, or None if it is not a pipeline. A scheduler of another class that has
        the same betas (DDIM, PNDM, DPM-Solver) becomes a `DDPMScheduler`.

    Raises:
        InputError: If there is no such network, or it cannot be adapted to the data set.
        HubError: If the Hub is out of reach, or refuses access to the repository.

    Examples:
        >>> from diffusers import DDPMPipeline, DDPMScheduler
        >>> from diffusers_dp_curriculum import DatasetInfo, build_unet, load_starting_point
        >>> public = DDPMPipeline(build_unet(16, 3, num_classes=None), DDPMScheduler())
        >>> public.save_pretrained("public-model")
        >>> info = DatasetInfo(num_records=60_000, num_channels=1, resolution=28, class_names=("shirt", "boot"))
        >>> unet, noise_scheduler = load_starting_point("public-model", info)
        >>> unet.config.in_channels, unet.config.sample_size, unet.config.num_class_embeds
        (1, 28, 3)
        >>> noise_scheduler.config.prediction_type
        'epsilon'
    """
    found = find_starting_point(pretrained_model_name_or_path, vae_name_or_path)
    return found.load(info), found.noise_scheduler


def find_starting_point(pretrained_model_name_or_path: str, vae_name_or_path: str | None = None) -> FoundStart:
    """Find a trained network to start from, and refuse one that cannot be used, before any weights are downloaded.

    Args:
        pretrained_model_name_or_path (`str`): As in [`load_starting_point`].
        vae_name_or_path (`str`, *optional*): As in [`load_starting_point`].

    Raises:
        InputError: If there is no such network, or it is none of pixels or of the latents of the autoencoder.
        HubError: If the Hub is out of reach, or refuses access to the repository.
    """
    name = str(pretrained_model_name_or_path)
    check_start_name(name)
    directory, hub_id = local_path(name), None
    if not directory.is_dir():
        directory, hub_id = download_descriptions(name), name
    network, index, noise_scheduler, own_autoencoder = directory, {}, None, None
    if (directory / "model_index.json").is_file():
        index = read_json(directory / "model_index.json", name)
        part = check_parts(index, name)
        own_autoencoder = None if part is None else autoencoder_in(directory / part, name, hub_id)
        _check_one_autoencoder(name, own_autoencoder, vae_name_or_path)
        network, scheduler = (
            directory / part if (directory / part).is_dir() else directory for part in ("unet", "scheduler")
        )
        noise_scheduler = training_scheduler(read_json(scheduler / "scheduler_config.json", name), name)
    elif not (directory / "config.json").is_file():
        raise no_start(name)
    autoencoder = own_autoencoder if vae_name_or_path is None else find_autoencoder(vae_name_or_path)
    latent_channels = None if autoencoder is None else autoencoder.latent_channels
    config = network_config(read_json(network / "config.json", name), name, latent_channels)
    known_classes = names_of_classes(index, config) if index.get("_class_name") == OWN_PIPELINE else None
    start = StartingPoint(name, hub_id, _runs_behind(directory), own_autoencoder)
    return FoundStart(start, network, config, known_classes, noise_scheduler, autoencoder)


def find_autoencoder_of_run(unet: torch.nn.Module, config: DPCurriculumConfig) -> FoundAutoencoder | None:
    """The autoencoder whose latents a run trains on: the one that the config names, or that of the start.

    Args:
        unet (`torch.nn.Module`): The network that training begins with.
        config (`DPCurriculumConfig`): `vae_name_or_path` is used.

    Returns:
        `FoundAutoencoder`, *optional*: The autoencoder; None for a run on pixels.

    Raises:
        InputError: If there is no such autoencoder, or the start has another one.
        HubError: If the Hub is out of reach, or refuses access to the repository.
    """
    start = starting_point_of(unet)
    if start is not None and start.autoencoder is not None:
        _check_one_autoencoder(start.name, start.autoencoder, config.vae_name_or_path)
        return start.autoencoder
    return None if config.vae_name_or_path is None else find_autoencoder(config.vae_name_or_path)


def _check_one_autoencoder(name: str, own: FoundAutoencoder | None, given: str | None) -> None:
    """Refuse an autoencoder for a pipeline that has one, or whose network knows pixels alone."""
    if given is None:
        return
    what = "is a pipeline of pixels" if own is None else "brings its own autoencoder"
    raise InputError(f"{name} {what}, and `vae_name_or_path` is {given}: give one of them.")


def starting_point_of(unet: torch.nn.Module) -> StartingPoint | None:
    """What a network was loaded from by [`load_starting_point`]; None for any other network.

    Args:
        unet (`torch.nn.Module`): The network.
    """
    return vars(unet).get(STARTED_FROM)


def check_starting_point(unet: UNet2DModel, config: DPCurriculumConfig, prior_runs: Sequence[CountedRun]) -> str:
    """Refuse a start that the config does not name, or one with a cost that the run does not count.

    Args:
        unet (`UNet2DModel`): The network that training begins with.
        config (`DPCurriculumConfig`): `pretrained_model_name_or_path` is used.
        prior_runs (`Sequence[CountedRun]`): The previous runs that the run counts.

    Returns:
        `str`: What the privacy statement of the run assumes of the initial weights.

    Raises:
        InputError: If the start is another one than the config names, or has learned in runs that are not counted.
    """
    start, named = starting_point_of(unet), config.pretrained_model_name_or_path
    if start is None and named is None:
        return INITIAL_WEIGHTS
    if start is None or named is None or start.name != str(named):
        loaded = "was not loaded by `load_starting_point`" if start is None else f"was loaded from {start.name}"
        raise InputError(
            f"The UNet {loaded}, and `pretrained_model_name_or_path` of the config is {named}: load it by "
            "`load_starting_point`, and give the same name to the config."
        )
    if not all(any(counted.covers(run) for counted in prior_runs) for run in start.runs):
        raise InputError(
            f"{start.name} has learned from sensitive records, which may be the same ones, and this run does not count "
            "its cost: give it as `prior_runs` as well, or start from a public model."
        )
    return start.assumption


def _runs_behind(directory: Path) -> tuple[CountedRun, ...]:
    """The runs on sensitive records whose result a directory holds, or the pipeline that it is a part of."""
    directory = directory.resolve()
    for place in (directory, directory.parent):
        if place != directory and not (place / "model_index.json").is_file():
            continue
        if (released := runs_of_journal(place)) is not None:
            return tuple(released)
        if (place / "privacy.json").is_file():
            return PrivacyStatement.read(place / "privacy.json").runs
    return ()
