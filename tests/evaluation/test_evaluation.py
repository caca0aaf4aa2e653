"""The measures and the report, for samples that are copies, noise, or real digits."""

import base64
import json
import re

import pytest
import torch

from diffusers_dp_curriculum import ImageDataset, InputError, load_image_dataset
from diffusers_dp_curriculum.evaluation.features import Pixels
from diffusers_dp_curriculum.evaluation.metrics import check_reference, evaluate
from diffusers_dp_curriculum.evaluation.report import table, write_report
from helpers import tiny_records
from helpers.browser import CHROMIUM, Browser


DIGITS = load_image_dataset(dataset_name="digits")
TEST = load_image_dataset(dataset_name="digits", split="test")
ABOUT = {"samples": "my-model", "reference": "digits"}


def part(dataset, start, stop):
    return ImageDataset(dataset.images[start:stop], dataset.labels[start:stop], dataset.class_names)


TRAIN = part(DIGITS, 0, 500)
UNSEEN = part(DIGITS, 500, 900)  # what a perfect model would sample


def measure(samples, classifiers=(), **options):
    evaluation = evaluate(samples, TRAIN, TEST, {"pixels": Pixels()}, classifiers, **options)
    return evaluation, {measure.name: measure for measure in evaluation.measures}


@pytest.fixture(scope="module")
def perfect():
    return measure(UNSEEN, ["cnn"], epochs=4)


def test_samples_as_good_as_real_images_score_as_real_images_do(perfect):
    _, measures = perfect
    for name, measure in measures.items():
        tolerance = 0.2 * abs(measure.real) + 0.05
        assert measure.samples == pytest.approx(measure.real, abs=tolerance), name
    assert measures["accuracy (cnn)"].samples > 0.8


def test_noise_scores_badly():
    noise = tiny_records(count=400, num_classes=10)
    noise.class_names = TRAIN.class_names
    _, measures = measure(noise, ["cnn"], epochs=1)
    assert measures["Frechet distance (pixels)"].samples > 10 * measures["Frechet distance (pixels)"].real
    assert measures["kernel distance (pixels)"].samples > 0.1
    assert measures["precision (pixels)"].samples == measures["coverage (pixels)"].samples == 0
    assert measures["accuracy (cnn)"].samples < 0.4


def test_copies_of_training_images_are_found_each_with_its_original():
    order = torch.randperm(len(TRAIN), generator=torch.Generator().manual_seed(0))
    copies = ImageDataset(TRAIN.images[order], TRAIN.labels[order], TRAIN.class_names)
    evaluation, measures = measure(copies)
    assert torch.equal(evaluation.neighbors, order)
    assert measures["share of exact copies of a training image"].samples == 1
    assert measures["share of exact copies of a training image"].real == 0
    assert measures["share nearer to a training image than 99% of held-out images (pixels)"].samples == 1


class Rows(torch.nn.Module):
    """Features that are equal for mirrored images, and whose last digits depend on the batch, as with networks."""

    def forward(self, images):
        return images.float().mean(dim=-1).flatten(1) * (1 + 1e-6 * len(images))


def test_exact_copies_are_counted_by_their_pixels_whatever_the_features():
    mirrored = ImageDataset(TRAIN.images.flip(-1), TRAIN.labels, TRAIN.class_names)
    for samples, share in ((part(TRAIN, 0, 100), 1), (mirrored, 0)):
        measures = evaluate(samples, TRAIN, TEST, {"rows": Rows()}, []).measures
        (copies,) = [measure for measure in measures if "exact copies" in measure.name]
        assert copies.samples == share


def test_blurred_copies_are_told_from_blurred_images_that_were_never_trained_on():
    def blurred(dataset):
        images = dataset.images.float()
        images = (images + torch.nn.functional.avg_pool2d(images, 3, stride=1, padding=1)) / 2
        return ImageDataset(images.to(torch.uint8), dataset.labels, dataset.class_names)

    name = "share nearer to a training image than to any held-out image (pixels)"
    copies, unseen = measure(blurred(TRAIN))[1][name], measure(blurred(UNSEEN))[1][name]
    assert copies.samples > 0.95
    assert unseen.samples == pytest.approx(unseen.real, abs=0.07)


def test_utility_is_the_accuracy_on_real_test_images_of_classifiers_that_saw_none(perfect):
    evaluation, measures = perfect
    for kind, accuracy in (("samples", measures["accuracy (cnn)"].samples), ("real", measures["accuracy (cnn)"].real)):
        confusion = evaluation.confusion["cnn"][kind]
        assert confusion.sum() == len(TEST)
        assert torch.equal(confusion.sum(dim=1), TEST.labels.bincount()), "rows are true classes"
        assert accuracy == float(confusion.trace() / len(TEST))


def test_the_real_test_images_decide_nothing():
    """With other test labels the classifier is the same, and only its confusion matrix changes."""
    shifted = ImageDataset(TEST.images, (TEST.labels + 1) % 10, TEST.class_names)
    few = part(DIGITS, 0, 100)
    first, second = (
        evaluate(few, few, test, {"pixels": Pixels()}, ["cnn"], epochs=1).confusion["cnn"]["samples"]
        for test in (TEST, shifted)
    )
    assert torch.equal(first, second.roll(-1, dims=0))


