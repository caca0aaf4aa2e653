"""The trainer: runs the stages of the curriculum in order. Their computations are in other modules."""

import json
import logging
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import DDPMScheduler, EDMEulerScheduler, UNet2DModel
from huggingface_hub import CommitInfo
from tqdm.auto import tqdm

from .arithmetic import own_arithmetic
from .config import DPCurriculumConfig
from .data.image_dataset import ImageDataset, to_image_dataset, unit_of
from .data.latents import encode_records
from .distributed import check_all_equal, run_on_main_process, set_on_any_process, share_parameters
from .errors import InputError, StorageError, TrainingError, confidential_errors
from .files import check_outside, check_room, storage_errors
from .finite import finite_numbers
from .gradients.losses import NoiseDraws
from .gradients.precision import Precision
from .gradients.selection import make_gradients_of
from .gradients.trials import random_draws, seeded
from .mechanisms.class_features import ClassFeatures, pooled_shape
from .mechanisms.dp_sgd import DPSGD, Records
from .mechanisms.perceptual_features import PerceptualFeatures
from .mechanisms.public_eyes import PublicEyes
from .mechanisms.randomness import MechanismRandomness
from .mechanisms.releases import Queries, Release, ReleasedImages
from .privacy.accounting import Mechanism
from .privacy.counted_runs import all_mechanisms
from .privacy.ledger import PrivacyLedger
from .run_paths import RunPaths, check_output_dir
from .sampling.preview import Preview
from .sampling.round_trip import check_round_trip
from .sharing.artifact import write_artifact
from .sharing.hub import push_model
from .sharing.model_card import make_model_card
from .training.accelerator import make_accelerator, start_trackers
from .training.auxiliary_generator import GeneratorState, fit_generator, generate_images, start_generator
from .training.checkpointing import Checkpoint, Checkpoints, run_identity
from .training.estimates import estimate
from .training.heartbeat import stop_watching, watched_processes
from .training.interruption import RunStatus, TerminationRequest
from .training.model_checks import (
    check_network,
    check_not_trained,
    check_sample_size,
    check_type,
    mark_as_trained,
    network_errors,
)
from .training.optimization import make_loss, start_dp_sgd
from .training.planning import Plan, describe_records, make_plan
from .training.public_eyes import load_public_eyes
from .training.run_directory import find_prior_runs, note_errors_for_resume, open_ledger
from .training.sensitive_curves import SensitiveCurves
from .training.stages import DP_SGD, RELEASES, GeneratorStage, Stage, WarmUpStage, warm_up_stages
from .training.starting_point import check_starting_point, find_autoencoder_of_run, starting_point_of
from .training.summary import summarize
from .training.trainable import trained_part
from .training.training_state import StageState, TrainingState
from .training.warm_up import start_warm_up, warm_up


if TYPE_CHECKING:
    import datasets


logger = logging.getLogger(__name__)
RESUME = "resume with the same settings and `resume_from_checkpoint` latest"


