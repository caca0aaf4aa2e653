"""The two stages in order. What is computed in them lives in the mechanisms' own files."""

import json
import os
import time
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend, set_seed
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from tqdm.auto import tqdm

from .central_images import CentralImageDataset
from .compilation import CompiledGradients
from .config import DPCurriculumConfig
from .data import to_image_dataset
from .dp_sgd import DPSGD
from .errors import InputError, confidential_errors
from .ledger import PrivacyLedger
from .losses import DenoisingLoss, NoiseDraws, denoising_error
from .model_card import make_model_card
from .per_record_gradients import check_records_stay_apart, choose_mode, per_record_gradients
from .pictures import image_grid
from .pipeline import ClassConditionalPipeline
from .planning import Plan, make_plan
from .randomness import MechanismRandomness
from .warm_up import make_ema, warm_up


GRID_COLUMNS = 10
MAX_GRID_ROWS = 20

# The networks that hold something of sensitive records already.
_TRAINED: "weakref.WeakSet[torch.nn.Module]" = weakref.WeakSet()


class DPCurriculumTrainer:
    """Train a `UNet2DModel` on sensitive images from easy to hard, under one (epsilon, delta).

    "From Easy to Hard" (DP-FETA, S&P 2025, arXiv:2504.01395): DP central images are queried, the network warms up on
    them, and DP-SGD spends the rest of the budget on the records themselves. Making a trainer checks everything and
    plans the budget; it reads no record through a mechanism and writes nothing.

    Args:
        unet (`UNet2DModel`):
            The network. With classes it has `num_class_embeds = number of classes + 1`, the last being the null class.
        noise_scheduler (`DDPMScheduler`): Noise schedule and prediction type; published with the pipeline.
        args (`DPCurriculumConfig`): The hyper-parameters.
        train_dataset (`datasets.Dataset` or `ImageDataset`): The sensitive records.

    Raises:
        InputError: If anything of it cannot be used, before any privacy is spent and any file is written.

    Example:

    ```py
    >>> trainer = DPCurriculumTrainer(unet=unet, noise_scheduler=DDPMScheduler(), args=config, train_dataset=dataset)
    >>> trainer.train()
    >>> trainer.save_pipeline()
    ```
    """

    def __init__(self, unet: UNet2DModel, noise_scheduler: DDPMScheduler, args: DPCurriculumConfig, train_dataset):
        if unet in _TRAINED:
            raise InputError(
                "This UNet has learned from sensitive records in another run, whose cost this one would not count: "
                "make a new one."
            )
        self.args = args
        self.output_dir = Path(args.output_dir)
        check_output_dir(self.output_dir)
        self.accelerator = Accelerator(mixed_precision=args.mixed_precision)
        if self.accelerator.num_processes > 1:
            raise InputError(
                f"Training runs in one process, not {self.accelerator.num_processes}: launch it with `accelerate "
                "launch --num_processes 1`."
            )
        set_seed(args.seed)
        self.records = to_image_dataset(train_dataset, resolution=unet.config.sample_size)
        _check_unet(unet, self.records)
        self.unet = unet.to(self.accelerator.device)
        self.noise_scheduler = noise_scheduler
        self.loss = DenoisingLoss(
            noise_scheduler,
            timestep_sampling=args.timestep_sampling,
            noise_level_mean=args.noise_level_mean,
            noise_level_std=args.noise_level_std,
            label_dropout=args.label_dropout,
            null_label=self.records.num_classes,
            random_flip=args.random_flip,
        )
        image_shape = tuple(self.records.images.shape[1:])
        conditional = self.records.num_classes is not None
        check_records_stay_apart(self.unet, image_shape, conditional)
        self.grad_sample_mode = choose_mode(
            self.unet, image_shape, conditional, args.noise_multiplicity, args.grad_sample_mode
        )
        self.gradients_of = self._make_gradients_of()
        if self.records.num_classes is None and args.guidance_scale != 1:
            raise InputError("Without classes there is nothing to guide to: leave guidance_scale at 1.")
        self._check_sampling()
        self.plan: Plan = make_plan(args, image_shape, len(self.records))
        self.randomness = MechanismRandomness(args.secure_rng, args.insecure_noise_seed)
        self.ledger: PrivacyLedger | None = None
        self.central_images: CentralImageDataset | None = None
        self.finished = False

    def train(self) -> None:
        """Print the plan, release the central images, warm up on them, and train by DP-SGD.

        Raises:
            TrainingError: If something breaks on the way; what it says is kept in `output_dir/private`.
        """
        if self.ledger is not None:
            raise InputError("This trainer has run already, and its budget is spent: make a new one with a new UNet.")
        classes = "" if self.records.num_classes is None else f" in {self.records.num_classes} classes"
        self.accelerator.print(
            f"Plan for {len(self.records):,} records of {self.records.resolution}x{self.records.resolution}"
            f"x{self.records.num_channels}{classes or ', without labels'}\n{self.plan}\n"
            f"  gradients       {self.grad_sample_mode}, {self.args.noise_multiplicity} draws a record\n"
            f"  expected time   {_duration(self._expected_seconds())}"
        )
        check_output_dir(self.output_dir)
        try:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            (self.output_dir / "private").mkdir(mode=0o700)
        except OSError as error:
            raise InputError(f"{self.output_dir} cannot be created ({error.strerror}): choose another.") from error
        journal = self.output_dir / "private" / "journal.jsonl"
        self.ledger = PrivacyLedger(
            self.args.target_delta, self.args.accountant, journal, target_epsilon=self.args.target_epsilon
        )
        _TRAINED.add(self.unet)
        with confidential_errors(self.output_dir / "private" / "traceback.txt"):
            if self.plan.central is not None:
                self.central_images = self._release_central_images()
                self._warm_up()
            self._train_by_dp_sgd()
        self.finished = True

    def save_pipeline(self) -> Path:
        """Write what may be published to `output_dir`: pipeline, privacy.json, model card and pictures.

        Returns:
            `Path`: The directory, which `DiffusionPipeline.from_pretrained` loads.

        Raises:
            InputError: If the model has not been trained.
        """
        if not self.finished:
            raise InputError("There is no trained model to save yet: call train() first, and let it finish.")
        self.ledger.mark_visible("pipeline")
        privacy = self.ledger.statement(len(self.records))
        (self.output_dir / "privacy.json").write_text(json.dumps(privacy, indent=2) + "\n", encoding="utf-8")
        self.unet.register_to_config(_name_or_path="")  # where it was loaded from is nobody else's business
        pipeline = self._pipeline()
        pipeline.save_pretrained(self.output_dir)
        if self.central_images is not None:
            self.central_images.to_grid().save(self.output_dir / "central_images.png")
            self.central_images.save_to_disk(self.output_dir / "private" / "central_images")
        network = {
            "resolution": self.records.resolution,
            "channels": self.records.num_channels,
            "parameters": f"{self.unet.num_parameters():,}",
            "prediction_type": self.noise_scheduler.config.prediction_type,
            "beta_schedule": self.noise_scheduler.config.beta_schedule,
        }
        card = make_model_card(privacy, self.args, network, self.records.class_names, self.central_images is not None)
        card.save(self.output_dir / "README.md")
        self._sample_grid(pipeline).save(self.output_dir / "samples.png")
        return self.output_dir

    def summary(self) -> str:
        """What was made and where it is, for a person to read when [`save_pipeline`] is done."""
        trust = ", trust_remote_code=True" if self.records.num_classes is not None else ""
        headline = f"Published files are in {self.output_dir} (share all of it but private/):"
        if self.ledger.not_private:
            headline = f"NOT PRIVATE, share nothing of {self.output_dir}: {self.ledger.not_private}."
        lines = [
            headline,
            f"  privacy         epsilon {self.ledger.epsilon():.3f} at delta {self.ledger.delta:g}, see privacy.json",
            "  pictures        samples.png" + (", central_images.png" if self.central_images is not None else ""),
            "  model card      README.md",
            f'  to sample       DiffusionPipeline.from_pretrained("{self.output_dir}"{trust})',
        ]
        return "\n".join(lines)

    def _release_central_images(self) -> CentralImageDataset:
        args = self.args
        return CentralImageDataset.from_dataset(
            self.records,
            images_per_class=args.central_images_per_class,
            statistic=args.central_statistic,
            noise_multiplier=args.central_noise_multiplier,
            sample_rate=args.central_sample_rate,
            ledger=self.ledger,
            pool_factor=args.central_pool_factor,
            mode_bins=args.central_mode_bins,
            randomness=self.randomness,
        )

    def _warm_up(self) -> None:
        with tqdm(total=self.args.central_train_steps, desc="Stage 1, central images") as progress:
            progress.set_postfix(epsilon=f"{self.plan.epsilon_spent(0):.2f}")
            warm_up(self.unet, self.loss, self.central_images, self.args, self.accelerator.autocast, progress.update)

    def _train_by_dp_sgd(self) -> None:
        args = self.args
        optimizer = torch.optim.AdamW(
            [p for p in self.unet.parameters() if p.requires_grad],
            lr=args.learning_rate,
            betas=(args.adam_beta1, args.adam_beta2),
            weight_decay=args.adam_weight_decay,
            eps=args.adam_epsilon,
        )
        lr_scheduler = get_scheduler(
            args.lr_scheduler,
            optimizer,
            num_warmup_steps=args.lr_warmup_steps,
            num_training_steps=args.max_train_steps,
        )
        ema = make_ema(self.unet, args)
        self.unet.train()
        steps = self.ledger.affordable_steps(self.plan.dp_sgd)
        if steps < self.plan.dp_sgd.steps:
            self.accelerator.print(
                f"DP-SGD stops after {steps} of {self.plan.dp_sgd.steps} steps: the next one would pass the target "
                f"epsilon {args.target_epsilon:g}."
            )
        if steps == 0:
            return
        dp_sgd = DPSGD(
            self.unet,
            optimizer,
            self.loss,
            self.records,
            replace(self.plan.dp_sgd, steps=steps),
            self.ledger,
            noise_multiplicity=args.noise_multiplicity,
            max_physical_batch_size=args.max_physical_batch_size,
            gradients_of=self.gradients_of,
            randomness=self.randomness,
        )
        progress = tqdm(range(1, steps + 1), desc="Stage 2, DP-SGD")
        for step in progress:
            dp_sgd.step()
            lr_scheduler.step()
            ema.step(self.unet.parameters())
            progress.set_postfix(epsilon=f"{self.plan.epsilon_spent(step):.2f}")
        if args.use_ema:
            ema.copy_to(self.unet.parameters())

    def _make_gradients_of(self):
        """Per-record gradients as the configuration and `accelerate launch --dynamo_backend` ask for them."""
        mode, autocast = self.grad_sample_mode, self.accelerator.autocast
        dynamo = self.accelerator.state.dynamo_plugin
        if mode == "folded" and dynamo.backend != DynamoBackend.NO:
            if self.accelerator.device.type == "cpu" and self.accelerator.mixed_precision != "no":
                # PyTorch's compiler takes the group normalisation's gradient for float32 there, which it is not.
                raise InputError("On CPU only float32 can be compiled: leave out --dynamo_backend or bf16.")
            num_records = min(self.args.max_physical_batch_size, len(self.records))
            return CompiledGradients(self.unet, num_records, autocast, **dynamo.to_kwargs())
        return partial(per_record_gradients, self.unet, mode=mode, autocast=autocast)

    def _pipeline(self) -> DDPMPipeline | ClassConditionalPipeline:
        self.unet.eval()
        if self.records.class_names is None:
            return DDPMPipeline(unet=self.unet, scheduler=self.noise_scheduler)
        id2label = dict(enumerate(self.records.class_names))
        return ClassConditionalPipeline(unet=self.unet, scheduler=self.noise_scheduler, id2label=id2label)

    def _sample(self, pipeline, label: int, count: int, num_inference_steps: int, generator) -> torch.Tensor:
        """`count` images of a class, or of an unconditional model: `(count, channels, height, width)` in [0, 1]."""
        options = {"num_inference_steps": num_inference_steps, "generator": generator}
        if self.records.num_classes is None:
            images = pipeline(batch_size=count, output_type="np", **options).images
            return torch.from_numpy(images).permute(0, 3, 1, 2)
        guidance_scale = self.args.guidance_scale
        return pipeline(class_labels=[label] * count, guidance_scale=guidance_scale, output_type="pt", **options).images

    def _sample_grid(self, pipeline):
        generator = torch.Generator(self.accelerator.device).manual_seed(self.args.seed)
        rows = min(self.records.num_classes or GRID_COLUMNS, MAX_GRID_ROWS)
        pipeline.set_progress_bar_config(disable=True)
        samples = [
            self._sample(pipeline, label, GRID_COLUMNS, self.args.num_inference_steps, generator).cpu()
            for label in tqdm(range(rows), desc="Sampling")
        ]
        return image_grid(torch.cat(samples), GRID_COLUMNS)

    def _check_sampling(self) -> None:
        """Draw one image in one step: what cannot be sampled must not be trained."""
        steps, most = self.args.num_inference_steps, self.noise_scheduler.config.num_train_timesteps
        if steps > most:
            raise InputError(f"num_inference_steps {steps} is above the {most} timesteps of the schedule: give fewer.")
        try:
            pipeline = self._pipeline()
            pipeline.set_progress_bar_config(disable=True)
            self._sample(pipeline, 0, 1, 1, None)
        except Exception as error:
            raise InputError(
                f"The pipeline of this UNet and noise scheduler cannot be sampled ({error}): correct one of them."
            ) from error

    def _expected_seconds(self) -> float:
        """Time one physical batch of DP-SGD and one warm-up step on random data, and extrapolate."""
        args, device = self.args, self.accelerator.device
        shape = self.records.images.shape[1:]
        self.unet.train()  # as it will be in earnest, also for a compiler, which traces the network here

        def seconds(batch_size: int, noise_multiplicity: int, work) -> float:
            images = torch.rand(batch_size, *shape, device=device) * 2 - 1
            labels = torch.zeros(batch_size, dtype=torch.int64, device=device)
            durations = []
            for _ in range(3):  # the first one also pays for the allocations
                start = time.perf_counter()
                work(self.loss.draw(images, labels, noise_multiplicity))
                if device.type == "cuda":
                    torch.cuda.synchronize()
                durations.append(time.perf_counter() - start)
            return min(durations)

        def warm_up(draws: NoiseDraws):
            denoising_error(self.unet, draws.flatten()).backward()
            self.unet.zero_grad(set_to_none=True)

        physical = min(args.max_physical_batch_size, args.train_batch_size, 16)
        private = seconds(physical, args.noise_multiplicity, self.gradients_of)
        total = args.max_train_steps * args.train_batch_size / physical * private
        if self.plan.central is not None:
            total += args.central_train_steps * seconds(args.central_batch_size, 1, warm_up)
        return total


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"about {seconds / length:.0f} {unit}"
    return f"about {seconds:.0f} seconds"


