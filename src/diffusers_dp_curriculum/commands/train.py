"""Train a diffusion model on sensitive images from easy to hard, under one (epsilon, delta).

    dp-curriculum train                                     # handwritten digits, minutes
    dp-curriculum train --train_data_dir DIR --resolution 28 --target_epsilon 10

Without flags that name a data set, the preset "digits" is used. `accelerate launch` starts several processes:
`accelerate launch --multi_gpu -m diffusers_dp_curriculum.cli train`, or `... examples/train_dp_curriculum.py`.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from ..checks import (
    ATTENTION_LEVELS,
    BETA_SCHEDULE,
    BLOCK_CHANNELS,
    DDPM_NUM_STEPS,
    EDM_SIGMA_DATA,
    EDM_SIGMA_MAX,
    IMAGE_CHANNELS,
    LAYERS_PER_BLOCK,
    NOISE_SCHEDULER,
    PREDICTION_TYPE,
    at_least,
)
from ..config import DPCurriculumConfig
from ..errors import InputError
from ..files import check_outside
from ..names import check_config_name, check_run_name
from ..options import check_options, options_of_group
from ..presets import load_preset, preset_names
from ..run_paths import check_output_dir
from .flags import add_options, in_flags, with_underscores


if TYPE_CHECKING:
    from diffusers import DDPMScheduler, EDMEulerScheduler, UNet2DModel

    from ..data.dataset_info import DatasetInfo


DATA_OPTIONS = {"dataset_name", "output_dir", "image_column", "label_column", "user_column", "class_names"}
HIDDEN = "***"

_run = options_of_group("Run")
_data = options_of_group("Data")
_network = options_of_group("Network")
_scheduler = options_of_group("Noise scheduler")


@dataclass(frozen=True)
class ScriptArguments:
    """The options of the command besides those of the config: preset, data set, network and noise scheduler."""

    preset: str | None = _run(None, f"Named recipe ({', '.join(preset_names())}); other flags override its values.")
    plan: bool = _run(False, "Print noise, epsilon, time and memory, and exit; spends no privacy and writes nothing.")

    dataset_name: str | None = _data(None, 'Hub id of the data set, or "digits".')
    train_data_dir: str | None = _data(
        None, "Image folder, directory saved by `datasets`, parquet files, or MNIST-like IDX files."
    )
    resolution: int | None = _data(
        None, "Resize and crop images to this size; by default their own size.", limits=at_least(1)
    )
    channels: int | None = _data(
        None, "1 converts images to grey, 3 to RGB; by default they stay what they are.", limits=IMAGE_CHANNELS
    )
    pixel_range: list[float] | None = _data(
        None,
        "Two numbers: the values of black and white in images of more than 8 bits a pixel. Give the range that the "
        "device can deliver, never one measured on the records.",
    )
    background: str | None = _data(None, "Colour to put behind transparent pixels, as a name or #rrggbb.")
    image_column: str | None = _data(None, "Column with the images, if there are several.")
    label_column: str | None = _data(None, "Column with the labels, if there are several.")
    user_column: str | None = _data(
        None, "Column that says whose image it is: all images of one person are then protected together."
    )
    user_directory_level: int | None = _data(
        None,
        "Level of the directories that say whose image it is: 1 for those in --train_data_dir, 2 for those in them.",
        limits=at_least(1),
    )
    class_names: list[str] | None = _data(
        None, "The list of classes, in order, independent of the records; it is published."
    )
    unconditional: bool = _data(False, "Ignore labels and class directories.")
    accept_found_classes: bool = _data(
        False,
        "Publish the list of classes that was found, although one record may have added its own to it; --class_names "
        "is better.",
    )
    accept_left_out_files: bool = _data(
        False,
        "Train without files that may be records: of formats that are not read, linked to nothing, not named in the "
        "metadata, beside files of another format, or missing.",
    )

    model_config_name_or_path: str | None = _network(
        None, "Config of the UNet2DModel, used instead of the other flags of the network."
    )
    block_out_channels: list[int] = _network([32, 64], "Channels of each level, finest first.", limits=BLOCK_CHANNELS)
    layers_per_block: int = _network(1, "Residual blocks per level.", limits=LAYERS_PER_BLOCK)
    attention_levels: int = _network(1, "Number of coarsest levels that have attention.", limits=ATTENTION_LEVELS)

    noise_scheduler: str = _scheduler(
        "ddpm", "Noise levels and loss; edm is that of Karras et al. 2022.", limits=NOISE_SCHEDULER
    )
    prediction_type: str = _scheduler(
        "v_prediction", "What the network predicts; sample with ddpm alone.", limits=PREDICTION_TYPE
    )
    edm_sigma_data: float = _scheduler(
        0.5,
        "Constant of EDM's loss: the standard deviation that pixels in [-1, 1] are assumed to have (paper: 0.57735). "
        "It is published and must not be measured on the records; keep the default or measure it on public images.",
        limits=EDM_SIGMA_DATA,
    )
    edm_sigma_max: float = _scheduler(80.0, "Noise level from which EDM samples.", limits=EDM_SIGMA_MAX)
    ddpm_num_steps: int = _scheduler(1000, "Timesteps of the noise schedule of ddpm.", limits=DDPM_NUM_STEPS)
    ddpm_beta_schedule: str = _scheduler("squaredcos_cap_v2", "Noise schedule of ddpm.", limits=BETA_SCHEDULE)

    def __post_init__(self) -> None:
        check_options(self)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the flags, in groups."""
    parser = argparse.ArgumentParser(
        prog="dp-curriculum train",
        usage="%(prog)s [flags]",
        description=(__doc__ or "").splitlines()[0],
        allow_abbrev=False,
    )
    add_options(parser, ScriptArguments, DPCurriculumConfig)
    return parser


