"""From a pipeline to a synthetic data set: post-processing of the weights, at no cost in privacy."""

import hashlib
import io
import json
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import CommitInfo
from PIL import Image
from tqdm.auto import tqdm

from ..errors import InputError
from ..privacy.publishability import check_statement
from ..privacy.statement import PrivacyStatement
from ..sharing.cards import update as update_card
from ..sharing.dataset_card import make_dataset_card
from ..sharing.hub import push_dataset
from .dataset_directory import DatasetDirectory, ImageFolderLayout, ParquetLayout, parquet_bytes
from .preview import check_sampling


MAX_SHARD_BYTES = 500_000_000  # of a parquet file on the Hub, as `datasets` has it


class SyntheticDataset(datasets.Dataset):
    """A `datasets.Dataset` of generated images that knows the budget of the model they came from.

    What is made of its rows by `select`, `map` and the like is a plain `datasets.Dataset`.

    Attributes:
        privacy (`PrivacyStatement`, *optional*): What the model's privacy.json says; None if it is not known.
        card (`str`, *optional*):
            The data set card, where `privacy` is known. Its generated sections are written anew when it is pushed.
    """

    @classmethod
    def wrap(cls, dataset: datasets.Dataset, privacy: PrivacyStatement | None) -> "SyntheticDataset":
        """`dataset` with the budget of its model."""
        wrapped = cls(dataset.data, info=dataset.info, split=dataset.split)
        wrapped.privacy = privacy
        wrapped.card = _card(dataset, privacy) if privacy else None
        return wrapped

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
    ) -> CommitInfo:
        """Push the images as parquet files, with a card that states the budget, and privacy.json; in one commit.

        Args:
            repo_id (`str`): `"user/name"`, or a name in the namespace of the token's owner.
            commit_message (`str`, *optional*): One line; the privacy budget by default.
            private (`bool`, *optional*): Whether a new repository is private; the namespace's default by default.
            token (`str`, *optional*): That of `hf auth login` or `HF_TOKEN` by default.
            create_pr (`bool`, *optional*, defaults to False): Open a pull request instead.

        Returns:
            `huggingface_hub.CommitInfo`: Address and id of the commit.

        Raises:
            [`InputError`]: If the budget is not known.
            [`HubError`]: If the push does not succeed; nothing is lost then.
        """
        if self.privacy is None:
            raise InputError(
                "The budget of the model is not known, and the images may not be published without: give "
                "`generate_dataset` its `privacy_json`."
            )
        with tempfile.TemporaryDirectory() as directory:
            card = update_card(self.card, _card(self, self.privacy))  # columns may have gone since it was written
            Path(directory, "README.md").write_text(card, encoding="utf-8")
            Path(directory, "privacy.json").write_text(self.privacy.to_json(), encoding="utf-8")
            Path(directory, "data").mkdir()
            num_shards = max(math.ceil(self.data.nbytes / MAX_SHARD_BYTES), 1)
            for index in range(num_shards):
                shard = self.shard(num_shards, index, contiguous=True).flatten_indices()
                table = datasets.table.embed_table_storage(shard.data.table)
                Path(directory, f"data/train-{index:05d}-of-{num_shards:05d}.parquet").write_bytes(parquet_bytes(table))
            return push_dataset(
                directory,
                repo_id,
                commit_message=commit_message,
                private=private,
                token=token,
                create_pr=create_pr,
            )


