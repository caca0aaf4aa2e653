"""Compare the curriculum with DP-SGD alone on Fashion-MNIST, at equal epsilon and for about equal processor time.

    python benchmarks/curriculum_vs_dpsgd.py --data fashion-mnist/ --profile cpu --jobs 2 --output outputs/comparison

`--data` is a directory of IDX files, or a Hub id. Each combination of arm, epsilon and seed is a cell, which runs in
its own process and has its own result. The same command continues after an interruption: finished cells are kept, and a
cell in training resumes from its checkpoint. `--max_minutes 9` ends the command after that time. The tables and the
figures show the finished cells. `--arms` and `--epsilons` choose other cells, such as those of users with several
images. `--trials` runs the settings that were tried for each arm, at epsilon 10 and with a seed that no other cell has.

Accuracy is that of a CNN trained on the synthetic images alone and tested on the real test set. The Frechet distance to
that set uses the features of the same kind of CNN, trained on the real training set, and so do precision and recall. A
random forest on pixels is a second classifier. All measures read records outside of all mechanisms, so they are only
for public data sets such as this one.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import set_seed
from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler, UNet2DModel
from sklearn.ensemble import RandomForestClassifier

from comparison_profiles import PROFILES, Profile
from comparison_report import ARMS, Cell, report
from diffusers_dp_curriculum import (
    ClassConditionalPipeline,
    DPCurriculumConfig,
    DPCurriculumTrainer,
    ImageDataset,
    build_unet,
    generate_dataset,
    load_image_dataset,
)
from diffusers_dp_curriculum.evaluation.fidelity import frechet_distance, precision_recall_density_coverage
from diffusers_dp_curriculum.evaluation.utility import Classifier, accuracy, make_cnn, train_classifier
from diffusers_dp_curriculum.gradients.losses import DenoisingLoss
from diffusers_dp_curriculum.mechanisms.releases import ReleasedImages
from diffusers_dp_curriculum.pictures import image_grid
from diffusers_dp_curriculum.training.stages import warm_up_stages
from diffusers_dp_curriculum.training.warm_up import start_warm_up, warm_up


WITHOUT_PRIVACY = ("non_private", "real")
RECORDS_PER_USER = 5  # in the arms whose unit of privacy is a user
TRIAL_EPSILON, TRIAL_SEED = 10.0, 100
STEPS_BETWEEN_STATES = 500  # between saved states of the arm without privacy
GRID_COLUMNS = 5


def cells(arms: list[str], epsilons: list[float], seeds: int) -> list[Cell]:
    """List all cells seed by seed, so that the first results already fill a table."""
    return [
        Cell(arm, epsilon, seed)
        for seed in range(seeds)
        for arm in arms
        for epsilon in ([None] if arm in WITHOUT_PRIVACY else epsilons)
    ]


def trial_cells(profile: Profile) -> list[Cell]:
    """List the trials of all arms, the first one of every arm first."""
    trials = [(number, arm) for arm, tried in profile.trials.items() for number in range(len(tried))]
    return [Cell(arm, TRIAL_EPSILON, TRIAL_SEED, number) for number, arm in sorted(trials)]


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
        self.num_classes = len(self.train.class_names)

    def run(self, cell: Cell) -> dict:
        """Train, generate and measure a cell; return its result."""
        if cell.arm == "real":
            return self._measure_real(cell.seed)
        pipeline, spent = self._train_without_privacy(cell) if cell.arm == "non_private" else self._train(cell)
        images, labels = self._synthesize(pipeline, self.output / "synthetic" / cell.name, cell.seed)
        save_grid(images, labels, self.output / "grids" / f"{cell.name}.png")
        return {
            **self.measure(images, labels, cell.seed),
            "epsilon_spent": spent,
            "core_minutes": read_core_seconds(self.output / "runs" / cell.name) / 60,
        }

    def measure(self, images: torch.Tensor, labels: torch.Tensor, seed: int) -> dict[str, float]:
        """Measure synthetic images: `uint8` of shape `(N, channels, size, size)`, with labels of shape `(N,)`."""
        classifier = train_classifier(images, labels, self.num_classes, seed=seed)
        return self._utility(classifier, images, labels, seed) | self._fidelity(images)

    def _measure_real(self, seed: int) -> dict:
        """Measure as many real training images as are generated, with classifiers that learn from all of them."""
        images, labels = self.train.images, self.train.labels
        classifier = train_classifier(images, labels, self.num_classes, epochs=self.profile.reference_epochs, seed=seed)
        some = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        some = some[: self.num_classes * self.profile.images_per_class]
        return self._utility(classifier, images, labels, seed) | self._fidelity(images[some])

    def _utility(self, classifier: Classifier, images: torch.Tensor, labels: torch.Tensor, seed: int) -> dict:
        """The accuracy on the real test images of a CNN and of a random forest that have learned these images."""
        forest = RandomForestClassifier(random_state=seed).fit(images.flatten(1).numpy(), labels.numpy())
        return {
            "accuracy": accuracy(classifier, self.test.images, self.test.labels),
            "forest_accuracy": forest.score(self.test.images.flatten(1).numpy(), self.test.labels.numpy()),
        }

    def _fidelity(self, images: torch.Tensor) -> dict[str, float]:
        """How near the images are to the real test images; precision and recall take as many of these."""
        features = self.features(images)
        near = precision_recall_density_coverage(self.real_features[: len(features)], features)
        return {
            "frechet_distance": frechet_distance(self.real_features, features),
            "precision": near["precision"],
            "recall": near["recall"],
        }

    def config(self, cell: Cell) -> DPCurriculumConfig:
        """The hyper-parameters of a cell."""
        return DPCurriculumConfig(
            output_dir=str(self.output / "runs" / cell.name),
            seed=cell.seed,
            target_epsilon=cell.epsilon or 1.0,
            resume_from_checkpoint="latest",
            checkpoints_total_limit=1,
            **self.profile.settings(cell.arm, cell.trial),
        )

    def _train(self, cell: Cell) -> tuple[ClassConditionalPipeline, float]:
        """Train by the trainer; return the pipeline and the epsilon spent."""
        config = self.config(cell)
        finished = Path(config.output_dir, "privacy.json")
        if not finished.is_file():
            set_seed(cell.seed)
            trainer = DPCurriculumTrainer(self.unet(), make_scheduler(), config, self._records(cell))
            with counted_core_seconds(Path(config.output_dir)):
                trainer.train()
            trainer.save_pipeline()
        spent = json.loads(finished.read_text(encoding="utf-8"))["epsilon"]
        return ClassConditionalPipeline.from_pretrained(config.output_dir), spent

    def _records(self, cell: Cell) -> ImageDataset:
        """The records; in the arms with users, each of them has the next five of its class, or of a random order."""
        if "users" not in cell.arm:
            return self.train
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(cell.seed))
        if cell.arm == "users_of_a_class":
            order = order[self.train.labels[order].argsort(stable=True)]
        users = torch.empty_like(order)
        users[order] = torch.arange(len(order)) // RECORDS_PER_USER
        return replace(self.train, users=users)

    def _train_without_privacy(self, cell: Cell) -> tuple[ClassConditionalPipeline, None]:
        """Warm up on the records themselves; return the pipeline."""
        config = self.config(cell)
        directory = Path(config.output_dir)
        directory.mkdir(parents=True, exist_ok=True)
        (stage,) = warm_up_stages(config)
        set_seed(cell.seed)
        state = start_warm_up(self.unet().to("cuda" if torch.cuda.is_available() else "cpu"), stage, config)
        saved_state = directory / "state.pt"
        if saved_state.exists():
            state.load_state_dict(torch.load(saved_state, weights_only=True))

        def save_state(error: torch.Tensor) -> None:
            if state.step % STEPS_BETWEEN_STATES == 0 or state.step == stage.train_steps:
                save_atomically(state.state_dict(), saved_state)

        loss = DenoisingLoss(
            make_scheduler(),
            noise_level_mean=config.noise_level_mean,
            noise_level_std=config.noise_level_std,
            label_dropout=config.label_dropout,
            null_label=self.num_classes,
        )
        records = ReleasedImages(self.train.images.float() / 255, self.train.labels)
        with counted_core_seconds(directory):
            warm_up(state, loss, records, stage, config, after_step=save_state)
        return ClassConditionalPipeline(state.unet, make_scheduler(), dict(enumerate(self.train.class_names))), None

    def unet(self) -> UNet2DModel:
        """The network of all arms, with random weights."""
        return build_unet(
            self.profile.resolution,
            self.train.images.shape[1],
            self.num_classes,
            block_out_channels=self.profile.block_out_channels,
        )

    def _synthesize(self, pipeline: ClassConditionalPipeline, directory: Path, seed: int):
        """Generate the images to measure, `uint8` of shape `(N, channels, size, size)`, and their labels."""
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
        images = torch.from_numpy(np.stack(dataset["image"][:]))
        images = images[:, None] if images.ndim == 3 else images.movedim(-1, 1)
        return images, torch.from_numpy(dataset["label"][:])

    @cached_property
    def features(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """From `uint8` images to the input of the last layer of a CNN that has learned the real training images."""
        body = self._reference().network[:-2]  # without dropout and the last layer

        @torch.no_grad()
        def features(images: torch.Tensor) -> torch.Tensor:
            return torch.cat([body(ImageDataset.to_model_range(batch)) for batch in images.split(500)])

        return features

    @cached_property
    def real_features(self) -> torch.Tensor:
        """The features of the real test images."""
        return self.features(self.test.images)

    def _reference(self) -> Classifier:
        """Load or train the CNN whose features the Frechet distance uses; it is the same for all cells."""
        path = self.output / "reference.pt"
        if path.exists():
            classifier = Classifier(make_cnn(self.train.images.shape[1], self.num_classes))
            classifier.load_state_dict(torch.load(path, weights_only=True))
            return classifier.eval()
        classifier = train_classifier(
            self.train.images, self.train.labels, self.num_classes, epochs=self.profile.reference_epochs
        )
        classifier.cpu()
        save_atomically(classifier.state_dict(), path)
        return classifier


@contextmanager
def counted_core_seconds(directory: Path) -> Iterator[None]:
    """Add the processor time within the context to a file in the directory, however the context ends."""
    before = read_core_seconds(directory) - time.process_time()
    try:
        yield
    finally:
        (directory / "core_seconds.json").write_text(json.dumps(before + time.process_time()), encoding="utf-8")


def read_core_seconds(directory: Path) -> float:
    """The processor time of a run so far, in seconds."""
    path = directory / "core_seconds.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else 0.0


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


def save_grid(images: torch.Tensor, labels: torch.Tensor, path: Path) -> None:
    """Save a grid of the first images of each class, one row per class."""
    path.parent.mkdir(exist_ok=True)
    first = torch.cat([images[labels == label][:GRID_COLUMNS] for label in labels.unique()])
    columns = min(GRID_COLUMNS, len(first) // len(labels.unique()))
    image_grid(first.float() / 255, columns=columns, height=32).save(path)


# All cells.


def run_all(args: argparse.Namespace, wanted: list[Cell]) -> None:
    """Run the cells without a result, `--jobs` at a time, each as a process with its share of the cores."""
    deadline = time.monotonic() + 60 * args.max_minutes
    waiting = [cell for cell in wanted if not cell.result_file(args.output).exists()]
    threads = max((os.cpu_count() or 1) // args.jobs, 1)

    def run(cell: Cell) -> None:
        if time.monotonic() >= deadline:
            return
        command = [sys.executable, __file__, "--data", args.data, "--profile", args.profile, "--output", args.output]
        command += ["--cell", cell.arm, str(cell.epsilon), str(cell.seed), str(cell.trial)]
        with (args.output / "logs" / f"{cell.name}.log").open("a") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
            try:
                process.wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                process.terminate()  # the trainer writes a checkpoint and exits
                process.wait()
        done = cell.result_file(args.output).exists()
        print(f"{cell.name}: {'done' if done else f'not done, see {log.name}'}", flush=True)

    for directory in ("logs", "cells", "runs"):
        (args.output / directory).mkdir(parents=True, exist_ok=True)
    # Without a reference, the first cell runs alone and writes it; the other cells only read it.
    if waiting and not (args.output / "reference.pt").exists():
        run(waiting.pop(0))
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(run, waiting))


def run_cell(args: argparse.Namespace) -> None:
    """Run one cell in this process."""
    cell = Cell.parse(*args.cell)
    if not torch.cuda.is_available():
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    cell.write(args.output, Comparison(args.data, PROFILES[args.profile], args.output).run(cell))


def main() -> None:
    """Run the cells that are missing, then report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="zalando-datasets/fashion_mnist", help="directory of IDX files, or Hub id")
    parser.add_argument("--profile", choices=PROFILES, default="cpu")
    parser.add_argument("--arms", choices=ARMS, nargs="+", default=[arm for arm in ARMS if "users" not in arm])
    parser.add_argument("--epsilons", type=float, nargs="+", default=[0.2, 1.0, 10.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--trials", action="store_true", help="run the trials of the settings, and nothing else")
    parser.add_argument("--jobs", type=int, default=1, help="number of cells that run at a time; they share the cores")
    parser.add_argument(
        "--max_minutes", type=float, default=math.inf, help="exit after this time; the same command continues"
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/curriculum_vs_dpsgd"))
    parser.add_argument("--cell", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell:
        run_cell(args)
        return
    wanted = trial_cells(PROFILES[args.profile]) if args.trials else cells(args.arms, args.epsilons, args.seeds)
    run_all(args, wanted)
    report(args.output, PROFILES[args.profile])


if __name__ == "__main__":
    main()