def parse_arguments(arguments: Sequence[str]) -> tuple[ScriptArguments, DPCurriculumConfig]:
    """Parse the command line; a preset changes the defaults.

    Args:
        arguments (`Sequence[str]`): The flags.

    Returns:
        `tuple[ScriptArguments, DPCurriculumConfig]`: The options of the command, and the config of the trainer.

    Raises:
        InputError: If a flag or a preset does not exist, or a value is out of range.
    """
    parser, arguments = make_parser(), with_underscores(arguments)
    chosen, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise InputError(f"There is no flag {unknown[0]}: see --help for the list of flags.")
    own_images = chosen.dataset_name is not None or chosen.train_data_dir is not None
    if chosen.preset is not None or not own_images:
        recipe = load_preset(chosen.preset or "digits")
        parser.set_defaults(
            **{name: value for name, value in recipe.items() if not (own_images and name in DATA_OPTIONS)}
        )
    values = vars(parser.parse_args(arguments))
    script = {option.name: values.pop(option.name) for option in fields(ScriptArguments)}
    return ScriptArguments(**script), DPCurriculumConfig(**values)


def hide_token() -> None:
    """Remove a token from `sys.argv`, which trackers record, and warn that it can be seen elsewhere."""
    for number, argument in enumerate(sys.argv):
        flag, equals, _ = argument.partition("=")
        if with_underscores([flag]) != ["--hub_token"]:
            continue
        if equals:
            sys.argv[number] = f"{flag}={HIDDEN}"
        else:
            sys.argv[number + 1] = HIDDEN
        if is_main_process():
            print(
                "warning: A token on the command line is visible to everybody on this machine and kept by the shell: "
                "use `hf auth login` or HF_TOKEN.",
                file=sys.stderr,
            )


def is_main_process() -> bool:
    """Whether this is the main process, which alone writes and prints; works before the processes are connected."""
    return os.environ.get("RANK", "0") == "0"


