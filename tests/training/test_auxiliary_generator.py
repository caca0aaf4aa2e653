"""The generator that is fitted to released features: what it learns, and from what alone."""

import pytest
import torch

from diffusers_dp_curriculum import (
    DatasetInfo,
    FrequencyFeatures,
    FrequencyImageDataset,
    ImageDataset,
    PrivacyLedger,
    TrainingError,
)
from diffusers_dp_curriculum.mechanisms.frequency_features import FrequencyFeatureQuery, fourier_features
from diffusers_dp_curriculum.training import auxiliary_generator
from diffusers_dp_curriculum.training.auxiliary_generator import (
    AuxiliaryGenerator,
    fit_generator,
    generate_images,
    mean_discrepancy,
    start_generator,
)


def two_kinds(count=400, channels=1, size=8, share=0.5):
    """Two classes, of images that are bright on the left or on the right, more or less so."""
    labels = (torch.arange(count) >= share * count).long()
    images = torch.zeros(count, channels, size, size)
    half = size // 2
    brightness = 150 + 100 * torch.rand(count, 1, 1, 1)
    images[labels == 0, :, :, :half] = brightness[labels == 0]
    images[labels == 1, :, :, half:] = brightness[labels == 1]
    return ImageDataset(images.to(torch.uint8), labels, ["left", "right"])


def fitted(records, steps, noise_multiplier=1e-6, num_features=200, seed=0):
    features = FrequencyFeatures.from_dataset(records, num_features, noise_multiplier, ledger=PrivacyLedger(1e-5))
    state, errors = start_generator(features.image_shape, records.info.num_labels, steps, seed), []
    assert fit_generator(state, features, steps, seed, errors.append)
    return state, features, torch.stack(errors)


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(auxiliary_generator, "BATCH_SIZE", 60)
    monkeypatch.setattr(auxiliary_generator, "NUM_IMAGES", 300)


@pytest.mark.usefixtures("small_batches")
def test_images_have_the_released_features_and_look_like_their_class():
    records = two_kinds()
    state, features, errors = fitted(records, 150)
    assert errors[-10:].mean() < 0.1 * errors[:10].mean()
    made = generate_images(state, features, 0)
    assert made.images.shape == (300 + 2 * 10, 1, 8, 8)
    assert 0 <= made.images.min() <= made.images.max() <= 1
    for label in range(2):
        images = made.images[made.labels == label]
        left, right = images[..., :4].mean(), images[..., 4:].mean()
        assert (left > 0.6 > 0.2 > right) if label == 0 else (right > 0.6 > 0.2 > left)
        assert images.mean(dim=(1, 2, 3)).std() > 0.02  # brightness varies, as that of the records does
        of_images = fourier_features(images, features.frequencies).mean(dim=0)
        assert (of_images - features.means()[label]).norm() < 0.25
    assert made.to_grid().size == (10 * 64, 2 * 64)
    assert made.mechanism == features.mechanism


@pytest.mark.usefixtures("small_batches")
def test_classes_come_in_proportion_to_the_noisy_counts():
    state, features, _ = fitted(two_kinds(share=0.9), 1)
    labels = generate_images(state, features, 0).labels
    assert ((labels == 0).sum() - 10) / 300 == pytest.approx(0.9, abs=6 * (0.09 / 300) ** 0.5)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("class_names", [None, [str(c) for c in range(100)]])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 10, 10), (3, 128, 128)])
def test_any_number_of_classes_and_any_size(class_names, shape):
    """Empty classes, too: noise alone must not lead to weights that are not finite."""
    images = torch.randint(0, 256, (20, *shape), dtype=torch.uint8)
    records = ImageDataset(images, torch.zeros(20, dtype=torch.int64), class_names)
    state, features, errors = fitted(records, 2, noise_multiplier=5.0)
    made = generate_images(state, features, 0)
    assert made.images.shape[1:] == (shape[0], min(shape[1], 32), min(shape[2], 32))
    assert made.images.isfinite().all()
    assert errors.isfinite().all()


