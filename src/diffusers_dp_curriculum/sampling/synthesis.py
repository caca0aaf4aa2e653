"""Samples a synthetic data set from a pipeline. This is post-processing of the weights and costs no privacy."""

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

from ..checks import FILE_FORMAT, at_least
from ..errors import InputError
from ..files import local_path
from ..privacy.publishability import check_statement
from ..privacy.statement import PrivacyStatement
from ..sharing.cards import update as update_card
from ..sharing.dataset_card import make_dataset_card
from ..sharing.hub import push_dataset
from .dataset_directory import DatasetDirectory, ImageFolderLayout, ParquetLayout, parquet_bytes, parquet_file
from .preview import check_sampling, generator_of
from .saved_pipelines import autoencoder_of


MAX_SHARD_BYTES = 500_000_000  # the size of parquet files on the Hub, the same as in `datasets`


class SyntheticDataset(datasets.Dataset):
    """A `datasets.Dataset` of generated images that knows the budget of the model they came from.

    Methods such as `select` and `map` return a plain `datasets.Dataset`, without the budget.

    Attributes:
        privacy (`PrivacyStatement`, *optional*): The content of the model's privacy.json; None if it is not known.
        card (`str`, *optional*):
            The data set card; None if `privacy` is. Its generated sections are rendered again when the data set is
            pushed.
    """

    @classmethod
    def wrap(cls, dataset: datasets.Dataset, privacy: PrivacyStatement | None) -> "SyntheticDataset":
        """Attach the budget of the model to `dataset`.

        Args:
            dataset (`datasets.Dataset`): The generated images.
            privacy (`PrivacyStatement`, *optional*): The content of the model's privacy.json, if it is known.
        """
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
            token (`str`, *optional*): The token of `hf auth login` or `HF_TOKEN` by default.
            create_pr (`bool`, *optional*, defaults to False): Open a pull request instead.

        Returns:
            `huggingface_hub.CommitInfo`: Address and id of the commit.

        Raises:
            [`InputError`]: If the budget is not known.
            [`HubError`]: If the push fails; nothing is lost, and the same call tries again.
        """
        if self.privacy is None:
            raise InputError(
                "The budget of the model is not known, and the images may not be published without it: give "
                "`generate_dataset` its `privacy_json`."
            )
        with tempfile.TemporaryDirectory() as directory:
            # Rendered again, as columns may have been removed since.
            card = update_card(self.card, _card(self, self.privacy))
            Path(directory, "README.md").write_text(card, encoding="utf-8")
            Path(directory, "privacy.json").write_text(self.privacy.to_json(), encoding="utf-8")
            Path(directory, "data").mkdir()
            num_shards = max(math.ceil(self.data.nbytes / MAX_SHARD_BYTES), 1)
            for index in range(num_shards):
                shard = self.shard(num_shards, index, contiguous=True).flatten_indices()
                table = datasets.table.embed_table_storage(shard.data.table)
                Path(directory, parquet_file(index, num_shards)).write_bytes(parquet_bytes(table))
            return push_dataset(
                directory,
                repo_id,
                commit_message=commit_message,
                private=private,
                token=token,
                create_pr=create_pr,
            )


def apportion(total: int, weights: Sequence[float]) -> list[int]:
    """Split `total` into whole numbers in proportion to `weights`, by the method of largest remainders.

    Args:
        total (`int`): The number of images in all.
        weights (`Sequence[float]`): One weight per class, >= 0, such as [`CentralImageDataset.class_counts`].

    Returns:
        `list[int]`: One number per class; they add up to `total`.

    Raises:
        [`InputError`]: If a weight is negative or infinite, or all weights are 0.
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
    """Sample an image data set with labels, balanced or with given numbers of images per class.

    The classes alternate row by row, so that every prefix and every shard is as balanced as the whole. With
    `output_dir`, each batch becomes a shard that depends only on the settings and its index, and its files are either
    complete or absent: after an interruption, the same call continues where the first one stopped and produces the
    same bytes. `datasets.load_dataset(output_dir)` loads the result.

    Args:
        pipeline ([`DiffusionPipeline`]):
            A [`ClassConditionalPipeline`], or an unconditional pipeline such as [`DDPMPipeline`], on the device that
            should do the work.
        images_per_class (`int` or `Sequence[int]`):
            The number of images per class: one number for all classes, or a list with one number per class (see
            [`apportion`]). For an unconditional pipeline, the number of images.
        output_dir (`str` or `os.PathLike`, *optional*):
            Where to write the data set: a directory that is new, empty, or holds a part of the same data set. By
            default the data set stays in memory.
        file_format (`str`, *optional*, defaults to `"parquet"`):
            `"parquet"` for `data/train-00000-of-0000N.parquet`, or `"imagefolder"` for
            `train/<class name>/<row>.png` with the labels in `train/metadata.parquet`. In folder names, every
            character other than letters, digits, spaces, `-` and `_` becomes `_`, and 60 characters are kept.
        batch_size (`int`, *optional*, defaults to 250):
            The number of images that are sampled at once, which is also the number of images per shard.
        num_inference_steps (`int`, *optional*, defaults to 50):
            The number of denoising steps, at most the number of timesteps that the scheduler was trained with.
        guidance_scale (`float`, *optional*, defaults to 1.0):
            Weight `w >= 0` of classifier-free guidance; at 1 the model is sampled as it is.
        s_churn (`float`, *optional*, defaults to 0.0):
            The amount of fresh noise in EDM's stochastic sampling, see [`ClassConditionalPipeline`]; 0 is none.
        s_tmin (`float`, *optional*, defaults to 0.05):
            The lowest noise level at which fresh noise is added.
        s_tmax (`float`, *optional*, defaults to 50.0):
            The highest noise level at which fresh noise is added.
        seed (`int`, *optional*, defaults to 0):
            The seed of sampling, >= 0. Privacy does not depend on it.
        privacy_json (`str` or `os.PathLike`, *optional*):
            The `privacy.json` of the pipeline. It is copied into `output_dir` after the last image, together with a
            data set card, and `push_to_hub` needs it.

    Returns:
        [`SyntheticDataset`]: A `datasets.Dataset` with the column `image` (`datasets.Image`) and, for a
        class-conditional pipeline, `label` (`datasets.ClassLabel`).

    Raises:
        [`InputError`]: If an argument is out of range, `output_dir` holds anything but a part of the same data set, or
            images are not made of finite numbers.

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
    counts = _class_counts(images_per_class, class_names)
    if min(counts) < 0 or sum(counts) < 1 or batch_size < 1:
        raise InputError(f"`images_per_class` is {images_per_class} and `batch_size` is {batch_size}: give at least 1.")
    check_sampling(pipeline.scheduler, class_names is not None, num_inference_steps, guidance_scale, s_churn)
    at_least(0).check("seed", seed)
    FILE_FORMAT.check("file_format", file_format)
    if privacy_json is not None and not Path(privacy_json).is_file():
        raise InputError(f"`privacy_json` is {privacy_json}, which is not a file: give the path of one.")
    privacy = None if privacy_json is None else check_statement(Path(privacy_json))

    labels = None if class_names is None else _interleave(counts)
    num_images = sum(counts)
    shards = [range(num_images)[start : start + batch_size] for start in range(0, num_images, batch_size)]
    churn = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax} if s_churn else {}
    sampling = {"num_inference_steps": num_inference_steps, **churn}
    if class_names is not None:
        sampling["guidance_scale"] = guidance_scale

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
        directory = DatasetDirectory(local_path(output_dir).resolve(), layout, settings)

    tables = _sample_shards(pipeline, shards, labels, seed, sampling, directory)
    if directory is None:
        return SyntheticDataset.wrap(datasets.Dataset(pa.concat_tables(tables)), privacy)
    directory.finish()
    # An absolute path, because `datasets` may read a relative one, such as "parquet", as the name of a loader.
    dataset = SyntheticDataset.wrap(datasets.load_dataset(str(directory.path), split="train"), privacy)
    if privacy_json is not None:
        dataset.card = directory.describe(privacy_json, dataset.card)
    return dataset


def _sample_shards(
    pipeline: DiffusionPipeline,
    shards: list[range],
    labels: list[int] | None,
    seed: int,
    sampling: dict[str, Any],
    directory: DatasetDirectory | None,
) -> list[pa.Table]:
    """Sample the shards that the directory lacks, and write them into it; without a directory, return all of them."""
    tables = []
    with tqdm(total=shards[-1].stop, desc="Generating", unit="image") as progress:
        for index, rows in enumerate(shards):
            if directory is None or not directory.has_shard(index, rows):
                shard_labels = None if labels is None else labels[rows.start : rows.stop]
                table = _sample_shard(pipeline, len(rows), shard_labels, (seed, index), sampling)
                if directory is None:
                    tables.append(table)
                else:
                    directory.write_shard(index, rows, table)
            progress.update(len(rows))
    return tables


def _sample_shard(
    pipeline: DiffusionPipeline,
    num_images: int,
    labels: list[int] | None,
    seed: tuple[int, int],
    sampling: dict[str, Any],
) -> pa.Table:
    """Sample the rows of a shard, which depend only on the settings, the seed and the index of the shard."""
    shard_seed = np.random.SeedSequence(seed).generate_state(1, np.uint64)
    generator = generator_of(pipeline).manual_seed(int(shard_seed[0]))
    features = datasets.Features({"image": datasets.Image()})
    columns: dict[str, list[Any]] = {}
    condition: dict[str, Any] = {"batch_size": num_images}
    if labels is not None:
        features["label"] = datasets.ClassLabel(names=pipeline.class_names)
        columns["label"] = labels
        condition = {"class_labels": labels}
    images = pipeline(**condition, **sampling, generator=generator, output_type="np").images
    if not np.isfinite(images).all():  # they would become black images
        raise InputError(
            "The pipeline makes images that are not finite numbers, as its training diverged or its number type is too "
            "small: use another pipeline, or load it in float32."
        )
    columns["image"] = [{"bytes": _png(image), "path": None} for image in pipeline.numpy_to_pil(images)]
    return pa.table(columns, schema=features.arrow_schema)


def _class_counts(images_per_class: int | Sequence[int], class_names: list[str] | None) -> list[int]:
    """The number of images of each class, as a list; a single number without classes."""
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


def _interleave(counts: list[int]) -> list[int]:
    """A list of labels with `counts[label]` copies of each label, spread evenly."""
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
    for network in filter(None, (pipeline.unet, autoencoder_of(pipeline))):
        for tensor in network.state_dict().values():
            digest.update(tensor.detach().flatten().cpu().view(torch.uint8).numpy())
    return digest.hexdigest()
