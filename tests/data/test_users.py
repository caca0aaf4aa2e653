"""Whose record each record is: from a column, or from directories; and that no name of a user gets out."""

import datasets
import pandas as pd
import pytest
import torch

from diffusers_dp_curriculum import ImageDataset, load_image_dataset, to_image_dataset
from diffusers_dp_curriculum.data.grouping import Units
from helpers.image_data import GREY, load, make_dataset, read_list, refused, write_images


pytestmark = pytest.mark.usefixtures("quiet")
STRING, INTEGER = datasets.Value("string"), datasets.Value("int64")
NAMES = ["Ann", "Bob", "Ann", "Cy", "Bob", "Ann"]


def of_users(feature, values, **options):
    return to_image_dataset(make_dataset(patient=(feature, values)), user_column="patient", **options)


@pytest.mark.parametrize(
    ("feature", "values"),
    [
        (STRING, NAMES),
        (datasets.Value("large_string"), NAMES),
        (INTEGER, [7, -1, 7, 0, -1, 7]),
        (datasets.ClassLabel(names=["Ann", "Bob", "Cy"]), [0, 1, 0, 2, 1, 0]),
        (STRING, ["Ann", "Bob", " Ann", "Cy", "Bob ", "Ann"]),
        (STRING, ["\u00c5", "Bob", "A\u030a", "Cy", "Bob", "\u212b"]),  # encodings of one letter
    ],
)
def test_users_of_a_column(feature, values):
    dataset = of_users(feature, values)
    assert dataset.users.tolist() == [0, 1, 0, 2, 1, 0]
    assert (dataset.info.unit, dataset.info.num_units, dataset.info.num_records) == ("user", 3, None)
    assert dataset.provenance["users"] == (
        "3, from the column 'patient', with 6 images: at most 3 each, 2 in the median; the number of images is not "
        "published"
    )


def test_without_a_column_of_users_a_record_is_the_unit():
    dataset = to_image_dataset(make_dataset(patient=(STRING, NAMES)))
    assert dataset.users is None
    assert (dataset.info.unit, dataset.info.num_units, dataset.info.num_records) == ("record", 6, 6)
    assert "the column 'patient' may say whose image it is, and `user_column` patient" in dataset.provenance["users"]
    assert "users" not in to_image_dataset(make_dataset(place=(STRING, NAMES))).provenance


@pytest.mark.parametrize("missing", [None, "", "  "])
def test_a_record_without_a_user_is_refused_and_no_name_is_told(missing):
    with refused("1 of 6 records have no user, the first of which is record 3") as caught:
        of_users(STRING, [*NAMES[:3], missing, *NAMES[4:]])
    assert not any(name in str(caught.value) for name in NAMES)
    text, mode = read_list(caught)
    assert mode == 0o600
    assert not any(name in text for name in NAMES)


def test_empty_cells_among_integers_are_missing_users():
    with refused("2 of 6 records have no user, the first of which is record 1"):
        of_users(datasets.Value("float64"), [1.0, None, 1.0, 2.0, float("nan"), 2.0])
    assert of_users(datasets.Value("float64"), [1.0, 3.0, 1.0, 2.0, 3.0, 1.0]).users.tolist() == [0, 1, 0, 2, 1, 0]


def test_columns_that_name_nobody_are_refused():
    with refused("There is no column 'patient': pass `user_column` with one of image"):
        to_image_dataset(make_dataset(), user_column="patient")
    with refused("The column 'patient' holds neither strings nor integers"):
        of_users(datasets.Sequence(STRING), [[name] for name in NAMES])
    with refused("An ImageDataset has no columns: load it with `user_column`"):
        to_image_dataset(to_image_dataset(make_dataset()), user_column="patient")
    for name in ("digits", None):
        with refused("no columns to choose from|both given or both missing"):
            load_image_dataset(dataset_name=name, user_column="patient")


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_metadata_name_the_users(tmp_path, suffix):
    write_images(tmp_path, GREY)
    table = pd.DataFrame({"file_name": [f"{number}.png" for number in range(6)], "patient": NAMES})
    writers = {
        "csv": lambda path: table.to_csv(path, index=False),
        "jsonl": lambda path: table.to_json(path, orient="records", lines=True),
        "parquet": table.to_parquet,
    }
    writers[suffix](tmp_path / f"metadata.{suffix}")
    dataset = load(tmp_path, user_column="patient")
    records = {image.numpy().tobytes(): int(user) for image, user in zip(dataset.images, dataset.users, strict=True)}
    found = [records[image.tobytes()] for image in GREY]
    assert Units(6, torch.tensor(found)).sizes.tolist() == torch.bincount(torch.tensor(found)).tolist()
    assert all((found[i] == found[j]) == (NAMES[i] == NAMES[j]) for i in range(6) for j in range(6))


def test_directories_of_users_in_directories_of_classes(tmp_path):
    """A person may have images in several classes."""
    for place, images in {
        "ill/Ann": GREY[:2],
        "ill/Bob": GREY[2:3],
        "well/Ann": GREY[3:4],
        "well/Cy/1": GREY[4:],
    }.items():
        write_images(tmp_path / place, images)
    dataset = load(tmp_path, user_directory_level=2)
    assert (dataset.class_names, dataset.labels.tolist()) == (["ill", "well"], [0, 0, 0, 1, 1, 1])
    assert dataset.users.tolist() == [0, 0, 1, 0, 2, 2]
    assert load(tmp_path, user_directory_level=2, unconditional=True).class_names is None
    with refused("pass `user_directory_level` 2 if they lie in one directory per person"):
        load(tmp_path)
    with refused("Not all images in .* lie in a directory of level 3, which says whose they are .4 do not."):
        load(tmp_path, user_directory_level=3)


