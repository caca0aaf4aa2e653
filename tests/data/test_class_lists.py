"""A list of classes that may depend on which records there are is refused unless the user accepts it."""

import json
import re
import shutil
import subprocess
import sys

import datasets
import pytest

from diffusers_dp_curriculum import (
    CentralImageDataset,
    DPCurriculumConfig,
    DPCurriculumTrainer,
    PrivacyLedger,
    load_image_dataset,
    to_image_dataset,
)
from helpers import tiny_scheduler, tiny_unet
from helpers.hub_server import Repo
from helpers.image_data import CLASSES, GREY, LABELS, encoded, labelled, make_dataset, refused, write_images


pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture
def load(tmp_path):
    """`datasets.load_dataset` with a cache below `tmp_path`."""

    def load(*args, **options):
        return datasets.load_dataset(*args, split="train", cache_dir=str(tmp_path / "cache"), **options)

    return load


@pytest.fixture
def found(tmp_path, load):
    """Six images with classes that `datasets` has read from their directories."""
    write_images(tmp_path / "photos" / "cat", GREY[:3])
    write_images(tmp_path / "photos" / "dog", GREY[3:])
    return load("imagefolder", data_dir=str(tmp_path / "photos"))


def test_the_fault_that_is_refused(tmp_path, load, found):
    """One record adds the name of its class to the list."""
    write_images(tmp_path / "photos" / "rare disease", GREY[:1])
    assert found.features["label"].names == ["cat", "dog"]
    more = load("imagefolder", data_dir=str(tmp_path / "photos"))
    assert more.features["label"].names == ["cat", "dog", "rare disease"]
    with refused("The classes may be those directories alone .* `class_names` cat dog 'rare disease' "):
        to_image_dataset(more)


def test_the_way_out_is_a_list_or_a_flag(found):
    with refused(re.escape("`class_names` cat dog (in Python, ['cat', 'dog'])")):
        to_image_dataset(found)
    given = to_image_dataset(found, class_names=["bird", "dog", "cat"])
    assert (given.class_names, given.labels.tolist()) == (["bird", "dog", "cat"], [2, 2, 2, 1, 1, 1])
    assert given.provenance["classes"] == "0 = bird, 1 = dog, 2 = cat: as given; published with the model"
    accepted = to_image_dataset(found, accept_found_classes=True)
    assert (accepted.class_names, accepted.labels.tolist()) == (["cat", "dog"], [0, 0, 0, 1, 1, 1])
    assert "accepted although they may be those directories alone" in accepted.provenance["classes"]
    assert to_image_dataset(found, unconditional=True).class_names is None


def test_trainer_and_central_images_refuse_as_well(found, tmp_path):
    config = DPCurriculumConfig(output_dir=str(tmp_path / "model"), accountant="rdp", train_batch_size=2)
    with refused("in Python, "):
        DPCurriculumTrainer(tiny_unet(num_classes=2), tiny_scheduler(), config, found)
    with refused("in Python, "):
        CentralImageDataset.from_dataset(found, 2, ledger=PrivacyLedger(1e-5))
    assert not (tmp_path / "model").exists()


def again(dataset, tmp_path):
    dataset.save_to_disk(tmp_path / "saved")
    return datasets.load_from_disk(str(tmp_path / "saved"))


def turned(dataset):
    """The same images rotated, which are bytes without a file name."""
    return dataset.map(lambda record: {"image": record["image"].rotate(90)})


OTHER = labelled(GREY[:2], labels=[0, 1])