def network_of(script: ScriptArguments, info: "DatasetInfo") -> "UNet2DModel":
    """The network that the arguments describe, for a data set.

    Args:
        script (`ScriptArguments`): The options of the network are used.
        info (`DatasetInfo`): The public description of the data set.
    """
    from ..training.networks import build_unet

    return build_unet(
        info.resolution,
        info.num_channels,
        info.num_classes,
        block_out_channels=script.block_out_channels,
        layers_per_block=script.layers_per_block,
        attention_levels=script.attention_levels,
        model_config_name_or_path=script.model_config_name_or_path,
    )


def scheduler_of(script: ScriptArguments) -> "DDPMScheduler | EDMEulerScheduler":
    """The noise scheduler that the arguments describe.

    Args:
        script (`ScriptArguments`): The options of the noise scheduler are used.
    """
    from ..training.networks import build_scheduler

    return build_scheduler(
        script.noise_scheduler,
        prediction_type=script.prediction_type,
        ddpm_num_steps=script.ddpm_num_steps,
        ddpm_beta_schedule=script.ddpm_beta_schedule,
        edm_sigma_data=script.edm_sigma_data,
        edm_sigma_max=script.edm_sigma_max,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Load the data set, plan, train, save and print a summary; return the exit status."""
    script, config = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    hide_token()
    if script.train_data_dir is not None:
        if not Path(script.train_data_dir).exists():
            raise InputError(
                f"{script.train_data_dir} does not exist: give the directory of images as `train_data_dir`."
            )
        check_outside(Path(config.output_dir), Path(script.train_data_dir))
    if is_main_process():
        check_output_dir(Path(config.output_dir), config.resume_from_checkpoint)
    if script.model_config_name_or_path is not None:
        check_config_name(script.model_config_name_or_path)
    if config.resume_from_checkpoint is None:  # a resumed run has noted what its previous runs had released
        for run in config.prior_runs or []:
            check_run_name(run)

    from accelerate.utils import set_seed

    from ..data.image_dataset import load_image_dataset
    from ..distributed import run_on_main_process
    from ..sharing.hub import prepare_repo
    from ..trainer import DPCurriculumTrainer
    from ..training.interruption import RunStatus

    noise_scheduler = scheduler_of(script)
    dataset = load_image_dataset(
        dataset_name=script.dataset_name,
        train_data_dir=script.train_data_dir,
        resolution=script.resolution,
        image_column=script.image_column,
        label_column=script.label_column,
        user_column=script.user_column,
        user_directory_level=script.user_directory_level,
        class_names=script.class_names,
        unconditional=script.unconditional,
        accept_found_classes=script.accept_found_classes,
        accept_left_out_files=script.accept_left_out_files,
        # A plan needs no pixels, unless it is that of a run to resume, whose records are compared with these.
        decode=not script.plan or config.resume_from_checkpoint is not None,
        channels=script.channels,
        pixel_range=script.pixel_range,
        background=script.background,
    )
    set_seed(config.seed)
    unet = network_of(script, dataset.info)
    trainer = DPCurriculumTrainer(unet=unet, noise_scheduler=noise_scheduler, args=config, train_dataset=dataset)
    if script.plan:
        plan = trainer.describe_plan()  # called by every process, because it tries steps of training
        if trainer.accelerator.is_main_process:
            print(in_flags(plan, make_parser()))
        return 0
    if config.push_to_hub:  # before training, so that a repository that cannot be used is reported at once
        run_on_main_process(
            lambda: prepare_repo(config.repo_id, "model", config.hub_private_repo or None, config.token)
        )
    status = trainer.train()
    if status is RunStatus.INTERRUPTED:
        raise KeyboardInterrupt
    if status is RunStatus.TERMINATED:
        return 0  # the cluster asked the run to stop
    try:
        trainer.save_pipeline()
    except KeyboardInterrupt:
        print(
            "\nCtrl-C: training is complete. To save the pipeline, add --resume_from_checkpoint latest.",
            file=sys.stderr,
        )
        raise
    if trainer.accelerator.is_main_process:
        print(trainer.summary())
    return 0


if __name__ == "__main__":
    from ..cli import run

    sys.exit(run("train"))