class DPCurriculumTrainer:
    """Train a `UNet2DModel` on sensitive images from easy to hard, under one (epsilon, delta).

    "From Easy to Hard" (DP-FETA, S&P 2025, arXiv:2504.01395): DP central images are queried, the network warms up on
    them, and DP-SGD spends the rest of the budget on the records themselves. In between comes a warm-up on images that
    a generator makes of DP frequency features (FETA-Pro, USENIX Security 2026, arXiv:2601.06368). Creating a trainer
    checks everything and plans the budget. It spends no privacy and writes nothing.

    Args:
        unet (`UNet2DModel`):
            The network. With classes it has `num_class_embeds = number of classes + 1`, the last being the null class.
            With `vae_name_or_path` of the config it is a network of latents, as [`latent_info`] describes them.
            Its weights must not have learned from these records before, because that cost would not be counted;
            [`load_starting_point`] loads a public network to start from. If DP-SGD trains a part of it alone
            (`trainable` of the config), it should have learned from public images: from random weights such training
            has been no better than chance.
        noise_scheduler (`DDPMScheduler` or `EDMEulerScheduler`):
            Noise schedule and prediction type, which determine the loss; published with the pipeline.
        args (`DPCurriculumConfig`): The hyper-parameters.
        train_dataset (`datasets.Dataset` or `ImageDataset`): The sensitive records.

    Raises:
        InputError: If an argument cannot be used. No privacy has been spent and no file written by then.

    Examples:
        >>> from diffusers_dp_curriculum import DPCurriculumConfig, DPCurriculumTrainer
        >>> from diffusers_dp_curriculum import build_scheduler, build_unet, load_image_dataset
        >>> dataset = load_image_dataset(dataset_name="digits")
        >>> unet = build_unet(resolution=8, num_channels=1, num_classes=10, block_out_channels=(8, 16))
        >>> config = DPCurriculumConfig(
        ...     output_dir="my-model",
        ...     target_epsilon=10.0,
        ...     central_train_steps=2,
        ...     frequency_generator_steps=2,
        ...     frequency_train_steps=2,
        ...     max_train_steps=2,
        ...     train_batch_size=16,
        ...     noise_multiplicity=1,
        ...     num_inference_steps=2,
        ... )
        >>> scheduler = build_scheduler()
        >>> trainer = DPCurriculumTrainer(unet=unet, noise_scheduler=scheduler, args=config, train_dataset=dataset)
        >>> trainer.train()
        <RunStatus.FINISHED: 'finished'>
        >>> (trainer.save_pipeline() / "privacy.json").exists()
        True
    """

    @own_arithmetic()
    def __init__(
        self,
        unet: UNet2DModel,
        noise_scheduler: DDPMScheduler | EDMEulerScheduler,
        args: DPCurriculumConfig,
        train_dataset: "datasets.Dataset | ImageDataset",
    ):
        check_type(unet)
        check_not_trained(unet)
        if not isinstance(args, DPCurriculumConfig):
            raise InputError(f"`args` is of type {type(args).__name__}: give a DPCurriculumConfig.")
        self.args = args
        self.paths = RunPaths(Path(args.output_dir))
        self.accelerator = make_accelerator(args)
        run_on_main_process(lambda: check_output_dir(self.paths.output_dir, args.resume_from_checkpoint))
        self.prior_runs = run_on_main_process(lambda: find_prior_runs(args, unit_of(train_dataset)))
        self.initial_weights = check_starting_point(unet, args, self.prior_runs)
        self.eyes = load_public_eyes(args)
        found = find_autoencoder_of_run(unet, args)
        size = check_sample_size(unet) * (1 if found is None else found.factor)
        self.records = to_image_dataset(train_dataset, resolution=size)
        self.info = self.records.info
        if self.records.directory is not None:
            check_outside(self.paths.output_dir, self.records.directory)
        self.autoencoder = None if found is None else found.load(self.info, self.accelerator.device)
        network_info = self.info if self.autoencoder is None else self.autoencoder.latent_info
        check_network(unet, network_info, "images" if self.autoencoder is None else "latents")
        self.unet = unet.to(self.accelerator.device)
        if self.eyes is not None:
            self.eyes.to(self.accelerator.device)
        if args.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.noise_scheduler = noise_scheduler
        self.loss = make_loss(noise_scheduler, args, self.info.num_classes, latents=self.autoencoder is not None)
        self.precision = Precision.of(self.accelerator)
        vae = None if self.autoencoder is None else self.autoencoder.model
        self.preview = Preview(noise_scheduler, self.info, args, vae)
        with seeded(self.accelerator.device, args.seed), trained_part(self.unet, args) as part:
            self.trained_part = str(part)
            with network_errors():
                self.grad_sample_mode, self.gradients_of = make_gradients_of(
                    self.unet, self.loss, network_info.images_shape, args, self.accelerator
                )
            self.preview.check(self.unet)
            rows = random_draws(self.loss, network_info.image_shape, 2, 2, self.accelerator.device).flatten()
            run_on_main_process(lambda: check_round_trip(self.unet, noise_scheduler, rows, part.published))
        identity = run_identity(args, unet, noise_scheduler, eyes=self.eyes, autoencoder=self.autoencoder)
        check_all_equal(json.dumps(identity) + self.records.checksum(b""), "settings, network and records")
        self.checkpoints = Checkpoints(
            self.paths.checkpoints, identity, self.records.checksum, args.checkpoints_total_limit
        )
        self.checkpoint: Checkpoint | None = None
        if (which := args.resume_from_checkpoint) is not None:
            self.checkpoint = run_on_main_process(lambda: self.checkpoints.load(which))
        if self.checkpoint is not None:
            self._follow_plan(self.checkpoint.plan)
        else:
            self._follow_plan(make_plan(args, self.info, all_mechanisms(self.prior_runs), self.eyes))
        self.randomness = MechanismRandomness(args.secure_rng, args.insecure_noise_seed)
        self.released = run_on_main_process(self._stored_releases)
        self._check_eyes()
        self.sensitive_curves = SensitiveCurves(self.paths.sensitive_curves)
        self.finished = False
        self._ledger: PrivacyLedger | None = None
        stop_watching()

    @property
    def output_dir(self) -> Path:
        """`Path`: The directory of the run."""
        return self.paths.output_dir

    @property
    def ledger(self) -> PrivacyLedger:
        """`PrivacyLedger`: What the run has released; available once [`train`] has started."""
        if self._ledger is None:
            raise InputError("Nothing has been released yet, and there is no ledger: call train() first.")
        return self._ledger

    @property
    def released_images(self) -> dict[str, ReleasedImages]:
        """`dict[str, ReleasedImages]`: The images that the warm-up stages train on, by the name of the stage."""
        return {name: release for name, release in self.released.items() if isinstance(release, ReleasedImages)}

    @own_arithmetic()
    @watched_processes()
    def train(self) -> RunStatus:
        """Run the stages: release and warm up in each warm-up stage, then train by DP-SGD.

        With `resume_from_checkpoint` the run continues from that checkpoint. On SIGTERM and on Ctrl-C it writes a
        checkpoint after the current step, says how to resume, and returns. However this call ends, all steps that were
        taken count for good. The state of the caller's random generators is restored at the end.

        Returns:
            `RunStatus`: `FINISHED`; or `TERMINATED` if SIGTERM stopped the run, or `INTERRUPTED` if Ctrl-C did.

        Raises:
            InputError: If this trainer has run before, or another one has trained its network; or if its images are not
                decoded, or its output directory can no longer be used.
            TrainingError: If training diverges, or fails; the original message of a failure, which may reveal records,
                is in `output_dir/private`.
            KeyboardInterrupt: If Ctrl-C is pressed twice, which does not wait for the current step.
        """
        if self._ledger is not None:
            raise InputError("This trainer has run already, and its budget is spent: make a new one with a new UNet.")
        check_not_trained(self.unet)  # by another trainer since this one was made
        if not self.records.is_decoded:
            raise InputError("The images were loaded for a plan alone: load them with `decode` to train.")
        plan = self.describe_plan()  # by every process, as it rehearses steps
        self._log(logging.INFO, plan)
        run_on_main_process(self._check_room)
        details = self.paths.traceback(self.accelerator.process_index)
        try:
            self._open_ledger()
            # The contexts exit from the last to the first: an error is written down only when the steps that led to it
            # count for good, and until then Ctrl-C is only recorded.
            with (
                TerminationRequest() as self.termination,
                confidential_errors(details),
                storage_errors(self.output_dir, RESUME),
                self._unseen(),
                seeded(self.accelerator.device, self.args.seed),
                watched_processes(),
            ):
                ended = self._run_stages()
            self.finished = ended
        finally:
            stop_watching()
            if not self.finished and self._ledger is not None:
                self._ledger.close()  # so that a new trainer, in a notebook for instance, can resume the run
            for tracker in self.accelerator.trackers:
                tracker.finish()
        if self.finished:
            return RunStatus.FINISHED
        (ctrl_c,) = set_on_any_process(self.termination.signal == signal.SIGINT)
        return RunStatus.INTERRUPTED if ctrl_c else RunStatus.TERMINATED

    def _unseen(self) -> AbstractContextManager[None]:
        """The context of training, which promises the ledger that no step is seen before it is marked as visible.

        There is no such promise if steps can be watched: curves are written at every step, and outside the main thread
        other threads can look at the network at any time.
        """
        if not self.accelerator.is_main_process:
            return note_errors_for_resume(self.output_dir, self.accelerator.process_index)
        in_main_thread = threading.current_thread() is threading.main_thread()
        watched = self.args.logger is not None or self.args.log_sensitive_curves or not in_main_thread
        return nullcontext() if watched else self.ledger.unseen()

    def _run_stages(self) -> bool:
        """Run all stages; return whether all of them finished."""
        if self.args.logger is not None:
            start_trackers(self.accelerator, self.args)
        mark_as_trained(self.unet)
        share_parameters(self.unet)
        return all(self._run_stage(stage) for stage in self.stages) and self._train_by_dp_sgd()

    @own_arithmetic()
    @watched_processes()
    def describe_plan(self) -> str:
        """Describe what the run will do and cost, in text; this spends no privacy and writes nothing.

        A few steps of each stage are tried on random images, so every process of a run must call this.

        Returns:
            `str`: The plan, with the expected time and memory.

        Raises:
            InputError: If there is not enough memory.
        """
        info = self.info
        gradients = ""
        if self.plan.dp_sgd is not None:
            draws = f"{self.args.noise_multiplicity} {'draw' if self.args.noise_multiplicity == 1 else 'draws'}"
            gradients = (
                f"  trained         {self.trained_part}\n"
                f"  gradients       {self.grad_sample_mode}, {draws} a {info.unit}\n"
            )
        images_bytes, latents = self.records.images.nbytes, ""
        if self.autoencoder is not None:
            latents_bytes = self.autoencoder.bytes_of(len(self.records), self.args)
            images_bytes += latents_bytes
            latents = f"  latents         {self.autoencoder.describe(latents_bytes)}\n"
        expected = estimate(
            self.unet,
            self.loss,
            self.gradients_of,
            info,
            len(self.records),
            images_bytes,
            self.args,
            self.stages,
            self.precision,
            self.autoencoder,
        )
        start = starting_point_of(self.unet)
        return (
            f"{describe_records(info, self.records.provenance)}\n"
            f"  starts from     {'random weights' if start is None else start.name}\n"
            f"{latents}"
            f"{self.plan}\n"
            f"{self._describe_eyes()}"
            f"{gradients}"
            f"  processes       {self.accelerator.num_processes} on {self.accelerator.device.type}\n"
            f"{expected}"
        )

    def _describe_eyes(self) -> str:
        eyes = self._eyes_in_use()
        if eyes is None:
            return ""
        return f"  looks through   {self.args.feature_extractor}, with {eyes.num_features:,} features\n"

    def _eyes_in_use(self) -> PublicEyes | None:
        """The public model whose features a stage queries; None where a stage has been left out by the plan."""
        return next((stage.queries.eyes for stage in self.stages if isinstance(stage, GeneratorStage)), None)

    @own_arithmetic()
    def save_pipeline(self) -> Path:
        """Write what may be published to `output_dir`: pipeline, privacy.json, model card and pictures.

        Returns:
            `Path`: The directory, which `DiffusionPipeline.from_pretrained` loads.

        Raises:
            InputError: If training has not finished.
            TrainingError: If the samples of the network are not finite numbers.
        """
        if not self.finished:
            raise InputError("There is no trained model to save yet: call train() first, and let it finish.")
        with storage_errors(self.output_dir, f"save again, or {RESUME}"), watched_processes():
            run_on_main_process(self._save_pipeline)
        return self.output_dir

    def _check_room(self) -> None:
        steps = sum(stage.train_steps for stage in self.stages) + self.args.max_train_steps
        check_room(
            self.output_dir,
            self.checkpoints.bytes_to_write(self.unet, steps, self.args.checkpointing_steps),
            "The checkpoints",
            "set `checkpoints_total_limit` or raise `checkpointing_steps`",
        )

    def _save_pipeline(self) -> None:
        self.ledger.mark_visible("pipeline")
        privacy = self.ledger.statement(self.info.num_units)
        privacy = replace(privacy, remarks=(*privacy.remarks, *self.sensitive_curves.remarks()))
        pipeline = self.preview.pipeline(self.unet)
        pictures = {name: images.to_grid() for name, images in self.released_images.items()}
        start = starting_point_of(self.unet)
        card = make_model_card(
            privacy,
            self.args,
            pipeline,
            self.info,
            self.accelerator.mixed_precision,
            pictures.keys(),
            self.trained_part,
            started_from=None if start is None else start.in_words,
            base_model=None if start is None else start.hub_id,
            eyes=None if (eyes := self._eyes_in_use()) is None else eyes.name,
            encoded_by=None if self.autoencoder is None else self.autoencoder.found.in_words,
        )
        write_artifact(self.paths, pipeline, privacy, card, pictures | {"samples": self.preview.grid(self.unet)})
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
            token (`str`, *optional*): Defaults to `hub_token`, or to the token of `hf auth login` or `HF_TOKEN`.
            create_pr (`bool`, *optional*, defaults to False): Open a pull request instead.

        Returns:
            `huggingface_hub.CommitInfo`: Address and id of the commit; None in every process except the main one.

        Raises:
            InputError: If the run is not finished, not saved or not private.
            HubError: If the push fails; the same call, or `dp-curriculum push`, tries again.
        """
        if not self.finished:
            raise InputError("There is no trained model to push yet: call train() and save_pipeline() first.")
        if not self.accelerator.is_main_process:
            return None
        return push_model(
            self.output_dir,
            repo_id or self.args.repo_id,
            commit_message=commit_message,
            private=(self.args.hub_private_repo or None) if private is None else private,
            token=token or self.args.token,
            create_pr=create_pr,
            counted=self.ledger.counted_runs(),
        )

    def summary(self) -> str:
        """Summarize in text what the run wrote, where, and at what privacy cost; call it after [`save_pipeline`]."""
        return summarize(self.output_dir, self.ledger, self.info, self.released_images)

    def _open_ledger(self) -> None:
        """Create the journal of a new run, or open that of the run to resume; only the main process writes it."""
        eyes, autoencoder = self._eyes_in_use(), self.autoencoder
        public_models = [] if eyes is None else [eyes.assumption]
        public_models += [] if autoencoder is None else [autoencoder.found.assumption]

        def open_run() -> Checkpoint | None:
            self._ledger, checkpoint = open_ledger(
                self.args, self.checkpoints, self.prior_runs, self.info.unit, self.initial_weights, public_models
            )
            return checkpoint

        self.checkpoint = run_on_main_process(open_run)
        self._follow_ledger()
        if self.checkpoint is not None:
            self._follow_plan(self.checkpoint.plan)
        self.released = run_on_main_process(self._stored_releases)
        self._check_eyes()

    def _follow_plan(self, plan: Plan | None) -> None:
        """Take a plan, with the sizes and the noise of queries that were chosen in it."""
        assert plan is not None  # only training on public images has none
        self.plan = plan
        self.args = plan.put_into(self.args)
        self.stages = warm_up_stages(self.args, self.eyes)

    def _stored_releases(self) -> dict[str, Release]:
        """Everything that this run has released before it was interrupted: none of it has to be paid for again."""
        stored = [(name, kind, self.paths.released(name)) for name, kind in RELEASES.items()]
        return {name: kind.load_from_disk(path) for name, kind, path in stored if (path / f"{name}.json").exists()}

    def _check_eyes(self) -> None:
        """Refuse to continue a run whose features were seen through another model."""
        features = self.released.get(PerceptualFeatures.name)
        if isinstance(features, PerceptualFeatures):
            features.check_eyes(self.eyes)

    def _store(self, release: Release) -> None:
        """Keep what was released for the rest of the run and for a resumed one."""
        self.released[release.name] = release

        def save() -> None:
            self.ledger.mark_visible(release.name)
            release.save_to_disk(self.paths.released(release.name))

        run_on_main_process(save)

    def _follow_ledger(self) -> None:
        """Give the other processes a copy in memory of what the main process has recorded."""
        ledger = run_on_main_process(lambda: self.ledger.in_memory())
        if not self.accelerator.is_main_process:
            self._ledger = ledger

    def _run_stage(self, stage: Stage) -> bool:
        """Run a stage before DP-SGD, unless a later one has begun; return whether it finished."""
        if self._is_over(stage):
            return True
        return self._fit_generator(stage) if isinstance(stage, GeneratorStage) else self._warm_up(stage)

    def _warm_up(self, stage: WarmUpStage) -> bool:
        """Train the network on released images; return whether all steps were taken."""
        state = start_warm_up(self.unet, stage, self.args)
        self._release_and_restore(stage, state)
        images = self.released_images.get(stage.name)
        if images is None:
            raise StorageError(
                f"{self.paths.released(stage.name)} is missing: restore it, or resume from an earlier checkpoint."
            )
        with self._progress_bar(state, stage.title, stage.train_steps) as progress:
            after_step = self._after_step_of(stage, state, progress)
            try:
                return warm_up(state, self.loss, images, stage, self.args, self.precision, after_step, self.autoencoder)
            except TrainingError:  # it diverged: resuming its checkpoints would diverge again
                first = self._number(state) - state.step
                run_on_main_process(lambda: self.checkpoints.remove_steps_of(stage.name, first))
                raise

    def _fit_generator(self, stage: GeneratorStage) -> bool:
        """Fit the generator to released features, and make its images; return whether all steps were taken."""
        shape, classes, seed = pooled_shape(self.info.image_shape), self.info.num_labels, self.args.seed
        state = start_generator(shape, classes, stage.train_steps, seed, self.accelerator.device, self.unet)
        self._release_and_restore(stage, state)
        features = self._released_features()
        with self._progress_bar(state, stage.title, stage.train_steps) as progress:
            after_step = self._after_step_of(stage, state, progress)
            if not fit_generator(state, features, stage.train_steps, seed, after_step, stage.queries.eyes):
                return False
        self._store(run_on_main_process(lambda: generate_images(state, features, seed)))
        return True

    def _released_features(self) -> ClassFeatures:
        (queries,) = (stage.queries for stage in self.stages if isinstance(stage, GeneratorStage))
        features = self.released[queries.release_type.name]
        assert isinstance(features, ClassFeatures)
        return features

    def _release_and_restore(self, stage: Stage, state: StageState) -> None:
        """Make the stage's queries, unless the run has made them before, and load the state from the checkpoint."""
        queries = stage.queries
        if queries is not None and not self._has_released(queries):
            self._store(run_on_main_process(lambda: queries.release(self.records, self.ledger, self.randomness)))
            self._follow_ledger()
            if self._number(state) == 0:
                self._save_checkpoint(state)  # of the initial weights
        self._restore(state)

    def _has_released(self, queries: Queries) -> bool:
        release = self.released.get(queries.release_type.name)
        return release is not None and release.mechanism == queries.mechanism(self.info)

    def _after_step_of(self, stage: Stage, state: StageState, progress: tqdm) -> Callable[[torch.Tensor], bool]:
        last = stage.train_steps if self.plan.dp_sgd is None and stage is self.stages[-1] else None

        def after_step(error: torch.Tensor) -> bool:
            curves = {f"loss_on_{stage.name}": error.item()}
            return self._after_step(state, progress, curves, is_last=state.step == last)

        return after_step

    def _train_by_dp_sgd(self) -> bool:
        """Train what DP-SGD trains of the network; return whether all steps were taken."""
        if self.plan.dp_sgd is None:
            return True
        with trained_part(self.unet, self.args):
            share_parameters(self.unet)  # each process has drawn adapters
            return self._take_dp_sgd_steps(self.plan.dp_sgd)

    def _take_dp_sgd_steps(self, planned: Mechanism) -> bool:
        """Take as many DP-SGD steps as the budget allows; return whether all of them were taken."""
        args, is_main = self.args, self.accelerator.is_main_process
        state = start_dp_sgd(self.unet, args)
        self._restore(state)
        self.unet.train()
        steps = run_on_main_process(lambda: self._affordable_steps(planned, state.step))
        last = state.step + steps
        if last < planned.steps:
            self._log(
                logging.WARNING,
                f"DP-SGD stops after {last} of {planned.steps} steps: the next one would pass the target "
                f"epsilon {args.target_epsilon:g}.",
            )
        if steps > 0:
            dp_sgd = DPSGD(
                self.unet,
                state.optimizer,
                self.loss,
                self._records_for_network(),
                replace(planned, steps=steps),
                self.ledger,
                noise_multiplicity=args.noise_multiplicity,
                max_physical_batch_size=args.max_physical_batch_size,
                gradients_of=self.gradients_of,
                randomness=self.randomness,
                observe=self._observe_sensitive_loss if args.log_sensitive_curves and is_main else None,
            )
            with self._progress_bar(state, "DP-SGD", last) as progress:
                while state.step < last:
                    dp_sgd.step()
                    state.advance()
                    diverged = ~finite_numbers(self.unet)
                    if self._after_step(state, progress, {}, diverged, is_last=state.step == last):
                        return False
        if args.use_ema:
            state.ema.copy_to(self.unet.parameters())
        return True

    def _records_for_network(self) -> Records:
        """The sensitive records as DP-SGD trains on them: the images, or the latents in which they are encoded now."""
        if self.autoencoder is None:
            return self.records
        return encode_records(self.records, self.autoencoder, mirrored=self.args.random_flip)

    def _affordable_steps(self, planned: Mechanism, taken: int) -> int:
        remaining = planned.steps - taken
        return 0 if remaining == 0 else self.ledger.affordable_steps(replace(planned, steps=remaining))

    def _is_over(self, stage: Stage) -> bool:
        """Whether the run continues from a checkpoint of a later stage."""
        return self.checkpoint is not None and self._place(self.checkpoint.stage) > self._place(stage.name)

    def _place(self, stage: str) -> int:
        """The number of stages before a stage."""
        return [*(stage.name for stage in self.stages), DP_SGD].index(stage)

    def _restore(self, state: StageState) -> None:
        """Load the checkpoint into `state` if it was written in the same stage."""
        if self.checkpoint is not None and self.checkpoint.stage == state.stage:
            state.load_state_dict(self.checkpoint.state)

    def _after_step(
        self,
        state: StageState,
        progress: tqdm,
        curves: dict[str, Any],
        diverged: bool | torch.Tensor = False,
        is_last: bool = False,
    ) -> bool:
        """Report progress and write checkpoints and pictures; return whether a signal asks the run to stop.

        A step of DP-SGD waits for its GPU here and nowhere else.
        """
        number = self._number(state)
        terminated, stop = set_on_any_process(self.termination.signal is not None, diverged)
        if stop:
            raise TrainingError(
                f"DP-SGD diverged in step {state.step}, and its steps count: start a new run with a lower "
                "`learning_rate`, which counts this run by `prior_runs`."
            )
        epsilon = self.plan.epsilon_spent(self.ledger.mechanisms)
        progress.update()
        progress.set_postfix(epsilon=f"{epsilon:.2f}")
        learning_rate = state.optimizer.param_groups[0]["lr"]
        self.accelerator.log({"epsilon": epsilon, "learning_rate": learning_rate, **curves}, step=number)
        picture = self.args.save_images_steps is not None and number % self.args.save_images_steps == 0
        # A picture makes all steps so far count for good. With a checkpoint none of them has to be repeated.
        if is_last or terminated or picture or number % self.args.checkpointing_steps == 0:
            self._save_checkpoint(state)
        if picture:
            run_on_main_process(lambda: self._save_samples(state))
        if terminated:
            progress.close()
            self._log(
                logging.WARNING,
                f"Interrupted after {number} steps: {RESUME}.",
            )
        return terminated

    def _log(self, level: int, message: str) -> None:
        if self.accelerator.is_main_process:
            logger.log(level, message)

    def _number(self, state: StageState) -> int:
        """The number of steps taken in all stages."""
        return sum(stage.train_steps for stage in self.stages[: self._place(state.stage)]) + state.step

    def _observe_sensitive_loss(self, draws: NoiseDraws) -> None:
        with self.precision.autocast():
            self.sensitive_curves.write(self.ledger.position, self.unet, draws)

    def _save_checkpoint(self, state: StageState) -> None:
        ahead = self.stages[self._place(state.stage) + (state.step > 0) :]
        without_effect = [stage.learning_rate_option for stage in ahead if isinstance(stage, WarmUpStage)]
        number = self._number(state)
        run_on_main_process(lambda: self.checkpoints.save(number, state, self.ledger, self.plan, without_effect))

    def _save_samples(self, state: StageState) -> None:
        """Save a grid of samples of what the stage trains, at the current step: of the average, if there is one."""
        self.ledger.mark_visible("samples")
        self.paths.samples.mkdir(exist_ok=True)
        path = self.paths.samples / f"step-{self._number(state)}.png"
        if isinstance(state, GeneratorState):
            generate_images(state, self._released_features(), self.args.seed, num_images=0).to_grid().save(path)
            return
        average = state.ema if isinstance(state, TrainingState) and self.args.use_ema else None
        if average is not None:
            average.store(self.unet.parameters())
            average.copy_to(self.unet.parameters())
        self.preview.grid(self.unet).save(path)
        if average is not None:
            average.restore(self.unet.parameters())
        self.unet.train()

    def _progress_bar(self, state: StageState, title: str, last: int) -> tqdm:
        return tqdm(initial=state.step, total=last, desc=title, disable=not self.accelerator.is_main_process)