TRANSFORMATIONS = {
    "as it is": lambda d, _: d,
    "select": lambda d, _: d.select([0, 5]),
    "shuffle": lambda d, _: d.shuffle(seed=1),
    "sort": lambda d, _: d.sort("label"),
    "filter": lambda d, _: d.filter(lambda label: label == 1, input_columns="label"),
    "map": lambda d, _: turned(d),
    "cast": lambda d, _: d.cast_column("label", datasets.ClassLabel(names=["a", "b"])),
    "rename": lambda d, _: d.rename_columns({"label": "animal", "image": "picture"}),
    "add column": lambda d, _: d.add_column("age", list(range(len(d)))),
    "shard": lambda d, _: d.shard(2, 0),
    "split": lambda d, _: d.train_test_split(0.5, seed=0)["train"],
    "flatten": lambda d, _: d.select([0, 5]).flatten_indices(),
    "concatenate with itself": lambda d, _: datasets.concatenate_datasets([d, d]),
    "concatenate": lambda d, _: datasets.concatenate_datasets([OTHER, d]),
    "concatenate what was mapped": lambda d, _: datasets.concatenate_datasets([OTHER, turned(d)]),
    "interleave": lambda d, _: datasets.interleave_datasets([turned(d), OTHER]),
    "save": again,
    "concatenate what was saved": lambda d, tmp: datasets.concatenate_datasets([OTHER, again(d, tmp)]),
    "from the file": lambda d, _: datasets.Dataset.from_file(d.cache_files[0]["filename"]),
    "format": lambda d, _: d.with_format("torch"),
    "in memory": lambda d, _: d.map(lambda record: {"age": 1}, keep_in_memory=True),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_directories_are_known_whatever_was_done_since(name, found, tmp_path):
    dataset = TRANSFORMATIONS[name](found, tmp_path)
    with refused("may be those directories alone that hold an image"):
        to_image_dataset(dataset)
    names = ["a", "b"] if name == "cast" else CLASSES
    assert to_image_dataset(dataset, class_names=names).class_names == names


def test_directories_that_a_saved_data_set_was_made_of(found, tmp_path):
    again(found, tmp_path)
    with refused("may be those directories alone"):
        load_image_dataset(train_data_dir=str(tmp_path / "saved"))
    saved = load_image_dataset(train_data_dir=str(tmp_path / "saved"), class_names=CLASSES)
    assert saved.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert saved.provenance["files"] == "3 found, 3 used, 0 left out"


# Lists that were made after the records had been read


def animals():
    values = [CLASSES[label] for label in LABELS]
    return make_dataset(animal=(datasets.Value("string"), values))


def from_parquet(tmp_path, load):
    animals().to_parquet(tmp_path / "animals.parquet")
    return load("parquet", data_files=str(tmp_path / "animals.parquet"))


def from_json(tmp_path, load):
    write_images(tmp_path / "images", GREY)
    rows = [
        {"image": str(tmp_path / "images" / f"{index}.png"), "animal": CLASSES[label]}
        for index, label in enumerate(LABELS)
    ]
    (tmp_path / "animals.json").write_text("\n".join(map(json.dumps, rows)))
    return load("json", data_files=str(tmp_path / "animals.json")).cast_column("image", datasets.Image())


def saved(tmp_path, load):
    return again(animals(), tmp_path)


@pytest.mark.parametrize("source", [from_parquet, from_json, saved])
def test_lists_that_class_encode_column_read_from_the_records(source, tmp_path, load):
    dataset = source(tmp_path, load).class_encode_column("animal")
    assert dataset.features["animal"].names == CLASSES
    for variant in (dataset, dataset.select([0, 1]), turned(dataset).rename_column("animal", "label")):
        with refused("The classes are not in the schema .* may have been read from its records.* `class_names` cat"):
            to_image_dataset(variant)
        assert to_image_dataset(variant, class_names=CLASSES).labels.tolist() == LABELS[: len(variant)]
    assert to_image_dataset(dataset, accept_found_classes=True).class_names == CLASSES


def test_a_list_that_was_stored_is_declared(tmp_path, load):
    labelled(names=["bird", *CLASSES], labels=[label + 1 for label in LABELS]).to_parquet(tmp_path / "all.parquet")
    stored = load("parquet", data_files=str(tmp_path / "all.parquet"))
    for dataset in (stored, turned(stored), again(stored, tmp_path), stored.rename_column("label", "animal")):
        records = to_image_dataset(dataset)
        assert records.class_names == ["bird", *CLASSES]
        assert records.provenance["classes"].startswith("0 = bird, 1 = cat, 2 = dog: as the column")
    given = datasets.Features(image=datasets.Image(), animal=datasets.ClassLabel(names=CLASSES))
    records = list(animals())
    generated = datasets.Dataset.from_generator(
        lambda: iter(records), features=given, cache_dir=str(tmp_path / "generated")
    )
    assert to_image_dataset(generated).class_names == CLASSES


def test_a_list_of_the_code_that_made_the_data_set_is_declared():
    made = labelled()
    for dataset in (made, made.select([0, 1]), datasets.concatenate_datasets([made, OTHER]), turned(made)):
        assert to_image_dataset(dataset).class_names == CLASSES
    cast = make_dataset(animal=(datasets.Value("int64"), LABELS)).cast_column(
        "animal", datasets.ClassLabel(names=CLASSES)
    )
    assert to_image_dataset(cast).class_names == CLASSES


# The Hub

CARD = b"""---
dataset_info:
  features:
  - name: image
    dtype: image
  - name: label
    dtype:
      class_label:
        names:
          '0': dog
          '1': bird
          '2': cat
---
"""

LOAD = """
import json, sys
from diffusers_dp_curriculum import InputError, load_image_dataset
for options in json.loads(sys.argv[1]):
    try:
        records = load_image_dataset(**options)
        print(json.dumps([records.class_names, records.labels.tolist(), records.provenance]))
    except InputError as error:
        print(json.dumps(str(error)))
"""


@pytest.fixture
def on_hub(hub, tmp_path):
    """A function that puts files on the Hub, and loads them in another process with each set of options."""

    def load_from_hub(repositories, *options, **variables):
        for name, files in repositories.items():
            repository = Repo(private=False)
            repository.commit("Upload", "", files, set())
            hub.repos["dataset", f"alice/{name}"] = repository
        command = [sys.executable, "-c", LOAD, json.dumps(options)]
        environment = hub.environment(tmp_path / "hf", **variables)
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return load_from_hub


def photos(**more):
    files = {f"{CLASSES[label]}/{index}.png": encoded(GREY[index])["bytes"] for index, label in enumerate(LABELS)}
    return {**files, **more}


def test_the_hub_declares_classes_or_the_user_gives_a_list(on_hub, tmp_path):
    def parquet(dataset):
        dataset.to_parquet(tmp_path / "train.parquet")
        return {"data/train.parquet": (tmp_path / "train.parquet").read_bytes()}

    repositories = {
        "photos": photos(**{"cat/7.heic": b"x", "cat/.8.png": b"x", "README.md": b"# Photos"}),
        "folder": photos(**{"README.md": CARD}),
        "strange": photos(**{"README.md": CARD, "wolf/9.png": encoded(GREY[0])["bytes"]}),
        "table": parquet(labelled(names=["bird", *CLASSES])),
        "stray": photos(**{"0.png": encoded(GREY[0])["bytes"]}),
        "words": parquet(animals()),
    }
    photos_of, *others = ({"dataset_name": f"alice/{name}"} for name in repositories)
    lossy, photos_of = photos_of, {**photos_of, "accept_left_out_files": True}
    others[-1]["label_column"] = "animal"
    lost, refusal, given, ignored, accepted, folder, strange, table, stray, words = on_hub(
        repositories,
        lossy,
        photos_of,
        {**photos_of, "class_names": ["dog", "bird", "cat"]},
        {**photos_of, "unconditional": True},
        {**photos_of, "accept_found_classes": True},
        *others,
    )

    assert "would be left out, 1 .heic (in no format that Pillow reads)" in lost
    assert "`class_names` cat dog " in refusal
    assert (given[0], sorted(given[1])) == (["dog", "bird", "cat"], [0, 0, 0, 2, 2, 2])
    assert given[2] == {
        "files": "9 found, 6 used, 3 left out",
        "used": "6 .png",
        "left out": "1 .md (documents); 1 .png (hidden); 1 .heic (in no format that Pillow reads)",
        "classes": "0 = dog, 1 = bird, 2 = cat: as given; published with the model",
    }
    assert ignored[0] is None
    assert accepted[0] == CLASSES
    (offline,) = on_hub({}, photos_of, HF_HUB_OFFLINE="1")
    assert offline == refusal

    assert (folder[0], sorted(folder[1])) == (["dog", "bird", "cat"], [0, 0, 0, 2, 2, 2])  # though no record is a bird
    assert "as the card of the data set declares them" in folder[2]["classes"]
    assert "is missing or none of the declared classes" in strange
    assert table[:2] == [["bird", *CLASSES], LABELS]
    assert stray.startswith("The images lie in several directories, which may be classes")
    assert words.startswith("The column 'animal' does not declare its classes")


# Neighbours: one record more or less


def test_a_folder_of_our_own_publishes_the_same_classes_with_one_record_less(tmp_path):
    write_images(tmp_path / "photos" / "cat", GREY[:3])
    write_images(tmp_path / "photos" / "rare", GREY[3:4])
    more = load_image_dataset(train_data_dir=str(tmp_path / "photos"))
    (tmp_path / "photos" / "rare" / "0.png").unlink()
    less = load_image_dataset(train_data_dir=str(tmp_path / "photos"))
    assert more.class_names == less.class_names == ["cat", "rare"]
    assert "taken from the directories found" in less.provenance["classes"]
    shutil.rmtree(tmp_path / "photos" / "rare")
    given = load_image_dataset(train_data_dir=str(tmp_path / "photos"), class_names=["cat", "rare"])
    assert given.class_names == ["cat", "rare"]
    assert "as given" in given.provenance["classes"]
