"""Ordinary training on public images, whose result is a public start for runs on sensitive records.

There is no mechanism and no ledger here, and so no privacy: whatever the images show may be read from the model.
"""

import json
import logging
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, EDMEulerScheduler, UNet2DModel
from tqdm.auto import tqdm

from .arithmetic import own_arithmetic
from .config import DPCurriculumConfig
from .data.image_dataset import ImageDataset, to_image_dataset
from .distributed import check_all_equal, run_on_main_process, set_on_any_process, share_parameters
from .errors import InputError, TrainingError
from .files import check_outside, check_room, storage_errors
from .gradients.losses import DenoisingLoss
from .gradients.precision import Precision
from .gradients.trials import random_draws, seeded
from .mechanisms.releases import ReleasedImages
from .run_paths import RunPaths, check_output_dir
from .sampling.preview import Preview
from .sampling.round_trip import check_round_trip
from .sharing.artifact import write_pipeline
from .sharing.public_card import make_public_card
from .training.accelerator import make_accelerator, start_trackers
from .training.autoencoder import Autoencoder
from .training.checkpointing import Checkpoints, run_identity
from .training.heartbeat import stop_watching
from .training.interruption import RunStatus, TerminationRequest
from .training.model_checks import check_network, check_not_trained, check_sample_size, check_type
from .training.optimization import make_loss
from .training.run_directory import make_directories
from .training.stages import WarmUpStage
from .training.starting_point import check_starting_point, find_autoencoder_of_run, starting_point_of
from .training.warm_up import start_warm_up, warm_up


if TYPE_CHECKING:
    import datasets


logger = logging.getLogger(__name__)
RESUME = "resume with the same settings and `resume_from_checkpoint` latest"