def test_every_figure_says_which_images_it_was_computed_from(perfect):
    for figure in perfect[1].values():
        assert "400 samples" in figure.samples_data
        assert re.search(r"297 real test images|500 real training images", figure.samples_data)
        assert re.search(r"\d+ real|from the numbers", figure.real_data)
    assert perfect[1]["accuracy (cnn)"].samples_data.startswith("trained and selected on 400 samples, tested on 297")
    assert perfect[1]["Frechet distance (pixels)"].real_data.startswith("400 real training images")


def test_without_classes_there_is_no_classifier():
    unlabelled = ImageDataset(UNSEEN.images, torch.zeros(len(UNSEEN), dtype=torch.int64))
    evaluation, _ = measure(unlabelled, ["cnn"])
    assert evaluation.confusion == {}
    assert not any(figure.name.startswith("accuracy") for figure in evaluation.measures)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (tiny_records(size=16, num_classes=10), r"shape \(1, 8, 8\) and the real training images \(1, 16, 16\)"),
        (tiny_records(channels=3, num_classes=10), r"the real training images \(3, 8, 8\)"),
        (tiny_records(num_classes=10), "name the real ones alike and in this order with `class_names`"),
        (part(DIGITS, 0, 5), "There are only 5 real training images"),
    ],
)
def test_a_reference_that_does_not_fit_is_refused(train, message):
    with pytest.raises(InputError, match=message):
        check_reference((1, 8, 8), TRAIN.class_names, train, TEST)


def test_too_few_samples_and_unknown_classifiers_are_refused():
    with pytest.raises(InputError, match="only 5 samples"):
        measure(part(UNSEEN, 0, 5))
    with pytest.raises(InputError, match='`classifiers` is "vgg": choose cnn or resnet'):
        measure(UNSEEN, ["vgg"])


# The report


@pytest.fixture(scope="module")
def report_dir(perfect, tmp_path_factory):
    directory = tmp_path_factory.mktemp("report") / "evaluation"
    samples = ImageDataset(UNSEEN.images, UNSEEN.labels, ["<b>zero</b>", *UNSEEN.class_names[1:]])
    write_report(directory, perfect[0], samples, TRAIN, TEST, about=ABOUT, space="pixels")
    return directory


def test_report_json_has_every_figure_and_is_marked_not_private(perfect, report_dir):
    report = json.loads((report_dir / "report.json").read_text())
    assert report["not_private"] is True
    assert report["notice"].startswith("NOT PRIVATE")
    assert [figure["name"] for figure in report["measures"]] == list(perfect[1])
    assert report["confusion"]["cnn"]["trained_on_samples"] == perfect[0].confusion["cnn"]["samples"].tolist()
    nearest = report["nearest_training_image"]
    assert len(nearest["index_of_each_sample"]) == len(nearest["distance_of_each_sample"]) == len(UNSEEN)
    assert len(nearest["distance_of_each_held_out_image"]) == len(TEST)


def test_report_html_needs_no_other_file_and_escapes_names(report_dir):
    page = (report_dir / "report.html").read_text()
    assert "NOT PRIVATE" in page
    assert "&lt;b&gt;zero&lt;/b&gt;" in page
    assert "<b>zero</b>" not in page
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 2 * 10 + 1 + 1 + 4, "classes, confusion, distances, neighbours"
    for source in sources:
        kind, _, content = source.partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(content, validate=True).startswith(b"\x89PNG")
    assert page.count("Data: ") == page.count("<figcaption>") == 5


def test_a_public_reference_is_the_only_way_to_another_notice(perfect, tmp_path):
    write_report(tmp_path, perfect[0], UNSEEN, TRAIN, TEST, about=ABOUT, space="pixels", reference_is_public=True)
    assert json.loads((tmp_path / "report.json").read_text())["not_private"] is False
    assert "NOT PRIVATE" not in (tmp_path / "report.html").read_text()


def test_the_table_has_a_line_for_every_figure_and_notes_on_their_data(perfect):
    lines = table(perfect[0].measures).splitlines()
    assert max(map(len, lines)) <= 120
    for name, figure in perfect[1].items():
        (line,) = [line for line in lines if line.startswith(name)]
        number = re.search(r"\[\d\]$", line)[0]
        note = lines.index(f"{number} samples: {figure.samples_data}")
        assert lines[note + 1] == f"    real images: {figure.real_data}"
    accuracy = perfect[1]["accuracy (cnn)"]
    assert re.search(rf"^accuracy \(cnn\) +{accuracy.samples:.1%} +{accuracy.real:.1%} +high", "\n".join(lines), re.M)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_shows_every_picture_of_the_report(report_dir, tmp_path):
    with Browser(tmp_path / "profile") as browser:
        browser.open(f"file://{report_dir / 'report.html'}")
        assert browser.wait_for("document.images.length == 26")
        assert browser.wait_for("Array.from(document.images).every(i => i.complete && i.naturalWidth > 50)")
        assert "NOT PRIVATE" in browser.text()
        assert browser.run("document.documentElement.scrollWidth <= window.innerWidth"), "nothing is cut off"
