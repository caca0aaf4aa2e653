"""The two stages in order. What is computed in them lives in the mechanisms' own files."""

import json
import threading
import weakref
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from diffusers import DDPMScheduler, EDMEulerScheduler, UNet2DModel
from huggingface_hub import CommitInfo
from tqdm.auto import tqdm

from .arithmetic import own_arithmetic
from .config import DPCurriculumConfig
from .data.image_dataset import to_image_dataset
from .distributed import any_process, check_all_equal, from_main, share_parameters
from .errors import InputError, confidential_errors
from .gradients.losses import DenoisingLoss, NoiseDraws
from .gradients.per_record_gradients import LOSS_SCALES
from .gradients.selection import make_gradients_of
from .mechanisms.central_images import CentralImageDataset
from .mechanisms.dp_sgd import DPSGD
from .mechanisms.randomness import MechanismRandomness
from .privacy.counted_runs import all_mechanisms
from .privacy.ledger import PrivacyLedger
from .sampling.preview import Sampler
from .sharing.cards import update as update_card
from .sharing.hub import push_model
from .sharing.model_card import make_model_card
from .training.accelerator import make_accelerator
from .training.checkpointing import Checkpoint, Checkpoints, TrainingState, records_checksum, run_identity
from .training.estimates import estimate
from .training.interruption import TerminationRequest
from .training.model_checks import check_network, check_sample_size
from .training.optimization import start_dp_sgd
from .training.planning import Plan, make_plan
from .training.run_directory import check_output_dir, find_prior_runs, note_errors_for_resume, open_ledger
from .training.sensitive_curves import SensitiveCurves
from .training.summary import summarize
from .training.warm_up import start_warm_up, warm_up


