"""Train a diffusion model on public images WITHOUT privacy, as a start for `dp-curriculum train`.

    dp-curriculum pretrain --train_data_dir PUBLIC --resolution 32 --output_dir public-model
    dp-curriculum train --pretrained_model_name_or_path public-model --train_data_dir DIR --resolution 32

The images must be public, and none of them may be among the records of a private run. `accelerate launch` starts
several processes: `accelerate launch --multi_gpu -m diffusers_dp_curriculum.cli pretrain ...`.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..checks import at_least, check_logger
from ..config import PRETRAINING_OPTIONS, SAMPLES, TRAINING, DPCurriculumConfig
from ..errors import InputError
from ..files import local_path
from ..options import Option, declared_options
from ..presets import load_preset
from .flags import add_flags, parse_flags, with_underscores
from .train import NETWORK, SCHEDULER, ScriptArguments, check_names, is_main_process, network_of, scheduler_of


# The options of `train` that say which images and how to load them. Whose images they are does not matter here.
DATA = {
    *("dataset_name", "train_data_dir", "resolution", "channels", "pixel_range", "background"),
    *("image_column", "label_column", "class_names", "unconditional"),
}

# What means something else, or has another default, than in a private run. Batch and learning rate are those of DDPM
# (Ho et al. 2020, arXiv:2006.11239, appendix B).
CHANGES: dict[str, dict[str, Any]] = {
    "preset": {"help": "Recipe whose network, noise scheduler, loss and samples to use; other flags override them."},
    "pixel_range": {"help": "Two numbers: the values of black and white in images of more than 8 bits a pixel."},
    "class_names": {"help": "The list of classes, in order; it is published."},
    "output_dir": {"default": "public-model", "help": "Directory for the pipeline and its card."},
    "seed": {"help": "Seed of initial weights, batches and samples."},
    "mixed_precision": {"help": "Number type of forward and backward passes; by default that of `accelerate launch`."},
    "pretrained_model_name_or_path": {
        "help": "Directory or Hub id of a public pipeline or UNet2DModel to continue with, in place of random weights; "
        "it brings its network and, if it is a pipeline, its noise scheduler."
    },
    "vae_name_or_path": {
        "help": "Directory or Hub id of a public autoencoder (AutoencoderKL, AutoencoderTiny or VQModel, or a pipeline "
        "with one): the network is then one of its latents. A start that has an autoencoder brings its own."
    },
    "train_batch_size": {"default": 128, "help": "Images per step, over all processes.", "group": "Training"},
    "max_train_steps": {"default": 20_000, "help": "Training steps.", "group": "Training", "limits": at_least(1)},
    "learning_rate": {"default": 2e-4, "help": "Peak learning rate of Adam.", "group": "Training"},
    "label_dropout": {
        "help": "Probability of dropping an image's label, which trains the null class: for guidance, and for private "
        "runs, whose classes begin as this class (paper: 0.1)."
    },
    "random_flip": {"help": "Mirror half of the images."},
    "lr_scheduler": {"help": "Learning-rate schedule."},
    "checkpointing_steps": {"help": "Steps between two checkpoints, kept in private/."},
    "logger": {"help": "Where to log the loss and the learning rate."},
    "hub_license": {"group": "Card"},
    "hub_dataset_name": {"help": "Name of the images, for the card; a link if it is a Hub id.", "group": "Card"},
}


def script_options() -> list[Option]:
    """The options of images, network and noise scheduler, as they are declared for private runs."""
    options = declared_options(ScriptArguments)
    return [
        option
        for option in options
        if option.name in DATA or option.name == "preset" or option.group in (NETWORK, SCHEDULER)
    ]


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the flags, in groups."""
    parser = argparse.ArgumentParser(
        prog="dp-curriculum pretrain",
        usage="%(prog)s [flags]",
        description=(__doc__ or "").splitlines()[0],
        allow_abbrev=False,
    )
    training = [option for option in declared_options(DPCurriculumConfig) if option.name in PRETRAINING_OPTIONS]
    options = [*script_options(), *training]
    add_flags(parser, [replace(option, **CHANGES.get(option.name, {})) for option in options])
    return parser