def apportion(total: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers that add up to `total`, in proportion to `weights` (by the method of largest remainders).

    Args:
        total (`int`): The number of images in all.
        weights (`Sequence[float]`): One a class, such as [`CentralImageDataset.class_counts`].

    Raises:
        [`InputError`]: If no weight is above 0, or one is below.
    """
    if min(weights) < 0 or not 0 < sum(weights) < math.inf:
        raise InputError(f"The classes cannot have the weights {list(weights)}: give them 0 or more, and not all 0.")
    quotas = [total * weight / sum(weights) for weight in weights]
    counts = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(counts)), key=lambda index: counts[index] - quotas[index])
    for index in by_remainder[: total - sum(counts)]:
        counts[index] += 1
    return counts


def generate_dataset(
    pipeline: DiffusionPipeline,
    images_per_class: int | Sequence[int],
    *,
    output_dir: str | os.PathLike[str] | None = None,
    file_format: str = "parquet",
    batch_size: int = 250,
    num_inference_steps: int = 50,
    guidance_scale: float = 1.0,
    s_churn: float = 0.0,
    s_tmin: float = 0.05,
    s_tmax: float = 50.0,
    seed: int = 0,
    privacy_json: str | os.PathLike[str] | None = None,
) -> SyntheticDataset:
    """Sample an image data set with labels, balanced or with given numbers of images.

    The classes take turns, row by row, so that every prefix and every shard is as balanced as the whole. With
    `output_dir`, each batch becomes a shard that depends on nothing but the settings and its index, and whose files
    appear whole or not at all: the same call after an interruption goes on where the first one stopped, and ends with
    the same bytes. `datasets.load_dataset(output_dir)` loads what was written.

    Args:
        pipeline ([`DiffusionPipeline`]):
            A [`ClassConditionalPipeline`], or an unconditional pipeline such as [`DDPMPipeline`], on the device that
            is to do the work.
        images_per_class (`int` or `Sequence[int]`):
            The number of images of each class, one for all or one for each (see [`apportion`]); for an unconditional
            pipeline, the number of images.
        output_dir (`str` or `os.PathLike`, *optional*):
            Where to write the data set: a directory that is new, empty, or holds a part of this very data set. Without
            it, the data set stays in memory.
        file_format (`str`, *optional*, defaults to `"parquet"`):
            `"parquet"` for `data/train-00000-of-0000N.parquet`, or `"imagefolder"` for
            `train/<class name>/<row>.png` with the labels in `train/metadata.parquet`. In folder names, whatever is
            not a letter, a digit, a space, `-` or `_` becomes `_`.
        batch_size (`int`, *optional*, defaults to 250):
            The number of images sampled at once, and in a shard.
        num_inference_steps (`int`, *optional*, defaults to 50):
            The number of denoising steps, at most those that the scheduler was trained with.
        guidance_scale (`float`, *optional*, defaults to 1.0):
            Weight `w >= 0` of classifier-free guidance; at 1 the model is sampled as it is.
        s_churn (`float`, *optional*, defaults to 0.0):
            Fresh noise of EDM's stochastic sampling, as [`ClassConditionalPipeline`] has it; 0 is none.
        s_tmin (`float`, *optional*, defaults to 0.05):
            The lowest noise level at which it is added.
        s_tmax (`float`, *optional*, defaults to 50.0):
            The highest one.
        seed (`int`, *optional*, defaults to 0):
            Chooses the sample. No privacy depends on it.
        privacy_json (`str` or `os.PathLike`, *optional*):
            The `privacy.json` of the pipeline: copied into `output_dir` when all images are there, with a data set card
            beside it, and needed by `push_to_hub`.

    Returns:
        [`SyntheticDataset`]: A `datasets.Dataset` with the column `image` (`datasets.Image`) and, for a
        class-conditional pipeline, `label` (`datasets.ClassLabel`).

    Raises:
        [`InputError`]: If an argument is out of its range, or `output_dir` holds anything but a part of this data set.

    Examples:
        >>> from diffusers_dp_curriculum import ClassConditionalPipeline, build_scheduler, build_unet, generate_dataset
        >>> unet = build_unet(resolution=8, num_channels=1, num_classes=2, block_out_channels=(8, 16))
        >>> pipe = ClassConditionalPipeline(unet, build_scheduler(), id2label={0: "healthy", 1: "ill"})
        >>> dataset = generate_dataset(pipe, images_per_class=3, num_inference_steps=2)
        >>> dataset["label"][:]
        [0, 1, 0, 1, 0, 1]
        >>> dataset[0]["image"].size
        (8, 8)
    """
    class_names = getattr(pipeline, "class_names", None)  # an unconditional pipeline has none
    counts = _counts_of_classes(images_per_class, class_names)
    churn = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax} if s_churn else {}
    if min(counts) < 0 or sum(counts) < 1 or batch_size < 1:
        raise InputError(f"`images_per_class` is {images_per_class} and `batch_size` is {batch_size}: give at least 1.")
    check_sampling(pipeline.scheduler, class_names is not None, num_inference_steps, guidance_scale, s_churn)
    if seed < 0:
        raise InputError(f"`seed` is {seed}: give 0 or more.")
    if file_format not in ("parquet", "imagefolder"):
        raise InputError(f'`file_format` is {file_format!r}: choose "parquet" or "imagefolder".')
    if privacy_json is not None and not Path(privacy_json).is_file():
        raise InputError(f"`privacy_json` is {privacy_json}, which is not a file: give the path of one.")
    privacy = None if privacy_json is None else check_statement(Path(privacy_json))

    labels = None if class_names is None else _take_turns(counts)
    num_images = sum(counts)
    shards = [range(num_images)[start : start + batch_size] for start in range(0, num_images, batch_size)]

    directory = None
    if output_dir is not None:
        settings = {
            "images_per_class": images_per_class if isinstance(images_per_class, int) else counts,
            "class_names": class_names,
            "file_format": file_format,
            "batch_size": batch_size,
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
            **churn,
            "seed": seed,
            "scheduler": _scheduler_settings(pipeline),
            "weights_sha256": _weights_sha256(pipeline),
        }
        layout: ParquetLayout | ImageFolderLayout = ImageFolderLayout(class_names, labels, num_images)
        if file_format == "parquet":
            layout = ParquetLayout(len(shards))
        directory = DatasetDirectory(Path(output_dir).resolve(), layout, settings)

    sampling = {"num_inference_steps": num_inference_steps, **churn}
    if class_names is not None:
        sampling["guidance_scale"] = guidance_scale
    tables = []
    with tqdm(total=num_images, desc="Generating", unit="image") as progress:
        for index, rows in enumerate(shards):
            if directory is None or not directory.has_shard(index, rows):
                of_rows = None if labels is None else labels[rows.start : rows.stop]
                table = _sample_shard(pipeline, len(rows), of_rows, (seed, index), sampling)
                if directory is None:
                    tables.append(table)
                else:
                    directory.write_shard(index, rows, table)
            progress.update(len(rows))

    if directory is None:
        return SyntheticDataset.wrap(datasets.Dataset(pa.concat_tables(tables)), privacy)
    directory.finish()
    # By its absolute path, lest a relative one be the name of a loader, such as "parquet".
    dataset = SyntheticDataset.wrap(datasets.load_dataset(str(directory.path), split="train"), privacy)
    if privacy_json is not None:
        dataset.card = directory.describe(privacy_json, dataset.card)
    return dataset


def _sample_shard(
    pipeline: DiffusionPipeline,
    num_images: int,
    labels: list[int] | None,
    seed: tuple[int, int],
    sampling: dict[str, Any],
) -> pa.Table:
    """The rows of a shard, which depend on the settings, the seed and the index of the shard alone."""
    shard_seed = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    generator = torch.Generator(pipeline.device).manual_seed(int(shard_seed[0]))
    features = datasets.Features({"image": datasets.Image()})
    columns: dict[str, list[Any]] = {}
    condition: dict[str, Any] = {"batch_size": num_images}
    if labels is not None:
        features["label"] = datasets.ClassLabel(names=pipeline.class_names)
        columns["label"] = labels
        condition = {"class_labels": labels}
    images = pipeline(**condition, **sampling, generator=generator).images
    columns["image"] = [{"bytes": _png(image), "path": None} for image in images]
    return pa.table(columns, schema=features.arrow_schema)


def _counts_of_classes(images_per_class: int | Sequence[int], class_names: list[str] | None) -> list[int]:
    """How many images each class is to have; one number if there are no classes."""
    if isinstance(images_per_class, int):
        return [images_per_class] * (1 if class_names is None else len(class_names))
    if class_names is None:
        raise InputError("An unconditional pipeline has no classes: give `images_per_class` as one number.")
    if len(images_per_class) != len(class_names):
        raise InputError(
            f"`images_per_class` has {len(images_per_class)} numbers for {len(class_names)} classes: give one for all "
            "or one for each."
        )
    return list(images_per_class)


def _take_turns(counts: list[int]) -> list[int]:
    """Labels in which each class comes as often as `counts` says, spread evenly."""
    turns = [((turn + 0.5) / count, label) for label, count in enumerate(counts) for turn in range(count)]
    return [label for _, label in sorted(turns)]


def _card(dataset: datasets.Dataset, privacy: PrivacyStatement) -> str:
    counts = None
    if "label" in dataset.features:
        names = dataset.features["label"].names
        numbers = np.bincount(dataset["label"][:], minlength=len(names)).tolist()
        counts = dict(zip(names, numbers, strict=True))
    return make_dataset_card(privacy, len(dataset), counts).content


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _scheduler_settings(pipeline: DiffusionPipeline) -> dict[str, Any]:
    config = json.loads(pipeline.scheduler.to_json_string())
    return {name: value for name, value in config.items() if name == "_class_name" or not name.startswith("_")}


def _weights_sha256(pipeline: DiffusionPipeline) -> str:
    digest = hashlib.sha256()
    for tensor in pipeline.unet.state_dict().values():
        digest.update(tensor.detach().flatten().cpu().view(torch.uint8).numpy())
    return digest.hexdigest()
