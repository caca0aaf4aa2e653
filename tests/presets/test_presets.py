"""Each preset is tried on a generated data set with the columns, sizes and labels of the real one."""

import json
from dataclasses import replace
from importlib.resources import files

import datasets
import numpy as np
import PIL.Image
import pytest
import torch

from diffusers_dp_curriculum import (
    ClassConditionalPipeline,
    DPCurriculumConfig,
    DPCurriculumTrainer,
    InputError,
    load_preset,
    presets,
)
from diffusers_dp_curriculum.commands.train import ScriptArguments, network_of, parse_arguments, scheduler_of
from diffusers_dp_curriculum.data.image_dataset import to_image_dataset
from diffusers_dp_curriculum.options import declared_options
from diffusers_dp_curriculum.training.planning import make_plan


PRESETS = presets.preset_names()
OURS = ["digits", "fashion_mnist_16"]
PUBLISHED = [name for name in PRESETS if name not in OURS]

TEN = datasets.ClassLabel(num_classes=10)
GREY = {"image": (28, 28), "label": TEN}
CELEBA = {
    "image": (218, 178, 3),
    "celeb_id": datasets.Value("int64"),
    "Eyeglasses": datasets.Value("bool"),
    "Male": datasets.Value("bool"),
}
# For each data set on the Hub the number of records, and the feature of each column, or the shape of its images.
SCHEMAS = {
    "mnist": (60_000, GREY),
    "fashion_mnist": (60_000, GREY),
    "cifar10": (50_000, {"img": (32, 32, 3), "label": TEN}),
    "celeba_32": (162_770, CELEBA),
    "celeba_64": (162_770, CELEBA),
    "celeba_128": (162_770, CELEBA),
    "camelyon17": (
        302_436,
        {
            "image": (96, 96, 3),
            "label": datasets.ClassLabel(num_classes=2),
            "center": datasets.ClassLabel(num_classes=5),
            "patient": datasets.Value("int64"),
        },
    ),
}


def generated(schema, count=20):
    """A data set with one of these schemas: images of noise, with labels 0 and 1 in turn."""
    generator = np.random.default_rng(0)
    columns, features = {}, {}
    for name, feature in schema.items():
        if isinstance(feature, tuple):
            pixels = generator.integers(0, 256, (count, *feature), dtype=np.uint8)
            columns[name], features[name] = [PIL.Image.fromarray(image) for image in pixels], datasets.Image()
        else:
            columns[name], features[name] = [number % 2 for number in range(count)], feature
    return datasets.Dataset.from_dict(columns).cast(datasets.Features(features))


def load(preset, *flags):
    """The options that the command makes of a preset and further flags, and a generated data set."""
    script, config = parse_arguments(["--preset", preset, *map(str, flags)])
    records = to_image_dataset(
        generated(SCHEMAS[preset][1]),
        resolution=script.resolution,
        image_column=script.image_column,
        label_column=script.label_column,
        class_names=script.class_names,
    )
    return script, config, records


def test_what_is_no_preset_is_refused_with_the_names_of_all():
    with pytest.raises(InputError, match='no preset "letters": choose one of camelyon17, .* fashion_mnist_16, mnist'):
        load_preset("letters")


def test_every_row_of_the_table_has_a_preset():
    assert sorted(SCHEMAS) == PUBLISHED


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_made_of_known_flags_that_combine_with_others(preset):
    known = {option.name for kind in (ScriptArguments, DPCurriculumConfig) for option in declared_options(kind)}
    values = load_preset(preset)
    assert set(values) <= known
    flags = ["--max_train_steps", "7", "--layers_per_block", "1", "--train_data_dir", "photos"]
    script, config = parse_arguments(["--preset", preset, *flags])
    assert (config.max_train_steps, script.layers_per_block) == (7, 1)
    assert (script.dataset_name, script.label_column, script.class_names) == (None, None, None)
    assert config.noise_multiplicity == values["noise_multiplicity"]


@pytest.mark.parametrize("preset", PUBLISHED)
def test_every_value_has_its_source(preset):
    lines = (files(presets) / f"{preset}.yaml").read_text(encoding="utf-8").splitlines()
    values = [line for line in lines if line and not line.startswith("#")]
    assert [line for line in values if "  # " not in line and not line.startswith("output_dir")] == []


@pytest.mark.parametrize("preset", PUBLISHED)
def test_builds_and_plans_on_the_schema(preset):
    """Build the network without its weights, and plan both budgets for the number of real records."""
    script, config, records = load(preset)
    with torch.device("meta"):
        unet = network_of(script, records.info)
    unet(
        torch.empty(2, records.num_channels, records.resolution, records.resolution, device="meta"),
        torch.empty(2, device="meta"),
        torch.empty(2, dtype=torch.int64, device="meta"),
    )
    million = unet.num_parameters() / 1e6
    low, high = {1: (1.5, 1.7), 3: (2.0, 4.5)}[records.num_channels]  # paper: about 1.5 and 3.9
    assert low < million < high
    attention = [name for name in unet.config.down_block_types if name == "AttnDownBlock2D"]
    assert len(attention) == script.attention_levels
    info = replace(records.info, num_records=SCHEMAS[preset][0])
    for epsilon in (1.0, 10.0):
        config = replace(config, target_epsilon=epsilon, accountant="rdp")  # the quicker accountant
        plan = make_plan(config, info)
        assert 0.9 * epsilon < plan.epsilon_after[config.max_train_steps] <= epsilon
        assert plan.epsilon_after[0] < 0.6 * epsilon  # the queries leave room for DP-SGD


SMALL = {  # flags with which a preset trains in seconds on a CPU
    "central_images_per_class": 2,
    "central_noise_multiplier": 50,
    "central_train_steps": 2,
    "central_batch_size": 2,
    "frequency_noise_multiplier": 50,
    "frequency_generator_steps": 2,
    "frequency_train_steps": 2,
    "frequency_batch_size": 2,
    "train_batch_size": 2,
    "max_train_steps": 2,
    "noise_multiplicity": 2,
    "max_physical_batch_size": 2,
    "num_inference_steps": 2,
    "target_delta": 1e-3,
}


@pytest.mark.slow
@pytest.mark.parametrize("preset", PUBLISHED)
def test_trains_and_samples_on_the_schema(preset, tmp_path):
    flags = [text for name, value in SMALL.items() for text in (f"--{name}", value)]
    script, config, records = load(preset, *flags, "--output_dir", tmp_path / "model")
    scheduler = scheduler_of(script)
    trainer = DPCurriculumTrainer(network_of(script, records.info), scheduler, config, records)
    trainer.train()
    trainer.save_pipeline()
    assert json.loads((tmp_path / "model" / "privacy.json").read_text())["epsilon"] <= config.target_epsilon
    pipeline = ClassConditionalPipeline.from_pretrained(tmp_path / "model")
    images = pipeline([0, 1], num_inference_steps=2, output_type="pt").images
    assert images.shape == (2, records.num_channels, script.resolution, script.resolution)
    assert images.isfinite().all()