class PublicImages(ReleasedImages):
    """Public images, held as bytes: no mechanism has to release them."""

    name = "public_images"

    def batch(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Some of the images, as those of [`ReleasedImages`]."""
        images, labels = super().batch(indices)
        return images.float() / 255, labels


@own_arithmetic()
def pretrain(
    unet: UNet2DModel,
    noise_scheduler: DDPMScheduler | EDMEulerScheduler,
    args: DPCurriculumConfig,
    train_dataset: "datasets.Dataset | ImageDataset",
) -> RunStatus:
    """Train a network on public images WITHOUT privacy, and save it as a pipeline that private runs can start from.

    Loss, average, precision and checkpoints are those of the warm-up of a [`DPCurriculumTrainer`]. The directory of the
    pipeline has no privacy.json, and its card says that the model is not private. Never give images from which a
    private run will learn: that run would publish what this one has learned from them, and count nothing for it.

    Args:
        unet (`UNet2DModel`): The network, as for a [`DPCurriculumTrainer`]; it is trained in place.
        noise_scheduler (`DDPMScheduler` or `EDMEulerScheduler`): The noise schedule and the prediction type.
        args (`DPCurriculumConfig`):
            The hyper-parameters. `max_train_steps`, `train_batch_size` and `learning_rate` (of Adam) are those of this
            training; the options of output, execution, checkpoints, loss, schedule, average and samples mean the same
            as in a private run. All others have no effect.
        train_dataset (`datasets.Dataset` or `ImageDataset`): The public images, with or without labels.

    Returns:
        `RunStatus`: `FINISHED`, with the pipeline in `output_dir`; or `TERMINATED` or `INTERRUPTED`, with a checkpoint.

    Raises:
        InputError: If an argument cannot be used; no file has been written by then.
        TrainingError: If training diverges.

    Examples:
        >>> import torch
        >>> from diffusers_dp_curriculum import DPCurriculumConfig, ImageDataset, build_scheduler, build_unet, pretrain
        >>> images = torch.randint(0, 256, (60, 3, 8, 8), dtype=torch.uint8)
        >>> public = ImageDataset(images, torch.arange(60) % 2, class_names=["ant", "bee"])
        >>> unet = build_unet(8, 3, num_classes=2, block_out_channels=(8,))
        >>> config = DPCurriculumConfig("public-model", max_train_steps=2, train_batch_size=4, num_inference_steps=2)
        >>> pretrain(unet, build_scheduler(), config, public)
        <RunStatus.FINISHED: 'finished'>
    """
    check_type(unet)
    check_not_trained(unet)
    _check_public(unet, args)
    accelerator, paths = make_accelerator(args), RunPaths(Path(args.output_dir))
    run_on_main_process(lambda: check_output_dir(paths.output_dir, args.resume_from_checkpoint))
    found = find_autoencoder_of_run(unet, args)
    size = check_sample_size(unet) * (1 if found is None else found.factor)
    dataset = to_image_dataset(train_dataset, resolution=size)
    if not dataset.is_decoded:
        raise InputError("The images were loaded for a plan alone: load them with `decode` to train.")
    if dataset.directory is not None:
        check_outside(paths.output_dir, dataset.directory)
    autoencoder = None if found is None else found.load(dataset.info, accelerator.device)
    network_info = dataset.info if autoencoder is None else autoencoder.latent_info
    check_network(unet, network_info, "images" if autoencoder is None else "latents")
    if args.max_train_steps == 0:
        raise InputError("`max_train_steps` is 0: give at least 1.")
    unet = unet.to(accelerator.device)
    if args.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    loss = make_loss(noise_scheduler, args, dataset.num_classes, latents=autoencoder is not None)
    preview = Preview(noise_scheduler, dataset.info, args, None if autoencoder is None else autoencoder.model)
    with seeded(accelerator.device, args.seed):
        preview.check(unet)
        rows = random_draws(loss, network_info.image_shape, 2, 2, accelerator.device).flatten()
        run_on_main_process(lambda: check_round_trip(unet, noise_scheduler, rows))
    identity = run_identity(args, unet, noise_scheduler, public_images=True, autoencoder=autoencoder)
    check_all_equal(json.dumps(identity) + dataset.checksum(b""), "settings, network and images")
    checkpoints = Checkpoints(paths.checkpoints, identity, dataset.checksum, args.checkpoints_total_limit)
    images = PublicImages(dataset.images, dataset.labels, class_names=dataset.class_names)
    status = _train(unet, images, args, checkpoints, paths, loss, accelerator, autoencoder)
    if status is RunStatus.FINISHED:
        start = starting_point_of(unet)
        pipeline = preview.pipeline(unet)
        words, hub_id = (None, None) if start is None else (start.in_words, start.hub_id)
        card = make_public_card(args, pipeline, dataset.info, accelerator.mixed_precision, words, hub_id)
        with storage_errors(paths.output_dir, f"{RESUME} to save again"):
            run_on_main_process(lambda: write_pipeline(paths, pipeline, card, {"samples": preview.grid(unet)}))
    stop_watching()
    return status


def _check_public(unet: UNet2DModel, args: DPCurriculumConfig) -> None:
    """Refuse a network that comes from a run on sensitive records, or from another place than the config names."""
    start = starting_point_of(unet)
    if start is not None and start.runs:
        raise InputError(
            f"{start.name} has learned from sensitive records, so that what is made of it is not public: start from a "
            "public model, or from random weights."
        )
    check_starting_point(unet, args, prior_runs=())


def _train(
    unet: UNet2DModel,
    images: PublicImages,
    args: DPCurriculumConfig,
    checkpoints: Checkpoints,
    paths: RunPaths,
    loss: DenoisingLoss,
    accelerator: Accelerator,
    autoencoder: Autoencoder | None,
) -> RunStatus:
    """Take all steps, from the beginning or from a checkpoint; at the end the network has the averaged weights."""
    stage = WarmUpStage(
        PublicImages,
        None,
        train_steps=args.max_train_steps,
        batch_size=args.train_batch_size,
        batch_size_option="train_batch_size",
        learning_rate=args.learning_rate,
        learning_rate_option="learning_rate",
        augmentation="none",
    )
    share_parameters(unet)  # before the average begins with them
    state, which = start_warm_up(unet, stage, args), args.resume_from_checkpoint
    checkpoint = None if which is None else run_on_main_process(lambda: checkpoints.load(which))
    if checkpoint is not None:
        state.load_state_dict(checkpoint.state)
    room = checkpoints.bytes_to_write(unet, stage.train_steps, args.checkpointing_steps)
    remedy = "set `checkpoints_total_limit` or raise `checkpointing_steps`"
    run_on_main_process(lambda: check_room(paths.output_dir, room, "The checkpoints", remedy))
    run_on_main_process(lambda: make_directories(paths))
    run_on_main_process(checkpoints.remove_partial)

    def save_checkpoint() -> None:
        without_effect = [stage.learning_rate_option] if state.step == 0 else []
        run_on_main_process(lambda: checkpoints.save(state.step, state, None, None, without_effect))

    try:
        if args.logger is not None:
            start_trackers(accelerator, args)
        with (
            TerminationRequest() as termination,
            storage_errors(paths.output_dir, RESUME),
            seeded(accelerator.device, args.seed),
            tqdm(
                initial=state.step,
                total=stage.train_steps,
                desc="Training on public images",
                disable=not accelerator.is_main_process,
            ) as progress,
        ):
            if checkpoint is None:
                save_checkpoint()  # of the initial weights, to which a training that diverges goes back

            def after_step(error: torch.Tensor) -> bool:
                progress.update()
                progress.set_postfix(loss=f"{error.item():.3f}")
                learning_rate = state.optimizer.param_groups[0]["lr"]
                accelerator.log({"loss": error.item(), "learning_rate": learning_rate}, step=state.step)
                (terminated,) = set_on_any_process(termination.signal is not None)
                if terminated or state.step % args.checkpointing_steps == 0 or state.step == stage.train_steps:
                    save_checkpoint()
                return terminated

            try:
                precision = Precision.of(accelerator)
                finished = warm_up(state, loss, images, stage, args, precision, after_step, autoencoder)
            except TrainingError:  # it diverged: resuming its checkpoints would diverge again
                run_on_main_process(lambda: checkpoints.remove_steps_of(stage.name, 0))
                raise
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
    if finished:
        return RunStatus.FINISHED
    if accelerator.is_main_process:
        logger.warning("Interrupted after %s steps: %s.", state.step, RESUME)
    (ctrl_c,) = set_on_any_process(termination.signal == signal.SIGINT)
    return RunStatus.INTERRUPTED if ctrl_c else RunStatus.TERMINATED
