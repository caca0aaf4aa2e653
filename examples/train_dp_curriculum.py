"""Train a diffusion model on sensitive images from easy to hard, under one (epsilon, delta).

    accelerate launch examples/train_dp_curriculum.py                                  # handwritten digits, minutes
    accelerate launch examples/train_dp_curriculum.py --train_data_dir DIR --resolution 28 --target_epsilon 10

Without arguments the preset "digits" is used.
"""

import os
import sys
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import yaml
from accelerate.utils import set_seed
from diffusers import DDPMScheduler, EDMEulerScheduler, UNet2DModel
from transformers import HfArgumentParser

from diffusers_dp_curriculum import (
    DPCurriculumConfig,
    DPCurriculumError,
    DPCurriculumTrainer,
    ImageDataset,
    InputError,
    load_image_dataset,
)
from diffusers_dp_curriculum.distributed import from_main
from diffusers_dp_curriculum.messages import show_messages
from diffusers_dp_curriculum.sharing.hub import prepare_repo
from diffusers_dp_curriculum.training.interruption import RunStatus
from diffusers_dp_curriculum.training.run_directory import check_output_dir


PRESETS = files("diffusers_dp_curriculum") / "presets"
OF_THE_DATA = {"dataset_name", "output_dir", "image_column", "label_column", "class_names"}
NORM_GROUPS = 8
HIDDEN = "***"
BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid")
EDM_SIGMA_MIN = 0.002  # Karras et al. 2022, table 1


@dataclass
class ScriptArguments:
    """Where the images come from and what the network looks like."""

    preset: str | None = field(default=None, metadata={"help": "Named recipe; every flag given besides overrides it."})
    dataset_name: str | None = field(default=None, metadata={"help": 'Hub id of the data set, or "digits".'})
    train_data_dir: str | None = field(
        default=None,
        metadata={"help": "Image folder, directory saved by `datasets`, parquet files, or MNIST-like IDX files."},
    )
    plan: bool = field(
        default=False, metadata={"help": "Print noise, epsilon, time and memory, and end: spends and writes nothing."}
    )
    resolution: int | None = field(
        default=None, metadata={"help": "Resize and crop to this size; the images' own by default."}
    )
    image_column: str | None = field(default=None, metadata={"help": "Column with the images, if there are several."})
    label_column: str | None = field(default=None, metadata={"help": "Column with the labels, if there are several."})
    class_names: list[str] | None = field(
        default=None, metadata={"help": "The classes, in order, whichever records there are; they are published."}
    )
    unconditional: bool = field(default=False, metadata={"help": "Ignore labels, and directories of classes."})
    accept_found_classes: bool = field(
        default=False,
        metadata={
            "help": "Publish the list of classes that was found, although one record may have added its own to it; "
            "--class_names is better."
        },
    )
    model_config_name_or_path: str | None = field(
        default=None, metadata={"help": "Config of the UNet2DModel, instead of --block_out_channels and the like."}
    )
    block_out_channels: list[int] = field(
        default_factory=lambda: [32, 64], metadata={"help": "Channels of each level, finest first; multiples of 8."}
    )
    layers_per_block: int = field(default=1, metadata={"help": "Residual blocks a level."})
    attention_levels: int = field(default=1, metadata={"help": "The coarsest levels that have attention."})
    noise_scheduler: str = field(
        default="ddpm", metadata={"help": "Noise levels and loss: ddpm, or edm (Karras et al. 2022)."}
    )
    prediction_type: str = field(
        default="v_prediction",
        metadata={"help": "What the network predicts: epsilon, v_prediction or, with ddpm, sample."},
    )
    edm_sigma_data: float = field(
        default=0.5,
        metadata={
            "help": "Constant of EDM's loss: the standard deviation that pixels in [-1, 1] are assumed to have (paper: "
            "0.57735). It is published and must not be measured on the records; keep the default or take that of "
            "public images."
        },
    )
    edm_sigma_max: float = field(default=80.0, metadata={"help": "Noise level from which EDM samples."})
    ddpm_num_steps: int = field(default=1000, metadata={"help": "Timesteps of the noise schedule."})
    ddpm_beta_schedule: str = field(default="squaredcos_cap_v2", metadata={"help": "Noise schedule of DDPMScheduler."})


def parse_arguments(arguments: list[str]) -> tuple[ScriptArguments, DPCurriculumConfig]:
    """Parse the command line; a preset changes the defaults."""
    parser = HfArgumentParser(
        (ScriptArguments, DPCurriculumConfig), description=__doc__.splitlines()[0], allow_abbrev=False
    )
    chosen, unknown = parser.parse_known_args(arguments)
    if unknown:
        raise InputError(f"There is no flag {unknown[0]}: see --help for those that there are.")
    preset = chosen.preset
    if preset is None and chosen.dataset_name is None and chosen.train_data_dir is None:
        preset = "digits"
    if preset is not None:
        path = PRESETS / f"{preset}.yaml"
        if not path.is_file():
            names = sorted(entry.name.removesuffix(".yaml") for entry in PRESETS.iterdir())
            raise InputError(f'There is no preset "{preset}": choose one of {", ".join(names)}.')
        defaults = yaml.safe_load(path.read_text(encoding="utf-8"))
        if chosen.dataset_name is not None or chosen.train_data_dir is not None:
            # The recipe, on the user's own images.
            defaults = {name: value for name, value in defaults.items() if name not in OF_THE_DATA}
        parser.set_defaults(**defaults)
    return parser.parse_args_into_dataclasses(arguments)