def check_output_dir(output_dir: Path) -> None:
    """Refuse a directory that a run must not write to.

    Raises:
        InputError: If `output_dir` is a file, holds anything, or cannot be created.
    """
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise InputError(
            f"{output_dir} already holds another run or other files, which would be lost or mixed up: choose another "
            "--output_dir, or move it away."
        )
    existing = next(path for path in (output_dir.absolute(), *output_dir.absolute().parents) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK)):
        raise InputError(f"{output_dir} cannot be created in {existing}: choose another --output_dir.")


def _check_unet(unet: UNet2DModel, records) -> None:
    config = unet.config
    halvings = len(config.block_out_channels) - 1
    if not isinstance(config.sample_size, int):
        raise InputError(f"The UNet has sample_size={config.sample_size}: make it with that of the images.")
    if config.sample_size % 2**halvings:
        raise InputError(
            f"A resolution of {config.sample_size} cannot be halved {halvings} times, as the UNet's "
            f"{halvings + 1} levels need: choose a multiple of {2**halvings}, or a network with fewer levels."
        )
    if {config.in_channels, config.out_channels} != {records.num_channels}:
        raise InputError(
            f"The images have {records.num_channels} channels, and the UNet takes {config.in_channels} and gives "
            f"{config.out_channels}: make a UNet with in_channels=out_channels={records.num_channels}."
        )
    wanted = None if records.num_classes is None else records.num_classes + 1
    if config.num_class_embeds != wanted:
        raise InputError(
            f"The UNet has num_class_embeds={config.num_class_embeds} where the data set needs {wanted} (its classes "
            "and the null class; None without classes): make the UNet with that."
        )
    if not any(p.requires_grad for p in unet.parameters()):
        raise InputError("No parameter of the UNet is trainable: set requires_grad of those that should be.")
    if any(p.dtype != torch.float32 for p in unet.parameters()):
        raise InputError("The UNet is not in float32, which DP arithmetic needs: convert it with unet.float().")
