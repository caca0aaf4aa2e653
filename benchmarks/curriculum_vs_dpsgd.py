"""Compare the curriculum with DP-SGD alone on Fashion-MNIST, at equal epsilon and for equally many passes.

    python benchmarks/curriculum_vs_dpsgd.py --data fashion-mnist/ --profile cpu --jobs 2 --output outputs/comparison

`--data` is a directory of IDX files, or a Hub id. Each combination of arm, epsilon and seed is a cell, which runs in
its own process and has its own result. The same command continues after an interruption: finished cells are kept, and a
cell in training resumes from its checkpoint. `--max_minutes 9` ends the command after that time. The table and the
figures show the finished cells.

A pass is the forward and backward pass of one image at one noise level. Arms without DP-SGD or without a warm-up spend
all passes on the stage that they have. Accuracy is that of a CNN trained on the synthetic images alone and tested on
the real test set. The Frechet distance to that set uses the features of the same kind of CNN, trained on the real
training set. Both measures read records outside of all mechanisms, so they are only for public data sets such as this
one.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import set_seed
from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler, UNet2DModel

from comparison_profiles import DELTA, PROFILES, Profile
from comparison_report import ARMS, cell_name, report
from diffusers_dp_curriculum import (
    CentralImageDataset,
    ClassConditionalPipeline,
    DPCurriculumConfig,
    DPCurriculumTrainer,
    ImageDataset,
    PrivacyLedger,
    build_unet,
    generate_dataset,
    load_image_dataset,
)
from diffusers_dp_curriculum.evaluation.fidelity import frechet_distance
from diffusers_dp_curriculum.evaluation.utility import Classifier, accuracy, make_cnn, train_classifier
from diffusers_dp_curriculum.gradients.losses import DenoisingLoss
from diffusers_dp_curriculum.mechanisms.central_images import CentralImageQueries
from diffusers_dp_curriculum.mechanisms.releases import ReleasedImages
from diffusers_dp_curriculum.pictures import image_grid
from diffusers_dp_curriculum.privacy.accounting import calibrate_noise_multiplier, compute_epsilon
from diffusers_dp_curriculum.training.stages import warm_up_stages
from diffusers_dp_curriculum.training.warm_up import start_warm_up, warm_up


WITHOUT_PRIVACY = ("non_private", "real")
WITH_CURVE = ("curriculum_mean", "dp_sgd_alone")
SNAPSHOTS = 4  # points of the curves against passes, for the first seed
STEPS_BETWEEN_STATES = 500  # between saved states of the arms without DP-SGD
GRID_COLUMNS = 5


@dataclass(frozen=True)
class Cell:
    """One arm with one epsilon (None without privacy) and one seed."""

    arm: str
    epsilon: float | None
    seed: int

    @property
    def name(self) -> str:
        """The name of the cell in file names."""
        return cell_name(self.arm, self.epsilon, self.seed)


def cells(epsilons: list[float], seeds: int) -> list[Cell]:
    """List all cells seed by seed, so that the first results already fill a table."""
    return [
        Cell(arm, epsilon, seed)
        for seed in range(seeds)
        for arm in ARMS
        for epsilon in ([None] if arm in WITHOUT_PRIVACY else epsilons)
    ]


# One cell.


class Comparison:
    """Trains and measures cells on one data set.

    Args:
        data (`str`): A directory or a Hub id.
        profile (`Profile`): The sizes of the comparison.
        output (`Path`): The directory for all results.
    """

    def __init__(self, data: str, profile: Profile, output: Path):
        source = {"train_data_dir": data} if Path(data).is_dir() else {"dataset_name": data}
        self.profile = profile
        self.output = output
        self.train = load_image_dataset(**source, resolution=profile.resolution)
        self.test = load_image_dataset(**source, resolution=profile.resolution, split="test")

    def run(self, cell: Cell) -> dict:
        """Train, generate and measure a cell; return its result."""
        reference = self._reference()
        features = make_features(reference)
        real = features(self.test.images)
        if cell.arm == "real":
            generator = torch.Generator().manual_seed(cell.seed)
            subset = torch.randperm(len(self.train), generator=generator)[: 10 * self.profile.images_per_class]
            classifier = train_classifier(
                self.train.images, self.train.labels, 10, epochs=self.profile.reference_epochs, seed=cell.seed
            )
            return {
                "accuracy": accuracy(classifier, self.test.images, self.test.labels),
                "frechet_distance": frechet_distance(real, features(self.train.images[subset])),
            }
        if cell.arm in ("central_alone", "non_private"):
            pipeline, spent = self._train_without_dp_sgd(cell)
            passes = self.profile.passes
        else:
            pipeline, spent, passes = self._train(cell)

        def measure(pipeline: ClassConditionalPipeline, name: str) -> dict:
            images, labels = self._synthesize(pipeline, self.output / "synthetic" / name, cell.seed)
            classifier = train_classifier(images, labels, 10, seed=cell.seed)
            if name == cell.name:
                save_grid(images, labels, self.output / "grids" / f"{name}.png")
            return {
                "accuracy": accuracy(classifier, self.test.images, self.test.labels),
                "frechet_distance": frechet_distance(real, features(images)),
            }

        result = {"epsilon_spent": spent, "passes": passes, **measure(pipeline, cell.name)}
        if cell.seed == 0 and cell.arm in WITH_CURVE:
            curve = [
                {"passes": passes, **measure(snapshot, f"{cell.name}-{passes}")}
                for passes, snapshot in self._snapshots(cell, pipeline)
            ]
            result["curve"] = [*curve, {name: result[name] for name in ("passes", "accuracy", "frechet_distance")}]
        return result

    def _config(self, cell: Cell) -> DPCurriculumConfig:
        profile, config = self.profile, dict(self.profile.config)
        if cell.arm == "curriculum_mode":
            config["central_statistic"] = "mode"
        if cell.arm == "dp_sgd_alone":
            config["central_statistic"] = "none"
            config["max_train_steps"] += math.ceil(profile.warm_up_passes / profile.step_passes)
        return DPCurriculumConfig(
            output_dir=str(self.output / "runs" / cell.name),
            seed=cell.seed,
            target_epsilon=cell.epsilon or 1.0,
            checkpointing_steps=max(config["max_train_steps"] // SNAPSHOTS, 1),
            resume_from_checkpoint="latest",
            **config,
        )

    def _train(self, cell: Cell) -> tuple[ClassConditionalPipeline, float, int]:
        config = self._config(cell)
        finished = Path(config.output_dir, "privacy.json")
        if not finished.is_file():
            set_seed(cell.seed)
            trainer = DPCurriculumTrainer(self._unet(), make_scheduler(), config, self.train)
            trainer.train()
            trainer.save_pipeline()
        spent = json.loads(finished.read_text(encoding="utf-8"))["epsilon"]
        warm_up_passes = 0 if config.central_statistic == "none" else self.profile.warm_up_passes
        passes = warm_up_passes + config.max_train_steps * self.profile.step_passes
        return ClassConditionalPipeline.from_pretrained(config.output_dir), spent, passes

    def _train_without_dp_sgd(self, cell: Cell) -> tuple[ClassConditionalPipeline, float | None]:
        """Spend all passes on a warm-up, on central images that use all of epsilon or, without privacy, on records."""
        steps = math.ceil(self.profile.passes / self.profile.plain_batch_size)
        config = replace(
            self._config(cell), central_train_steps=steps, central_batch_size=self.profile.plain_batch_size
        )
        directory = Path(config.output_dir)
        directory.mkdir(parents=True, exist_ok=True)
        if cell.arm == "central_alone":
            images, spent = self._central_images(cell, config, directory / "central_images")
        else:
            images, spent = ReleasedImages(self.train.images.float() / 255, self.train.labels), None
            config = replace(config, central_augmentation="none")
        (stage,) = warm_up_stages(config)
        set_seed(cell.seed)
        state = start_warm_up(self._unet().to("cuda" if torch.cuda.is_available() else "cpu"), stage, config)
        saved_state = directory / "state.pt"
        if saved_state.exists():
            state.load_state_dict(torch.load(saved_state, weights_only=True))

        def save_state(error: torch.Tensor) -> None:
            if state.step % STEPS_BETWEEN_STATES == 0 or state.step == steps:
                save_atomically(state.state_dict(), saved_state)

        loss = DenoisingLoss(
            make_scheduler(),
            noise_level_mean=config.noise_level_mean,
            noise_level_std=config.noise_level_std,
            label_dropout=config.label_dropout,
            null_label=10,
        )
        warm_up(state, loss, images, stage, config, after_step=save_state)
        return ClassConditionalPipeline(state.unet, make_scheduler(), dict(enumerate(self.train.class_names))), spent

    def _central_images(
        self, cell: Cell, config: DPCurriculumConfig, directory: Path
    ) -> tuple[CentralImageDataset, float]:
        """Query central images that use all of epsilon, once, and keep them; return them with the epsilon spent."""
        queries = CentralImageQueries(config.central_images_per_class, "mean", 1.0, config.central_sample_rate)
        mechanism = queries.mechanism(self.train.info)
        sigma = calibrate_noise_multiplier(cell.epsilon, DELTA, mechanism, [], config.accountant)
        spent = compute_epsilon([replace(mechanism, noise_multiplier=sigma)], DELTA, config.accountant)
        if not directory.exists():
            CentralImageDataset.from_dataset(
                self.train,
                config.central_images_per_class,
                "mean",
                sigma,
                config.central_sample_rate,
                ledger=PrivacyLedger(DELTA, config.accountant, target_epsilon=cell.epsilon),
            ).save_to_disk(directory)
        return CentralImageDataset.load_from_disk(directory), spent

    def _unet(self) -> UNet2DModel:
        return build_unet(self.profile.resolution, 1, 10, block_out_channels=self.profile.block_out_channels)

    def _snapshots(self, cell: Cell, pipeline: ClassConditionalPipeline):
        """Yield passes and pipeline at each checkpoint of DP-SGD except the last one."""
        config = self._config(cell)
        before = 0 if config.central_statistic == "none" else config.central_train_steps
        for number in range(1, config.max_train_steps):
            checkpoint = Path(config.output_dir, "private", "checkpoints", f"checkpoint-{before + number}")
            if (before + number) % config.checkpointing_steps or not checkpoint.is_dir():
                continue
            state = torch.load(checkpoint / "state.pt", map_location="cpu", weights_only=True)
            unet = UNet2DModel.from_config(pipeline.unet.config)
            for parameter, average in zip(unet.parameters(), state["ema"]["shadow_params"], strict=True):
                parameter.data.copy_(average)
            passes = before * config.central_batch_size + number * self.profile.step_passes
            yield passes, ClassConditionalPipeline(unet, make_scheduler(), pipeline.config.id2label)

    def _synthesize(self, pipeline: ClassConditionalPipeline, directory: Path, seed: int):
        """Generate the images to measure, `uint8` of shape `(N, 1, size, size)`, and their labels."""
        pipeline.unet.eval()
        pipeline.scheduler = EDMDPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
        pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
        pipeline.set_progress_bar_config(disable=True)
        dataset = generate_dataset(
            pipeline,
            self.profile.images_per_class,
            output_dir=directory,
            num_inference_steps=self.profile.num_inference_steps,
            guidance_scale=self.profile.config["guidance_scale"],
            seed=seed,
        ).with_format("numpy")
        return torch.from_numpy(np.stack(dataset["image"][:]))[:, None], torch.from_numpy(dataset["label"][:])

    def _reference(self) -> Classifier:
        """Load or train the CNN whose features the Frechet distance uses; it is the same for all cells."""
        path = self.output / "reference.pt"
        if path.exists():
            classifier = Classifier(make_cnn(1, 10))
            classifier.load_state_dict(torch.load(path, weights_only=True))
            return classifier.eval()
        classifier = train_classifier(self.train.images, self.train.labels, 10, epochs=self.profile.reference_epochs)
        save_atomically(classifier.cpu().state_dict(), path)
        return classifier


def save_atomically(state: dict, path: Path) -> None:
    """Write tensors so that a concurrent reader, or one after a crash, finds a complete file."""
    partial = path.with_suffix(f".{os.getpid()}")
    torch.save(state, partial)
    partial.rename(path)


def make_scheduler() -> EDMEulerScheduler:
    """Make the noise scheduler of all arms.

    Sampling starts at a noise level of 10 instead of EDM's 80: with `noise_level_mean` and `noise_level_std` of the
    profiles, two standard deviations above the mean are a level of 8, and levels far above that are hardly trained.
    """
    return EDMEulerScheduler(sigma_max=10.0, sigma_data=0.7)


def make_features(classifier: Classifier) -> Callable[[torch.Tensor], torch.Tensor]:
    """Make a function from `uint8` images to the input of the classifier's last layer."""
    body = classifier.network[:-2].cpu()  # without dropout and the last layer

    @torch.no_grad()
    def features(images: torch.Tensor) -> torch.Tensor:
        return torch.cat([body(ImageDataset.to_model_range(batch)) for batch in images.split(500)])

    return features