def hide_token() -> None:
    """Take a token out of `sys.argv`, which trackers record, and say where else it can be seen."""
    for number, argument in enumerate(sys.argv):
        flag, equals, _ = argument.partition("=")
        if flag.replace("-", "_") != "__hub_token":  # the parser takes either spelling
            continue
        if equals:
            sys.argv[number] = f"{flag}={HIDDEN}"
        else:
            sys.argv[number + 1] = HIDDEN
        if is_main_process():
            print(
                "warning: A token on the command line is seen by everybody on this machine and kept by the shell: use "
                "`hf auth login` or HF_TOKEN.",
                file=sys.stderr,
            )


def is_main_process() -> bool:
    """Whether this is the first process, which alone writes and prints; known before the processes are connected."""
    return os.environ.get("RANK", "0") == "0"


def make_unet(script: ScriptArguments, dataset: ImageDataset) -> UNet2DModel:
    """A `UNet2DModel` for the data set: attention at the coarsest levels, the last class embedding for no class."""
    own = {
        "sample_size": dataset.resolution,
        "in_channels": dataset.num_channels,
        "out_channels": dataset.num_channels,
        "num_class_embeds": None if dataset.num_classes is None else dataset.num_classes + 1,
    }
    if script.model_config_name_or_path is not None:
        try:
            return UNet2DModel.from_config(UNet2DModel.load_config(script.model_config_name_or_path), **own)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{script.model_config_name_or_path} has no config of a UNet2DModel: give a directory or Hub id of one."
            ) from error
    if any(channels < 1 or channels % NORM_GROUPS for channels in script.block_out_channels):
        raise InputError(f"block_out_channels are {script.block_out_channels}: give multiples of {NORM_GROUPS}.")
    levels = len(script.block_out_channels)
    if script.layers_per_block < 1:
        raise InputError(f"layers_per_block is {script.layers_per_block}: give at least 1.")
    if not 0 <= script.attention_levels <= levels:
        raise InputError(
            f"attention_levels is {script.attention_levels}: give a number from 0 to {levels}, the levels."
        )
    attention = [level >= levels - script.attention_levels for level in range(levels)]
    return UNet2DModel(
        **own,
        block_out_channels=tuple(script.block_out_channels),
        layers_per_block=script.layers_per_block,
        down_block_types=tuple("AttnDownBlock2D" if here else "DownBlock2D" for here in attention),
        up_block_types=tuple("AttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attention)),
        norm_num_groups=NORM_GROUPS,
    )


def make_scheduler(script: ScriptArguments) -> DDPMScheduler | EDMEulerScheduler:
    """The noise levels that the network is trained with, and published with."""
    if script.noise_scheduler not in ("ddpm", "edm"):
        raise InputError(f'There is no noise_scheduler "{script.noise_scheduler}": choose ddpm or edm.')
    if script.noise_scheduler == "edm":
        if not (script.edm_sigma_data > 0 and script.edm_sigma_max > EDM_SIGMA_MIN):
            raise InputError(f"Give an edm_sigma_data above 0 and an edm_sigma_max above {EDM_SIGMA_MIN}.")
        return EDMEulerScheduler(
            sigma_min=EDM_SIGMA_MIN,
            sigma_max=script.edm_sigma_max,
            sigma_data=script.edm_sigma_data,
            prediction_type=script.prediction_type,
        )
    if script.ddpm_num_steps < 2:
        raise InputError(f"ddpm_num_steps is {script.ddpm_num_steps}: give at least 2.")
    if script.ddpm_beta_schedule not in BETA_SCHEDULES:
        raise InputError(
            f'There is no ddpm_beta_schedule "{script.ddpm_beta_schedule}": choose one of {", ".join(BETA_SCHEDULES)}.'
        )
    return DDPMScheduler(
        num_train_timesteps=script.ddpm_num_steps,
        beta_schedule=script.ddpm_beta_schedule,
        prediction_type=script.prediction_type,
    )


def main() -> int:
    """Load, plan, train, save, and say where everything is; return the exit status."""
    show_messages()
    script, config = parse_arguments(sys.argv[1:])
    hide_token()
    if is_main_process():  # here already, as loading may take long
        check_output_dir(Path(config.output_dir), config.resume_from_checkpoint)
    noise_scheduler = make_scheduler(script)
    dataset = load_image_dataset(
        dataset_name=script.dataset_name,
        train_data_dir=script.train_data_dir,
        resolution=script.resolution,
        image_column=script.image_column,
        label_column=script.label_column,
        class_names=script.class_names,
        unconditional=script.unconditional,
        accept_found_classes=script.accept_found_classes,
    )
    set_seed(config.seed)
    trainer = DPCurriculumTrainer(
        unet=make_unet(script, dataset),
        noise_scheduler=noise_scheduler,
        args=config,
        train_dataset=dataset,
    )
    if script.plan:
        plan = trainer.describe_plan()
        if trainer.accelerator.is_main_process:
            print(plan)
        return 0
    if config.push_to_hub:  # before training: a repository that cannot be had is better known at once
        repo_id = config.hub_model_id or Path(config.output_dir).absolute().name
        from_main(lambda: prepare_repo(repo_id, "model", config.hub_private_repo or None, config._hub_token))
    status = trainer.train()
    if status is not RunStatus.FINISHED:
        return 130 if status is RunStatus.INTERRUPTED else 0  # as a shell has it for Ctrl-C; SIGTERM was asked for
    trainer.save_pipeline()
    if trainer.accelerator.is_main_process:
        print(trainer.summary())
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DPCurriculumError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)  # as a shell has it for Ctrl-C; what to do next has been printed
