"""Which files are records: nothing is lost, counted twice or made a record without a word."""

import os
import unicodedata

import datasets
import pytest

from diffusers_dp_curriculum import to_image_dataset
from helpers.image_data import CLASSES, GREY, labelled, load, make_dataset, read_list, refused, write_images


pytestmark = pytest.mark.usefixtures("quiet")


@pytest.mark.parametrize("name", ["scan.heic", "scan.dcm", "scan.nii.gz", "scan.npy", "IM0001", "more.zip", "clip.mp4"])
@pytest.mark.parametrize("place", [".", "dog"])
def test_what_may_be_records_is_not_left_out_without_a_word(photos, name, place):
    (photos / place / name).write_bytes(b"x")
    with refused(
        "Files that may be records would be left out, 1 .*: convert, unpack, rename or fetch them, .*"
        "`accept_left_out_files`"
    ):
        load(photos)
    assert len(load(photos, accept_left_out_files=True)) == 10


@pytest.mark.parametrize(
    "name", ["README", "notes.txt", "labels.csv", "LICENSE", "Thumbs.db", "desktop.ini", ".DS_Store"]
)
def test_documents_and_what_tools_leave_are_no_records(photos, name):
    (photos / name).write_bytes(b"x")
    (photos / "dog" / name).write_bytes(b"x")
    dataset = load(photos)
    assert (len(dataset), dataset.class_names) == (10, CLASSES)
    assert "2 " in dataset.provenance["left out"]


@pytest.mark.parametrize("name", [".ipynb_checkpoints", "__MACOSX", "@eaDir", "lost+found", "#recycle", ".Trash-1000"])
@pytest.mark.parametrize("place", [".", "dog"])
def test_directories_that_tools_leave_hold_no_records(photos, name, place):
    write_images(photos / place / name, GREY[:2])
    dataset = load(photos)
    assert (len(dataset), dataset.class_names) == (10, CLASSES)
    assert dataset.provenance["files"] == "11 found, 10 used, 1 left out"


def test_a_class_may_hold_nothing_but_what_tools_leave(photos):
    (photos / "bird" / "@eaDir").mkdir(parents=True)
    (photos / "bird" / "Thumbs.db").write_bytes(b"x")
    write_images(photos / "bird" / "@eaDir", GREY[:1])
    assert load(photos).class_names == ["bird", *CLASSES]


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_one_file_is_not_two_records(photos, link):
    link(photos / "cat" / "0.png", photos / "dog" / "again.png")
    with refused("would be left out, 1 .png .the same file as one that is read already."):
        load(photos)
    assert len(load(photos, accept_left_out_files=True)) == 10


def test_images_elsewhere_are_named_by_their_directories(photos):
    write_images(photos / "dog" / "thumbnails", GREY[:2])
    with refused("Not all images in .* lie directly in the directory of a class, 2 lie in dog/thumbnails: pass"):
        load(photos)


@pytest.mark.parametrize(
    "names",
    [["-2", "-1", "0", "1"], ["0.25", "0.5", "1.0", "10.0"], ["1", "2", "²", "١", "③"], ["2", "010", "a2", "a10"]],
)
def test_names_that_look_like_numbers_are_in_their_order(tmp_path, names):
    for name in names:
        write_images(tmp_path / name, GREY[:1])
    assert load(tmp_path).class_names == names


def test_a_name_that_is_stored_in_another_way_is_the_same_class(tmp_path):
    composed, decomposed = (unicodedata.normalize(form, "blé") for form in ("NFC", "NFD"))
    write_images(tmp_path / decomposed, GREY[:2])
    write_images(tmp_path / "dog", GREY[:1])
    for names in (None, [composed, "dog"], [decomposed, "dog"]):
        dataset = load(tmp_path, class_names=names)
        assert (dataset.class_names, dataset.labels.tolist()) == ([composed, "dog"], [0, 0, 1])
    labels = datasets.Value("string"), [composed, decomposed]
    dataset = make_dataset(GREY[:2], word=labels)
    assert to_image_dataset(dataset, label_column="word", class_names=[decomposed]).labels.tolist() == [0, 0]
    write_images(tmp_path / composed, GREY[:2])
    with refused("are not all different, since blé is there 2 times"):
        load(tmp_path)


@pytest.mark.parametrize("name", [b"caf\xe9", b"two\nlines"])
def test_a_name_that_is_no_text_is_named_as_the_cause(photos, name):
    os.rename(photos / "dog", os.fsencode(photos) + b"/" + name)
    with refused("The name 'caf.udce9' of a class is no line|The name 'two.nlines' of a class is no line"):
        load(photos)


def test_a_file_whose_name_is_no_text_is_not_lost(photos):
    os.rename(photos / "dog" / "0.png", os.fsencode(photos / "dog") + b"/caf\xe9.png")
    with refused("would be left out, 1 .png .with a name that is not in UTF-8."):
        load(photos)
    assert len(load(photos, accept_left_out_files=True)) == 9


def test_classes_that_are_numbers_are_in_their_order(tmp_path):
    for number in range(12):
        write_images(tmp_path / str(number), GREY[:1])
    dataset = load(tmp_path)
    assert dataset.class_names == [str(number) for number in range(12)]
    for name in ("stage 10", "stage 9", "1.5", "Ω"):
        write_images(tmp_path / name, GREY[:1])
    assert load(tmp_path).class_names[1:4] == ["1", "1.5", "2"]
    assert load(tmp_path).class_names[-3:] == ["stage 9", "stage 10", "Ω"]


# The output of runs


