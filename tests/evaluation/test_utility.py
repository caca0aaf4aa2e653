import pytest
import torch
from sklearn.metrics import accuracy_score
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix

from diffusers_dp_curriculum import InputError, load_image_dataset
from diffusers_dp_curriculum.evaluation.utility import accuracy, confusion_matrix, train_classifier


TRAIN = load_image_dataset(dataset_name="digits")
TEST = load_image_dataset(dataset_name="digits", split="test")


@pytest.fixture(scope="module")
def classifier():
    return train_classifier(TRAIN.images, TRAIN.labels, 10, epochs=4)


def test_a_classifier_trained_on_digits_reads_digits(classifier):
    assert accuracy(classifier, TEST.images, TEST.labels) > 0.9
    assert 0.9 < classifier.selection_accuracy <= 1
    assert not classifier.training


def test_a_resnet_learns_too():
    resnet = train_classifier(TRAIN.images[:500], TRAIN.labels[:500], 10, "resnet", epochs=3, batch_size=32)
    assert accuracy(resnet, TEST.images, TEST.labels) > 0.5


def test_the_labels_that_it_is_given_are_the_ones_that_it_learns():
    shifted = (TRAIN.labels + 1) % 10
    wrong = train_classifier(TRAIN.images, shifted, 10, epochs=3)
    assert accuracy(wrong, TEST.images, TEST.labels) < 0.1
    assert accuracy(wrong, TEST.images, (TEST.labels + 1) % 10) > 0.8


def test_accuracy_and_confusion_agree_with_scikit_learn(classifier):
    predicted = classifier.predict(TEST.images)
    confusion = confusion_matrix(classifier, TEST.images, TEST.labels, 10)
    assert torch.equal(confusion, torch.from_numpy(sklearn_confusion_matrix(TEST.labels, predicted)))
    assert accuracy(classifier, TEST.images, TEST.labels) == pytest.approx(accuracy_score(TEST.labels, predicted))
    assert confusion[3].sum() == (TEST.labels == 3).sum(), "rows are true classes"


def test_a_class_that_no_image_has_keeps_its_place(classifier):
    without_nine = TEST.labels < 9
    confusion = confusion_matrix(classifier, TEST.images[without_nine], TEST.labels[without_nine], 10)
    assert confusion.shape == (10, 10)
    assert confusion[9].sum() == 0


def test_the_same_seed_gives_the_same_classifier_and_leaves_the_global_generator_alone():
    state = torch.random.get_rng_state()
    first, second, third = (
        train_classifier(TRAIN.images[:200], TRAIN.labels[:200], 10, epochs=1, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(state, torch.random.get_rng_state())
    logits = [classifier(TEST.images[:20]) for classifier in (first, second, third)]
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])


def test_the_epoch_that_counts_is_chosen_on_the_images_that_were_held_out():
    """Labels of random images can only be memorised, so that only training images are classified well."""
    images = torch.randint(0, 256, (60, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(60) % 2
    memorised = train_classifier(images, labels, 2, epochs=60, batch_size=20, selection_share=0.4)
    assert accuracy(memorised, images, labels) > memorised.selection_accuracy
    held_out = torch.randperm(60, generator=torch.Generator().manual_seed(0))[:24]
    assert accuracy(memorised, images[held_out], labels[held_out]) == memorised.selection_accuracy


@pytest.mark.parametrize(
    ("images", "labels", "options", "message"),
    [
        (TRAIN.images, TRAIN.labels, {"architecture": "vgg"}, '`architecture` is "vgg": choose cnn or resnet'),
        (TRAIN.images.float(), TRAIN.labels, {}, "pass uint8 images"),
        (TRAIN.images, TRAIN.labels[:-1], {}, "N labels"),
        (TRAIN.images, TRAIN.labels + 1, {}, "not between 0 and 9"),
        (TRAIN.images[:4], TRAIN.labels[:4], {}, "0 would be held out"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(images, labels, options, message):
    with pytest.raises(InputError, match=message):
        train_classifier(images, labels, 10, **options)