@pytest.mark.usefixtures("small_batches")
def test_more_classes_than_fit_into_a_batch_take_turns():
    """The batch keeps its size, so that a thousand classes take no more time than ten."""
    records = ImageDataset(
        torch.randint(0, 256, (100, 1, 8, 8), dtype=torch.uint8), torch.arange(100), [str(c) for c in range(100)]
    )
    features = FrequencyFeatures.from_dataset(records, 20, 1.0, ledger=PrivacyLedger(1e-5))
    state = start_generator((1, 8, 8), 100, 5, seed=0)
    asked, forward = [], state.generator.forward
    state.generator.forward = lambda latents, labels: asked.append(labels.unique()) or forward(latents, labels)
    fit_generator(state, features, 5, 0)
    assert [len(labels) for labels in asked] == [15] * 5
    assert len(torch.cat(asked).unique()) > 30
    assert generate_images(state, features, 0).to_grid().height == 100 * 64


def test_a_generator_that_diverges_is_an_error(monkeypatch):
    records = two_kinds()
    features = FrequencyFeatures.from_dataset(records, 20, 1.0, ledger=PrivacyLedger(1e-5))
    features.sums[:] = float("nan")
    with pytest.raises(TrainingError, match="generator of frequency images diverged: leave `frequency_kernel_widths`"):
        fit_generator(start_generator((1, 8, 8), 2, 1, seed=0), features, 1, 0)


def test_the_callers_generators_stay_as_they_were():
    features = FrequencyFeatures.from_dataset(two_kinds(), 20, 1.0, ledger=PrivacyLedger(1e-5))
    before = torch.get_rng_state()
    FrequencyImageDataset.from_features(features, train_steps=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_empty_class_hardly_counts():
    """Its target is noise; all of the generator's capacity is for the other classes."""
    features = FrequencyFeatures.from_dataset(two_kinds(), 200, 2.0, ledger=PrivacyLedger(1e-5))
    features.counts[:] = torch.tensor([400.0, -3.0])
    full, empty = features.reliability().tolist()
    assert full > 0.95
    assert empty < 0.05


def test_the_discrepancy_is_unbiased():
    """The plain distance of a small batch's mean is larger by the variance of that mean; this one is not."""
    torch.manual_seed(0)
    many = fourier_features(torch.rand(4000, 1, 4, 4), FrequencyFeatureQuery(40).frequencies((1, 4, 4)))
    target = torch.zeros(1, 40)
    exact = many.mean(dim=0).square().sum()
    batches = many.unflatten(0, (1000, 1, 4))
    estimates = torch.stack([mean_discrepancy(batch, target)[0] for batch in batches])
    assert estimates.mean() == pytest.approx(float(exact), abs=6 * float(estimates.std()) / 1000**0.5)
    plain = batches.mean(dim=2).square().sum(dim=-1).mean()
    assert plain > exact + 20 * estimates.std() / 1000**0.5
    assert mean_discrepancy(torch.ones(1, 3, 5), torch.ones(1, 5)).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.usefixtures("small_batches")
def test_it_follows_from_the_release_and_the_seed_alone():
    """Whatever the global generators were, and whether it was interrupted."""
    records = two_kinds()
    features = FrequencyFeatures.from_dataset(records, 200, 1.0, ledger=PrivacyLedger(1e-5))
    images = []
    for stop in (None, 3):
        state = start_generator((1, 8, 8), 2, 8, seed=5)
        if stop is not None:
            assert not fit_generator(state, features, 8, 5, lambda _, state=state: state.step == 3)
            saved, state = state.state_dict(), start_generator((1, 8, 8), 2, 8, seed=5)
            state.load_state_dict(saved)
        assert fit_generator(state, features, 8, 5)
        images.append(generate_images(state, features, 5).images)
        torch.manual_seed(9)
    images.append(FrequencyImageDataset.from_features(features, train_steps=8, seed=5).images)
    assert torch.equal(images[0], images[2])
    assert torch.equal(images[0], images[1])


@pytest.mark.parametrize(("shape", "classes"), [((1, 16, 16), 10), ((1, 28, 28), 10), ((3, 32, 32), 100)])
def test_it_is_small(shape, classes):
    generator = AuxiliaryGenerator(shape, classes)
    assert sum(p.numel() for p in generator.parameters()) < 700_000
    images = generator(torch.randn(3, auxiliary_generator.LATENT_SIZE), torch.tensor([0, 1, classes - 1]))
    assert images.shape == (3, *shape)
    assert DatasetInfo(10, shape[0], shape[1]).image_shape == shape