@pytest.mark.parametrize("file", ["privacy.json", "private/journal.jsonl"])
@pytest.mark.parametrize("options", [{}, {"unconditional": True}, {"class_names": CLASSES}])
def test_the_output_of_a_run_is_not_trained_on(photos, file, options):
    write_images(photos / "model", GREY[:1])
    (photos / "model" / file).parent.mkdir(exist_ok=True)
    (photos / "model" / file).write_text("{}")
    with refused("photos/model holds the output of a run, whose pictures would be taken for records: move it out of"):
        load(photos, **options)


def test_a_generated_data_set_can_be_read_and_a_run_cannot(photos):
    (photos / "privacy.json").write_text("{}")
    assert len(load(photos)) == 10
    (photos / "private").mkdir()
    (photos / "private" / "journal.jsonl").write_text("{}")
    with refused("photos holds the output of a run"):
        load(photos)


# Metadata


def test_metadata_that_name_an_image_twice_or_a_missing_one_are_refused(photos):
    metadata = photos / "metadata.csv"
    options = {"label_column": "age", "class_names": list("abcde"), "accept_left_out_files": True}
    metadata.write_text("file_name,age\ncat/0.png,1\ncat/0.png,2\n")
    with refused("name images more than once .2 lines for 1.: give each"):
        load(photos, **options)
    metadata.write_text("file_name,age\ncat/0.png,1\ncat/nobody.png,2\n")
    with refused("name images that do not exist .1.: add these images") as caught:
        load(photos, **options)
    assert "nobody" not in str(caught.value)
    assert read_list(caught)[0].endswith("cat/nobody.png\n")
    metadata.write_text("name,age\ncat/0.png,1\n")
    with refused("cannot be read .ValueError.: .* a column file_name .*; what `datasets` says is in .*, which only"):
        load(photos, **options)


def test_a_link_upwards_adds_nothing(photos):
    write_images(photos.parent / "others", GREY[:2])
    (photos / "up").symlink_to("..")
    dataset = load(photos, unconditional=True)
    assert dataset.provenance["left out"] == "1 without suffix (linked to a directory that is read already)"
    assert len(dataset) == 10


def test_a_cache_of_the_hub_is_read_from_its_snapshot(photos):
    cache = photos.parent / "datasets--user--name"
    (cache / "blobs").mkdir(parents=True)
    for path in list(photos.rglob("*.png")):
        blob = cache / "blobs" / path.parent.name.ljust(40, path.stem)
        path.rename(blob)
        (cache / "snapshots" / "main" / path.parent.name).mkdir(parents=True, exist_ok=True)
        (cache / "snapshots" / "main" / path.parent.name / path.name).symlink_to(blob)
    with refused("holds no images, only .*: pass .*/snapshots/main, which holds a data set, as `train_data_dir`"):
        load(cache)
    assert load(cache / "snapshots" / "main").class_names == CLASSES


def test_metadata_beside_the_directories_of_splits_are_not_ignored(tmp_path):
    write_images(tmp_path / "train", GREY[:2])
    write_images(tmp_path / "test", GREY[:2])
    (tmp_path / "metadata.csv").write_text("file_name,age\ntrain/0.png,1\ntrain/1.png,2\n")
    for options in ({}, {"label_column": "age", "class_names": ["1", "2"]}):
        with refused("would be left out, 1 .csv .metadata, but not in the directory of the split."):
            load(tmp_path, **options)


# Data sets that `datasets` made of directories


def unread(photos):
    (photos / "dog" / "0.png").rename(photos / "dog" / "0.heic")


def unfetched(photos):
    (photos / "dog" / "0.png").unlink()
    (photos / "dog" / "0.png").symlink_to("nowhere")


def a_class_of_another_format(photos):
    for path in list((photos / "dog").iterdir()):
        path.rename(path.with_suffix(".dcm"))


def a_class_that_is_a_link(photos):
    (photos / "dog").rename(photos.parent / "elsewhere")
    (photos / "dog").symlink_to(photos.parent / "elsewhere")


def metadata_of_one_image(photos):
    (photos / "metadata.csv").write_text("file_name,age\ncat/0.png,1\n")


@pytest.mark.parametrize(
    "change", [metadata_of_one_image, unread, unfetched, a_class_of_another_format, a_class_that_is_a_link]
)
def test_what_datasets_has_dropped_is_refused(photos, tmp_path, change):
    change(photos)
    found = datasets.load_dataset("imagefolder", data_dir=str(photos), cache_dir=str(tmp_path / "cache"))["train"]
    for options in ({}, {"unconditional": True}, {"class_names": CLASSES}):
        for dataset in (found, found.shuffle(), found.with_transform(lambda batch: {"nothing": [0]})):
            with refused("Files that may be records would be left out, "):
                to_image_dataset(dataset, **options)
    assert len(to_image_dataset(found, unconditional=True, accept_left_out_files=True)) == len(found)


def test_what_was_left_out_of_a_found_data_set_on_purpose_is_no_loss(photos, tmp_path):
    (photos / "dog" / "notes.txt").write_bytes(b"x")
    (photos / "dog" / ".DS_Store").write_bytes(b"x")
    found = datasets.load_dataset("imagefolder", data_dir=str(photos), cache_dir=str(tmp_path / "cache"))["train"]
    for dataset in (found, found.filter(lambda label: label == 0, input_columns="label"), found.select([0])):
        assert len(to_image_dataset(dataset, class_names=CLASSES)) == len(dataset)


# Saved data sets


def test_what_lies_beside_a_saved_data_set(tmp_path):
    labelled().save_to_disk(tmp_path)
    (tmp_path / "cache-1f.arrow").write_bytes(b"x")
    (tmp_path / "README.md").write_bytes(b"x")
    assert load(tmp_path).provenance["left out"] == "1 .md (documents); 1 .arrow (a cache of `datasets`)"
    write_images(tmp_path / "more", GREY[:2])
    with refused("would be left out, 2 .png .beside files of another format"):
        load(tmp_path)
