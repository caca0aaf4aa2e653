"""Small networks, data sets and directories of runs for the tests."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DModel

from diffusers_dp_curriculum import Mechanism, PrivacyLedger
from diffusers_dp_curriculum.data.image_dataset import ImageDataset


REPOSITORY = Path(__file__).parents[2]
TESTS = REPOSITORY / "tests"  # the working directory of processes that import helpers

# The files of a published pipeline that has classes and central images, besides what keeps private/ from publication.
PUBLISHED = [
    "README.md",
    "central_images.png",
    "model_index.json",
    "pipeline.py",
    "privacy.json",
    "samples.png",
    "scheduler/scheduler_config.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.safetensors",
]


def tiny_unet(num_classes=3, size=8, channels=1, **options):
    settings = {
        "sample_size": size,
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4,
        "num_class_embeds": None if num_classes is None else num_classes + 1,
    }
    return UNet2DModel(**{**settings, **options})


def unet_without_attention(**options):
    blocks = {"down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D")}
    return tiny_unet(**{**blocks, **options})


def smallest_unet(**options):
    """A third of the layers of `tiny_unet`, for tests of whole runs, where any network will do."""
    blocks = {"down_block_types": ("DownBlock2D",), "mid_block_type": None, "up_block_types": ("UpBlock2D",)}
    return tiny_unet(**{"block_out_channels": (8,), **blocks, **options})


def attending_unet(**options):
    """The smallest network with attention, which is where it is coarsest."""
    return smallest_unet(mid_block_type="UNetMidBlock2D", **options)


def tiny_scheduler(prediction_type="v_prediction"):
    return DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type=prediction_type)


def tiny_records(count=60, num_classes=3, size=8, channels=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator)
    if num_classes is None:
        return ImageDataset(images, torch.zeros(count, dtype=torch.int64), None)
    labels = torch.arange(count) % num_classes
    return ImageDataset(images, labels, [f"class {label}" for label in range(num_classes)])


def random_records(count=40, channels=1, size=8, classes=3):
    """Records whose classes are random, too."""
    images = torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8)
    return ImageDataset(images, torch.randint(0, classes, (count,)), [str(c) for c in range(classes)])


def with_users(records, users):
    """The same records, each of the user with that number."""
    return replace(records, users=torch.as_tensor(users))


def uneven_users(count=60, users=12):
    """Users with one to many records."""
    others = torch.arange(count - users) ** 2 % users
    return with_users(tiny_records(count), torch.cat([torch.arange(users), others]))


def without_first(records):
    return ImageDataset(records.images[1:], records.labels[1:], records.class_names)


def records_of_one_value(value):
    """A thousand records of each class, whose means are known."""
    images = torch.full((3000, 1, 8, 8), value, dtype=torch.uint8)
    return ImageDataset(images, torch.arange(3000) % 3, ["0", "1", "2"])


def write_privacy_json(path, **changes):
    """Write a privacy.json as a run does, with some entries changed, and return its path."""
    ledger = PrivacyLedger(1e-5, "rdp")
    ledger.record(Mechanism("central_images_mean", 5.0, 0.1, 5, 4.0))
    ledger.record(Mechanism("dp_sgd", 2.0, 0.1, 10, 1.0))
    path.write_text(json.dumps({**ledger.statement(60).to_dict(), **changes}, indent=2))
    return path


def write_run(directory, *mechanisms, saved=True, delta=1e-5, accountant="rdp", **options):
    """Write the journal of a run and, if it was saved, its privacy.json; return the directory of the run."""
    (directory / "private").mkdir(parents=True)
    ledger = PrivacyLedger(delta, accountant, directory / "private" / "journal.jsonl", **options)
    return _execute(ledger, directory, mechanisms, saved)


def resume_run(directory, *mechanisms, saved=True):
    """Resume the run that `write_run` wrote after its last event, and return its directory."""
    journal = directory / "private" / "journal.jsonl"
    position = len(journal.read_text().splitlines())
    return _execute(PrivacyLedger.resume(journal, position), directory, mechanisms, saved)


def _execute(ledger, directory, mechanisms, saved):
    for mechanism in mechanisms:
        ledger.record(mechanism)
    if saved:
        ledger.mark_visible("pipeline")
        (directory / "privacy.json").write_text(ledger.statement(60).to_json())
    ledger.close()
    return directory