def save_grid(images: torch.Tensor, labels: torch.Tensor, path: Path) -> None:
    """Save a grid of the first images of each class, one row per class."""
    path.parent.mkdir(exist_ok=True)
    first = torch.cat([images[labels == label][:GRID_COLUMNS] for label in range(10)])
    image_grid(first.float() / 255, columns=min(GRID_COLUMNS, len(first) // 10), height=32).save(path)


# All cells.


def run_all(args: argparse.Namespace) -> None:
    """Run the cells without a result, `--jobs` at a time, each as a process with its share of the cores."""
    deadline = time.monotonic() + 60 * args.max_minutes
    waiting = [cell for cell in cells(args.epsilons, args.seeds) if not result_file(args.output, cell).exists()]
    threads = max((os.cpu_count() or 1) // args.jobs, 1)

    def run(cell: Cell) -> None:
        if time.monotonic() >= deadline:
            return
        command = [sys.executable, __file__, "--data", args.data, "--profile", args.profile, "--output", args.output]
        command += ["--cell", cell.arm, str(cell.epsilon), str(cell.seed)]
        with (args.output / "logs" / f"{cell.name}.log").open("a") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
            try:
                process.wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                process.terminate()  # the trainer writes a checkpoint and exits
                process.wait()
        done = result_file(args.output, cell).exists()
        print(f"{cell.name}: {'done' if done else f'not done, see {log.name}'}", flush=True)

    (args.output / "logs").mkdir(parents=True, exist_ok=True)
    (args.output / "cells").mkdir(exist_ok=True)
    # Without a reference, the first cell runs alone and writes it; the other cells only read it.
    if waiting and not (args.output / "reference.pt").exists():
        run(waiting.pop(0))
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(run, waiting))


def result_file(output: Path, cell: Cell) -> Path:
    """The path of a cell's result."""
    return output / "cells" / f"{cell.name}.json"


def run_cell(args: argparse.Namespace) -> None:
    """Run one cell in this process."""
    arm, epsilon, seed = args.cell
    cell = Cell(arm, None if epsilon == "None" else float(epsilon), int(seed))
    if not torch.cuda.is_available():
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    result = Comparison(args.data, PROFILES[args.profile], args.output).run(cell)
    row = {"arm": arm, "epsilon": cell.epsilon, "seed": cell.seed, **result}
    result_file(args.output, cell).write_text(json.dumps(row, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Run the cells that are missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="zalando-datasets/fashion_mnist", help="directory of IDX files, or Hub id")
    parser.add_argument("--profile", choices=PROFILES, default="cpu")
    parser.add_argument("--epsilons", type=float, nargs="+", default=[1.0, 10.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="number of cells that run at a time; they share the cores")
    parser.add_argument(
        "--max_minutes", type=float, default=math.inf, help="exit after this time; the same command continues"
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/curriculum_vs_dpsgd"))
    parser.add_argument("--cell", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell:
        run_cell(args)
    else:
        run_all(args)
        report(args.output)


if __name__ == "__main__":
    main()