# What the card says of the noise scheduler, whichever it is.
OF_THE_SCHEDULE = ("prediction_type", "beta_schedule", "sigma_data", "sigma_min", "sigma_max")

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
            Its weights must have learned nothing from these records, whose cost would not be counted.
        noise_scheduler (`DDPMScheduler` or `EDMEulerScheduler`):
            Noise schedule and prediction type, which decide the loss; published with the pipeline.
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

    @own_arithmetic()
    def __init__(
        self,
        unet: UNet2DModel,
        noise_scheduler: DDPMScheduler | EDMEulerScheduler,
        args: DPCurriculumConfig,
        train_dataset: Any,
    ):
        if unet in _TRAINED:
            raise InputError(
                "This UNet has learned from sensitive records in another run, whose cost this one would not count: "
                "make a new one."
            )
        self.args = args
        self.output_dir = Path(args.output_dir)
        self.accelerator = make_accelerator(args)
        from_main(lambda: check_output_dir(self.output_dir, args.resume_from_checkpoint))
        self.prior_runs = from_main(lambda: find_prior_runs(args))
        set_seed(args.seed)
        self.records = to_image_dataset(train_dataset, resolution=check_sample_size(unet))
        check_network(unet, self.records)
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
        if args.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.image_shape = tuple(self.records.images.shape[1:])
        self.loss_scale = LOSS_SCALES[self.accelerator.mixed_precision]
        self.grad_sample_mode, self.gradients_of = make_gradients_of(
            self.unet, self.loss, tuple(self.records.images.shape), args, self.accelerator
        )
        self.sampler = Sampler(noise_scheduler, self.records, args)
        self.sampler.check(self.unet)
        identity = run_identity(args, unet, noise_scheduler)
        check_all_equal(json.dumps(identity) + records_checksum(self.records, b""), "settings, network and records")
        self.checkpoints = Checkpoints(
            self.output_dir / "private" / "checkpoints", identity, self.records, args.checkpoints_total_limit
        )
        self.checkpoint: Checkpoint | None = None
        if (which := args.resume_from_checkpoint) is not None:
            self.checkpoint = from_main(lambda: self.checkpoints.load(which))
        if self.checkpoint is not None:
            self.plan: Plan = self.checkpoint.plan
        else:
            self.plan = make_plan(args, self.image_shape, len(self.records), all_mechanisms(self.prior_runs))
        self.randomness = MechanismRandomness(args.secure_rng, args.insecure_noise_seed)
        self._ledger: PrivacyLedger | None = None
        self.central_images: CentralImageDataset | None = None
        self.sensitive_curves = SensitiveCurves(self.output_dir)
        self.finished = False

    @property
    def ledger(self) -> PrivacyLedger:
        """What the run has released; it exists from the beginning of [`train`]."""
        if self._ledger is None:
            raise InputError("Nothing has been released yet, and there is no ledger: call train() first.")
        return self._ledger

    @own_arithmetic()
    def train(self) -> None:
        """Print the plan, release the central images, warm up on them, and train by DP-SGD.

        With `resume_from_checkpoint` it continues from the checkpoint. On SIGTERM and on Ctrl-C it writes one after the
        current step and says how to resume; then SIGTERM ends the process with exit code 0, and Ctrl-C raises
        `KeyboardInterrupt`. However this call ends, all steps that were taken count for good.

        Raises:
            TrainingError: If something breaks on the way; what it says is kept in `output_dir/private`.
            KeyboardInterrupt: On Ctrl-C; pressed twice, it does not wait for the current step.
        """
        if self._ledger is not None:
            raise InputError("This trainer has run already, and its budget is spent: make a new one with a new UNet.")
        self.print_plan()
        details = self.output_dir / "private" / f"traceback-{self.accelerator.process_index}.txt"
        try:
            self._open_ledger()
            # Left from the right: nothing of an error is written down before the steps that led to it count for good,
            # and until then Ctrl-C is only noted.
            with TerminationRequest() as self.termination, confidential_errors(details), self._unseen():
                self._run_stages()
        except BaseException:
            if self._ledger is not None:  # a new trainer that resumes the run, in a notebook for instance, needs it
                self._ledger.close()
            raise
        finally:
            for tracker in self.accelerator.trackers:
                tracker.finish()
        self.finished = True

    def _unseen(self) -> AbstractContextManager[None]:
        """Nothing of a step leaves the process before it is marked as visible, unless it can be watched all along.

        Curves are written with every step; and if this is not the main thread, whoever started it can look at the
        network at any time.
        """
        if not self.accelerator.is_main_process:
            return note_errors_for_resume(self.output_dir, self.accelerator.process_index)
        in_main_thread = threading.current_thread() is threading.main_thread()
        watched = self.args.logger is not None or self.args.log_sensitive_curves or not in_main_thread
        return nullcontext() if watched else self.ledger.unseen()

    def _run_stages(self) -> None:
        _TRAINED.add(self.unet)
        share_parameters(self.unet)
        if self.args.logger is not None:
            plain = {name: str(value) for name, value in self.args.hyper_parameters().items()}
            self.accelerator.init_trackers("dp-curriculum", config=plain)
        if self.plan.central is not None:
            self._warm_up()
        self._train_by_dp_sgd()

    @own_arithmetic()
    def print_plan(self) -> None:
        """Print what the run will do and cost; spends no privacy and writes nothing."""
        classes = "" if self.records.num_classes is None else f" in {self.records.num_classes} classes"
        processes = self.accelerator.num_processes
        expected = estimate(
            self.unet,
            self.loss,
            self.gradients_of,
            tuple(self.records.images.shape),
            self.args,
            self.accelerator.autocast,
            self.loss_scale,
        )
        provenance = "".join(f"  {title:<15} {text}\n" for title, text in self.records.provenance.items())
        self.accelerator.print(
            f"Plan for {len(self.records):,} records of {self.records.resolution}x{self.records.resolution}"
            f"x{self.records.num_channels}{classes or ', without labels'}\n{provenance}{self.plan}\n"
            f"  gradients       {self.grad_sample_mode}, {self.args.noise_multiplicity} draws a record\n"
            f"  processes       {processes} on {self.accelerator.device.type}\n"
            f"{expected}"
        )

    @own_arithmetic()
    def save_pipeline(self) -> Path:
        """Write what may be published to `output_dir`: pipeline, privacy.json, model card and pictures.

        Returns:
            `Path`: The directory, which `DiffusionPipeline.from_pretrained` loads.

        Raises:
            InputError: If the model has not been trained.
        """
        if not self.finished:
            raise InputError("There is no trained model to save yet: call train() first, and let it finish.")
        from_main(self._write_pipeline)
        return self.output_dir

    def _write_pipeline(self) -> None:
        self.ledger.mark_visible("pipeline")
        privacy = self.ledger.statement(len(self.records))
        privacy["remarks"] += self.sensitive_curves.remarks()
        statement = self.output_dir / "privacy.json"
        statement.unlink(missing_ok=True)  # it comes last, as the sign that all the rest is there
        self.unet.register_to_config(_name_or_path="")  # where it was loaded from is nobody else's business
        self.sampler.pipeline(self.unet).save_pretrained(self.output_dir)
        if self.central_images is not None:
            self.central_images.to_grid().save(self.output_dir / "central_images.png")
            self.central_images.save_to_disk(self.output_dir / "private" / "central_images")
        network = {
            "resolution": self.records.resolution,
            "channels": self.records.num_channels,
            "parameters": f"{self.unet.num_parameters():,}",
            "noise_scheduler": type(self.noise_scheduler).__name__,
            **{name: value for name, value in self.noise_scheduler.config.items() if name in OF_THE_SCHEDULE},
            "mixed_precision": self.accelerator.mixed_precision,
        }
        card = make_model_card(privacy, self.args, network, self.records.class_names, self.central_images is not None)
        readme = self.output_dir / "README.md"
        text = update_card(readme.read_text(encoding="utf-8"), card.content) if readme.is_file() else card.content
        readme.write_text(text, encoding="utf-8")
        self.sampler.grid(self.unet).save(self.output_dir / "samples.png")
        partial = self.output_dir / "private" / "privacy.json"
        partial.write_text(json.dumps(privacy, indent=2) + "\n", encoding="utf-8")
        partial.rename(statement)
        if self.args.push_to_hub:
            self.push_to_hub()

    def push_to_hub(
        self,
        repo_id: str | None = None,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
    ) -> CommitInfo | None:
        """Push what [`save_pipeline`] wrote to the Hub: the files that may be published, in one commit.

        Args:
            repo_id (`str`, *optional*): Defaults to `hub_model_id`, or the name of `output_dir`.
            commit_message (`str`, *optional*): Defaults to one with the privacy budget.
            private (`bool`, *optional*): Whether a new repository is private; defaults to `hub_private_repo`.
            token (`str`, *optional*): Defaults to `hub_token`, or to that of `hf auth login` or `HF_TOKEN`.
            create_pr (`bool`, *optional*, defaults to False): Open a pull request instead.

        Returns:
            `huggingface_hub.CommitInfo`: Address and id of the commit; None in all processes but the first.

        Raises:
            InputError:
                If the run is not finished, not saved or not private, or if the push does not succeed. Nothing is lost
                then, and the same call, or `dp-curriculum push`, pushes again.
        """
        if not self.finished:
            raise InputError("There is no trained model to push yet: call train() and save_pipeline() first.")
        if not self.accelerator.is_main_process:
            return None
        return push_model(
            self.output_dir,
            repo_id or self.args.hub_model_id or self.output_dir.absolute().name,
            commit_message=commit_message,
            private=(self.args.hub_private_repo or None) if private is None else private,
            token=token or self.args.token,
            create_pr=create_pr,
            counted=self.ledger.counted_runs(),
        )

    def summary(self) -> str:
        """What was made and where it is, for a person to read when [`save_pipeline`] is done."""
        return summarize(self.output_dir, self.ledger, conditional=self.records.num_classes is not None)

    def _open_ledger(self) -> None:
        """Begin the journal of a new run, or open that of the run to resume; the main process writes it."""

        def open_run() -> Checkpoint | None:
            self._ledger, checkpoint = open_ledger(self.args, self.checkpoints, self.prior_runs)
            return checkpoint

        self.checkpoint = from_main(open_run)
        self._follow_ledger()
        if self.checkpoint is not None:
            self.plan = self.checkpoint.plan
            self.central_images = self.checkpoint.central_images
            self.accelerator.print(f"Resuming from {self.checkpoint.name}.")

    def _follow_ledger(self) -> None:
        """Give the other processes what the main one has recorded, without its journal."""
        ledger = from_main(lambda: self.ledger.in_memory())
        if not self.accelerator.is_main_process:
            self._ledger = ledger

    def _warm_up(self) -> None:
        state = start_warm_up(self.unet, self.args)
        if self.central_images is None:
            self.central_images = from_main(self._release_central_images)
            self._follow_ledger()
            self._save_checkpoint(state)  # so that they are queried once, whatever happens
        if self.checkpoint is not None and self.checkpoint.stage != "warm_up":
            return
        self._restore(state)
        with self._progress_bar(state, "Stage 1, central images", self.args.central_train_steps) as progress:
            warm_up(
                state,
                self.loss,
                self.central_images,
                self.args,
                self.accelerator.autocast,
                lambda error: self._after_step(state, progress, {"loss_on_central_images": error.item()}),
                self.loss_scale,
            )

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

    def _train_by_dp_sgd(self) -> None:
        args, is_main = self.args, self.accelerator.is_main_process
        state = start_dp_sgd(self.unet, args)
        if self.checkpoint is not None and self.checkpoint.stage == "dp_sgd":
            self._restore(state)
        self.unet.train()
        steps = from_main(lambda: self._affordable_steps(state.step))
        if state.step + steps < self.plan.dp_sgd.steps:
            self.accelerator.print(
                f"DP-SGD stops after {state.step + steps} of {self.plan.dp_sgd.steps} steps: the next one would pass "
                f"the target epsilon {args.target_epsilon:g}."
            )
        if steps > 0:
            dp_sgd = DPSGD(
                self.unet,
                state.optimizer,
                self.loss,
                self.records,
                replace(self.plan.dp_sgd, steps=steps),
                self.ledger,
                noise_multiplicity=args.noise_multiplicity,
                max_physical_batch_size=args.max_physical_batch_size,
                gradients_of=self.gradients_of,
                randomness=self.randomness,
                observe=self._observe_sensitive_loss if args.log_sensitive_curves and is_main else None,
            )
            last = state.step + steps
            with self._progress_bar(state, "Stage 2, DP-SGD", last) as progress:
                while state.step < last:
                    dp_sgd.step()
                    state.advance()
                    self._after_step(state, progress, {}, is_last=state.step == last)
        if args.use_ema:
            state.ema.copy_to(self.unet.parameters())

    def _affordable_steps(self, taken: int) -> int:
        remaining = self.plan.dp_sgd.steps - taken
        return 0 if remaining == 0 else self.ledger.affordable_steps(replace(self.plan.dp_sgd, steps=remaining))

    def _restore(self, state: TrainingState) -> None:
        if self.checkpoint is not None:
            state.load_state_dict(self.checkpoint.state)

    def _after_step(self, state: TrainingState, progress: tqdm, curves: dict[str, Any], is_last: bool = False) -> None:
        """Show how far the run is, write checkpoints and pictures, and end the run if somebody asks for that."""
        number = self._number(state)
        epsilon = self.plan.epsilon_spent(self.ledger.mechanisms)
        progress.update()
        progress.set_postfix(epsilon=f"{epsilon:.2f}")
        learning_rate = state.optimizer.param_groups[0]["lr"]
        self.accelerator.log({"epsilon": epsilon, "learning_rate": learning_rate, **curves}, step=number)
        terminated = any_process(self.termination.signal is not None)
        picture = self.args.save_images_steps is not None and number % self.args.save_images_steps == 0
        # A picture makes all steps count that were taken so far: none of them should have to be taken again.
        if is_last or terminated or picture or number % self.args.checkpointing_steps == 0:
            self._save_checkpoint(state)
        if picture:
            from_main(lambda: self._save_samples(state))
        if terminated:
            progress.close()
            self.accelerator.print(
                f"Interrupted after {number} steps: resume with the same settings and resume_from_checkpoint latest."
            )
            self.termination.end()

    def _number(self, state: TrainingState) -> int:
        """Steps taken in both stages."""
        before = self.args.central_train_steps if state.stage == "dp_sgd" and self.plan.central is not None else 0
        return before + state.step

    def _observe_sensitive_loss(self, draws: NoiseDraws) -> None:
        with self.accelerator.autocast():
            self.sensitive_curves.write(self.ledger.position, self.unet, draws)

    def _save_checkpoint(self, state: TrainingState) -> None:
        from_main(
            lambda: self.checkpoints.save(self._number(state), state, self.ledger, self.plan, self.central_images)
        )

    def _save_samples(self, state: TrainingState) -> None:
        """A grid of what the network, or its average, makes now."""
        directory = self.output_dir / "private" / "samples"
        self.ledger.mark_visible("samples")
        directory.mkdir(exist_ok=True)
        if self.args.use_ema:
            state.ema.store(self.unet.parameters())
            state.ema.copy_to(self.unet.parameters())
        self.sampler.grid(self.unet).save(directory / f"step-{self._number(state)}.png")
        if self.args.use_ema:
            state.ema.restore(self.unet.parameters())
        self.unet.train()

    def _progress_bar(self, state: TrainingState, title: str, last: int) -> tqdm:
        return tqdm(initial=state.step, total=last, desc=title, disable=not self.accelerator.is_main_process)