def test_directories_of_users_at_the_first_level(tmp_path):
    for name, images in {"Ann": GREY[:2], "Bob": GREY[2:]}.items():
        write_images(tmp_path / "plain" / name, images)
    dataset = load(tmp_path / "plain", user_directory_level=1)
    assert (dataset.class_names, dataset.users.tolist()) == (None, [0, 0, 1, 1, 1, 1])

    for place, images in {"Ann/ill": GREY[:2], "Ann/well": GREY[2:3], "Bob/ill": GREY[3:]}.items():
        write_images(tmp_path / "classes" / place, images)
    with refused("their list depends on the users: pass `class_names`") as caught:
        load(tmp_path / "classes", user_directory_level=1)
    assert "Ann" not in str(caught.value)
    dataset = load(tmp_path / "classes", user_directory_level=1, class_names=["well", "ill"])
    assert (dataset.labels.tolist(), dataset.users.tolist()) == ([1, 1, 0, 1, 1, 1], [0, 0, 0, 1, 1, 1])

    write_images(tmp_path / "classes" / "Bob", GREY[:1])
    with refused("Not all images in .* lie in the directory of a class .1 do not.") as caught:
        load(tmp_path / "classes", user_directory_level=1, class_names=["well", "ill"])
    assert "Bob" not in str(caught.value)


def test_directories_of_users_beside_metadata(tmp_path):
    for name, images in {"Ann": GREY[:2], "Bob": GREY[2:4]}.items():
        write_images(tmp_path / name, images)
    files = [f"{name}/{number}.png" for name in ("Bob", "Ann") for number in (0, 1)]
    pd.DataFrame({"file_name": files, "place": ["x"] * 4}).to_csv(tmp_path / "metadata.csv", index=False)
    dataset = load(tmp_path, user_directory_level=1)
    of_ann = [any((image[0].numpy() == known).all() for known in GREY[:2]) for image in dataset.images]
    assert all((dataset.users[i] == dataset.users[j]) == (of_ann[i] == of_ann[j]) for i in range(4) for j in range(4))
    assert len(dataset.units) == 2
    with refused("`user_column` and `user_directory_level` are both given"):
        load(tmp_path, user_directory_level=1, user_column="place")
    with refused("several directories, which may be classes"):
        load(tmp_path)


def test_directories_tell_no_users_of_tables(tmp_path):
    make_dataset(patient=(STRING, NAMES)).to_parquet(tmp_path / "train.parquet")
    with refused("whose users no directory tells: give their column as `user_column`"):
        load(tmp_path, user_directory_level=1)
    assert load(tmp_path, user_column="patient").users.tolist() == [0, 1, 0, 2, 1, 0]
    with refused("digits has no directories of users"):
        load_image_dataset(dataset_name="digits", user_directory_level=1)


@pytest.mark.parametrize(
    ("users", "match"),
    [
        (torch.zeros(6), "The users are torch.float32 of shape .6,.: make them int64, one for each image"),
        (torch.zeros(5, dtype=torch.int64), "of shape .5,.: make them int64"),
        (torch.tensor([0, 0, 2, 2, 3, 3]), "The numbers of the users leave some out: number them from 0 on"),
        (torch.tensor([-1, 0, 0, 1, 1, 1]), "The numbers of the users leave some out"),
    ],
)
def test_users_that_are_no_numbers_from_zero_on_are_refused(users, match):
    images = torch.from_numpy(GREY)[:, None]
    with refused(match):
        to_image_dataset(ImageDataset(images, torch.zeros(6, dtype=torch.int64), users=users))


def test_records_without_labels_keep_their_users():
    dataset = of_users(STRING, NAMES)
    dataset = ImageDataset(dataset.images, dataset.labels, ["only"], users=dataset.users)
    assert to_image_dataset(dataset, unconditional=True).users.equal(dataset.users)


def test_a_checksum_tells_users_apart():
    images, labels = torch.from_numpy(GREY)[:, None], torch.zeros(6, dtype=torch.int64)
    users = [None, torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 0, 0, 0, 1, 1])]
    assert len({ImageDataset(images, labels, users=of).checksum(b"key") for of in users}) == 3


def test_records_of_a_user_are_chosen_evenly_and_at_random():
    units = Units(10, torch.tensor([0, 1, 1, 2, 2, 2, 2, 2, 0, 3]))
    chosen = torch.stack([units.draw(torch.tensor([2, 3, 0]), 8) for _ in range(4000)])
    of_two = torch.nn.functional.one_hot(chosen[:, 0], 10).sum(1)
    assert (of_two[:, 3:8].sum(1) == 8).all()  # its own records alone
    assert set(of_two[:, 3:8].flatten().tolist()) == {1, 2}
    assert (of_two[:, 3:8].double().mean(0) - 8 / 5).abs().max() < 6 * (0.24 / 4000) ** 0.5
    assert (chosen[:, 1] == 9).all()
    assert (torch.nn.functional.one_hot(chosen[:, 2], 10).sum(1)[:, [0, 8]] == 4).all()
    few = torch.stack([units.draw(torch.tensor([2]), 3)[0] for _ in range(4000)])
    assert all(len(set(row)) == 3 for row in few.tolist())
    assert (torch.bincount(few.flatten(), minlength=10)[3:8] / 4000 - 3 / 5).abs().max() < 6 * (0.24 / 4000) ** 0.5


def test_one_record_takes_no_random_number():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    for units in (Units(5), Units(5, torch.tensor([4, 2, 0, 1, 3]))):
        units.draw(torch.arange(5), 3)
    assert torch.equal(torch.rand(1), expected)