def parse_arguments(arguments: Sequence[str]) -> tuple[ScriptArguments, DPCurriculumConfig]:
    """Parse the command line; a preset changes the defaults of network, noise scheduler, loss and samples.

    Args:
        arguments (`Sequence[str]`): The flags.

    Returns:
        `tuple[ScriptArguments, DPCurriculumConfig]`: The images, network and noise scheduler, and the config.

    Raises:
        InputError: If a flag or a preset does not exist, or a value is out of range.
    """
    parser, arguments = make_parser(), with_underscores(arguments)
    if (preset := parse_flags(parser, arguments).preset) is not None:
        declared = [*script_options(), *declared_options(DPCurriculumConfig)]
        taken = {option.name for option in declared if option.group in (NETWORK, SCHEDULER, TRAINING, SAMPLES)}
        parser.set_defaults(**{name: value for name, value in load_preset(preset).items() if name in taken})
    values = vars(parser.parse_args(arguments))
    script = ScriptArguments(**{option.name: values.pop(option.name) for option in script_options()})
    config = DPCurriculumConfig(**values)
    script.check_with(config)
    CHANGES["max_train_steps"]["limits"].check("max_train_steps", config.max_train_steps)
    return script, config


def check_public(script: ScriptArguments) -> None:
    """Refuse images that a model of sensitive records has made, since what is made of them is no more public.

    Args:
        script (`ScriptArguments`): The options that name the images.

    Raises:
        InputError: If a privacy.json belongs to the images.
        HubError: If the Hub is out of reach.
    """
    from ..sampling.saved_pipelines import find_privacy_json

    name = script.train_data_dir or script.dataset_name or ""
    places = [local_path(name), local_path(name).absolute().parent]
    if script.dataset_name is None:
        found = any((place / "privacy.json").is_file() for place in places)
    else:
        found = name != "digits" and find_privacy_json(name, "dataset") is not None
    if found:
        raise InputError(
            f"{name} has a privacy.json, as images made by a model of sensitive records have, and what is trained on "
            "them counts as that run does: give public images."
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Load the public images, train, save and print a summary; return the exit status."""
    script, config = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    check_logger(config.logger)
    check_names(script, config)

    from accelerate.utils import set_seed

    from ..pretraining import pretrain
    from ..training.accelerator import check_accelerator
    from ..training.autoencoder import latent_info
    from ..training.interruption import RunStatus
    from ..training.starting_point import find_starting_point
    from ..training.summary import summarize_public

    check_accelerator(config)  # before images are decoded, which may take long
    check_public(script)
    vae = config.vae_name_or_path
    noise_scheduler, start = scheduler_of(script, latents=vae is not None), None
    if config.pretrained_model_name_or_path is not None:
        start = find_starting_point(config.pretrained_model_name_or_path, vae)
        noise_scheduler = start.noise_scheduler or noise_scheduler
    # What the list of classes and the number of files tell of public images is public.
    dataset = script.load(accept_found_classes=True, accept_left_out_files=True)
    info = dataset.info
    if is_main_process():
        classes = "without labels" if info.num_classes is None else f"in {info.num_classes} classes"
        size = f"{info.resolution}x{info.resolution}x{info.num_channels}"
        print(f"Training on {info.num_units:,} public images of {size} {classes}, WITHOUT privacy")
        for title, text in dataset.provenance.items():
            print(f"  {title:<15} {text}")
    set_seed(config.seed)
    network_info = info if vae is None else latent_info(vae, info)
    unet = network_of(script, network_info) if start is None else start.load(info)
    status = pretrain(unet, noise_scheduler, config, dataset)
    if status is RunStatus.INTERRUPTED:
        raise KeyboardInterrupt
    if status is RunStatus.FINISHED and is_main_process():
        print(summarize_public(Path(config.output_dir), info))
    return 0


if __name__ == "__main__":
    from ..cli import run

    sys.exit(run("pretrain"))
