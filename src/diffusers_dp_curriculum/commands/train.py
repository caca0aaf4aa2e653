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
    EDM_NUM_STEPS,
    EDM_SIGMA_DATA,
    EDM_SIGMA_MAX,
    LAYERS_PER_BLOCK,
    NOISE_SCHEDULER,
    PREDICTION_TYPE,
    check_edm,
    check_levels,
    check_logger,
    check_sampler,
)
from ..config import DPCurriculumConfig
from ..errors import InputError
from ..files import check_data_dir
from ..names import (
    check_autoencoder_name,
    check_config_name,
    check_dataset_name,
    check_extractor_name,
    check_repo_id,
    check_run_name,
    check_start_name,
)
from ..options import options_of_group
from ..presets import load_preset, preset_names
from ..run_paths import check_output_dir
from .data_arguments import DataArguments
from .flags import add_options, in_flags, parse_flags, with_underscores


if TYPE_CHECKING:
    from diffusers import DDPMScheduler, EDMEulerScheduler, UNet2DModel

    from ..data.dataset_info import DatasetInfo


DATA_OPTIONS = {"dataset_name", "output_dir", "image_column", "label_column", "user_column", "class_names"}
HIDDEN = "***"

NETWORK = "Network, with random weights"
SCHEDULER = "Noise scheduler, unless the start is a pipeline"

_run = options_of_group("Run")
_network = options_of_group(NETWORK)
_scheduler = options_of_group(SCHEDULER)


@dataclass(frozen=True)
class ScriptArguments(DataArguments):
    """The options of the command besides those of the config: data set, preset, network and noise scheduler."""

    preset: str | None = _run(None, f"Named recipe ({', '.join(preset_names())}); other flags override its values.")
    plan: bool = _run(False, "Print noise, epsilon, time and memory, and exit; spends no privacy and writes nothing.")

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
        "Constant of EDM's loss: the standard deviation that pixels in [-1, 1] are assumed to have (paper: 0.57735), "
        "or latents, for which 1 is right. "
        "It is published and must not be measured on the records; keep the default or measure it on public images.",
        limits=EDM_SIGMA_DATA,
    )
    edm_sigma_max: float = _scheduler(80.0, "Noise level from which EDM samples.", limits=EDM_SIGMA_MAX)
    ddpm_num_steps: int = _scheduler(1000, "Timesteps of the noise schedule of ddpm.", limits=DDPM_NUM_STEPS)
    ddpm_beta_schedule: str = _scheduler("squaredcos_cap_v2", "Noise schedule of ddpm.", limits=BETA_SCHEDULE)

    def check_with(self, config: DPCurriculumConfig) -> None:
        """Refuse options that do not fit those of the trainer, before anything slow is imported or any image decoded.

        Args:
            config (`DPCurriculumConfig`): The config of the trainer.

        Raises:
            InputError: If the network or the noise scheduler does not have what the config asks for, or adapters are
                asked for and the network has random weights.
        """
        if config.pretrained_model_name_or_path is not None:  # then its files decide
            if self.model_config_name_or_path is not None:
                raise InputError(
                    "`pretrained_model_name_or_path` brings its own network, and `model_config_name_or_path` is for "
                    "random weights: give one of them."
                )
            return
        if config.trainable == "lora":
            raise InputError(
                "The network starts from random weights, on which `trainable` lora has been no better than chance (12 "
                "to 16 % accuracy on CIFAR-10, see docs/concepts.md): give `pretrained_model_name_or_path`, or choose "
                "another `trainable`."
            )
        if self.model_config_name_or_path is None:
            size = self.resolution if config.vae_name_or_path is None else None  # that of the latents is not known yet
            check_levels(self.attention_levels, len(self.block_out_channels), size)
        edm = self.noise_scheduler == "edm"
        if edm:
            check_edm(self.prediction_type, config.timestep_sampling)
        check_sampler(config.num_inference_steps, EDM_NUM_STEPS if edm else self.ddpm_num_steps, config.s_churn, edm)


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
    chosen = parse_flags(parser, arguments)
    own_images = chosen.dataset_name is not None or chosen.train_data_dir is not None
    if chosen.preset is not None or not own_images:
        recipe = load_preset(chosen.preset or "digits")
        parser.set_defaults(
            **{name: value for name, value in recipe.items() if not (own_images and name in DATA_OPTIONS)}
        )
    values = vars(parser.parse_args(arguments))
    script = {option.name: values.pop(option.name) for option in fields(ScriptArguments)}
    script_arguments, config = ScriptArguments(**script), DPCurriculumConfig(**values)
    script_arguments.check_with(config)
    return script_arguments, config


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


def scheduler_of(script: ScriptArguments, latents: bool = False) -> "DDPMScheduler | EDMEulerScheduler":
    """The noise scheduler that the arguments describe.

    Args:
        script (`ScriptArguments`): The options of the noise scheduler are used.
        latents (`bool`, *optional*, defaults to False): Whether it is for a network of latents.
    """
    from ..training.networks import build_scheduler

    return build_scheduler(
        script.noise_scheduler,
        prediction_type=script.prediction_type,
        ddpm_num_steps=script.ddpm_num_steps,
        ddpm_beta_schedule=script.ddpm_beta_schedule,
        edm_sigma_data=script.edm_sigma_data,
        edm_sigma_max=script.edm_sigma_max,
        latents=latents,
    )


def check_names(script: ScriptArguments, config: DPCurriculumConfig) -> None:
    """Refuse names of images, networks and directories that cannot be used, before anything slow is imported.

    Args:
        script (`ScriptArguments`): The options that name images and a config of a network.
        config (`DPCurriculumConfig`): The options that name the output directory and public models.

    Raises:
        InputError: If a name cannot be used.
        HubError: If the Hub is out of reach.
    """
    if script.train_data_dir is not None:
        check_data_dir(Path(script.train_data_dir), Path(config.output_dir))
    if is_main_process():
        check_output_dir(Path(config.output_dir), config.resume_from_checkpoint)
    if script.dataset_name is not None:
        check_dataset_name(script.dataset_name)
    if script.model_config_name_or_path is not None:
        check_config_name(script.model_config_name_or_path)
    if config.pretrained_model_name_or_path is not None:
        check_start_name(config.pretrained_model_name_or_path)
    if config.feature_extractor is not None:
        check_extractor_name(config.feature_extractor)
    if config.vae_name_or_path is not None:
        check_autoencoder_name(config.vae_name_or_path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Load the data set, plan, train, save and print a summary; return the exit status."""
    script, config = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    hide_token()
    check_logger(config.logger)
    if config.push_to_hub:
        check_repo_id(config.repo_id)
    check_names(script, config)
    if config.resume_from_checkpoint is None:  # a resumed run has noted what its previous runs had released
        for run in config.prior_runs or []:
            check_run_name(run)

    from accelerate.utils import set_seed

    from ..distributed import run_on_main_process
    from ..sharing.hub import prepare_repo
    from ..trainer import DPCurriculumTrainer
    from ..training.accelerator import check_accelerator
    from ..training.autoencoder import latent_info
    from ..training.interruption import RunStatus
    from ..training.planning import describe_records
    from ..training.starting_point import find_starting_point

    check_accelerator(config)  # before images are decoded, which may take long
    vae = config.vae_name_or_path
    noise_scheduler = scheduler_of(script, latents=vae is not None)
    start = None
    if config.pretrained_model_name_or_path is not None:
        start = find_starting_point(config.pretrained_model_name_or_path, vae)
        noise_scheduler = start.noise_scheduler or noise_scheduler
    # A plan needs no pixels, unless it is that of a run to resume, whose records are compared with these.
    dataset = script.load(decode=not script.plan or config.resume_from_checkpoint is not None)
    set_seed(config.seed)
    network_info = dataset.info if vae is None else latent_info(vae, dataset.info)
    unet = network_of(script, network_info) if start is None else start.load(dataset.info)
    try:
        trainer = DPCurriculumTrainer(unet=unet, noise_scheduler=noise_scheduler, args=config, train_dataset=dataset)
    except InputError:
        if script.plan and is_main_process():  # what was found may be the reason why the run is refused
            print(in_flags(describe_records(dataset.info, dataset.provenance), make_parser()))
        raise
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
