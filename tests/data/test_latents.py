"""Records as latents: each a function of its record alone, in memory or in a file that is gone."""

import numpy as np
import pytest
import torch

from diffusers_dp_curriculum import ImageDataset
from diffusers_dp_curriculum.data import latents as latents_module
from diffusers_dp_curriculum.data import storage
from diffusers_dp_curriculum.data.latents import BATCH_SIZE, encode_records
from diffusers_dp_curriculum.training.autoencoder import find_autoencoder
from helpers import tiny_records, uneven_users
from helpers.autoencoders import AUTOENCODERS, tiny_kl


LATENT_SHAPE = {"AutoencoderKL": (4, 4, 4), "AutoencoderTiny": (4, 4, 4), "VQModel": (3, 4, 4)}


def loaded(path, records, make=tiny_kl, **options):
    make(**options).save_pretrained(path)
    return find_autoencoder(str(path)).load(records.info)


@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_a_latent_is_a_function_of_its_record_alone(tmp_path, kind):
    records = tiny_records(count=2 * BATCH_SIZE + 3, size=16, channels=3)
    autoencoder = loaded(tmp_path, records, AUTOENCODERS[kind])
    latents = encode_records(records, autoencoder).latents
    assert latents.dtype == torch.float16
    assert latents.shape == (len(records), 1, *LATENT_SHAPE[kind])
    assert latents.float().std() > 0.01
    for index in (0, BATCH_SIZE + 1, len(records) - 1):
        others = tiny_records(count=len(records), size=16, channels=3, seed=1 + index).images
        others[index] = records.images[index]
        among_others = encode_records(ImageDataset(others, records.labels, records.class_names), autoencoder).latents
        assert torch.equal(among_others[index], latents[index])
        alone = ImageDataset(records.images[index : index + 1], records.labels[:1], records.class_names)
        encoded_alone = encode_records(alone, autoencoder).latents[0]
        torch.testing.assert_close(encoded_alone, latents[index], rtol=2**-10, atol=2**-14)


def test_labels_and_units_are_those_of_the_images():
    records = uneven_users()
    encoded = encode_records(records, Halves())
    assert encoded.units is records.units
    index = torch.tensor([[3, 5], [59, 0]])
    latents, labels = encoded.batch(index)
    assert torch.equal(labels, records.labels[index])
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, Halves().encode(records.batch(index)[0]), rtol=2**-10, atol=1e-3)


class Halves:
    """An encoder that keeps every second pixel, times a factor."""

    device = torch.device("cpu")

    def __init__(self, factor=1.0):
        self.factor = factor

    def encode(self, images):
        return images[..., ::2, ::2] * self.factor

    def latent_shape(self, image_shape):
        channels, height, width = image_shape
        return channels, height // 2, width // 2


def test_mirrored_images_are_encoded_and_no_latent_is_mirrored():
    records = tiny_records(count=5)
    encoded = encode_records(records, Halves(), mirrored=True)
    images = records.batch(torch.arange(5))[0]
    as_it_is, mirrored = images[..., ::2, ::2].half(), images.flip(-1)[..., ::2, ::2].half()
    assert torch.equal(encoded.latents, torch.stack([as_it_is, mirrored], dim=1))
    assert not torch.equal(mirrored, as_it_is.flip(-1))
    torch.manual_seed(0)
    drawn = encoded.batch(torch.full((400,), 2))[0]
    is_mirrored = (drawn == mirrored[2].float()).flatten(1).all(1)
    assert torch.equal(drawn[~is_mirrored], as_it_is[2].float().expand_as(drawn[~is_mirrored]))
    assert 150 < is_mirrored.sum() < 250


def test_numbers_beyond_float16_are_clipped():
    records = tiny_records(count=3)
    latents = encode_records(records, Halves(factor=1e6)).latents
    assert latents.isfinite().all()
    assert latents.abs().max() == 65504
    assert torch.equal(encode_records(records, Halves(factor=float("nan"))).latents, torch.zeros(3, 1, 1, 4, 4).half())


def test_many_latents_are_in_a_temporary_file_that_has_no_name(monkeypatch, tmp_path):
    records, mapped = tiny_records(count=20), []
    in_memory = encode_records(records, Halves()).latents
    monkeypatch.setattr(storage, "MAX_BYTES_IN_MEMORY", in_memory.nbytes - 1)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(latents_module, "allocate", lambda *what: mapped.append(storage.allocate(*what)) or mapped[0])
    encoded = encode_records(records, Halves())
    assert isinstance(mapped[0], np.memmap)
    assert encoded.latents.data_ptr() == mapped[0].ctypes.data  # the tensor is the file, not a copy
    assert torch.equal(encoded.latents, in_memory)
    assert list(tmp_path.iterdir()) == []


def test_printing_them_prints_no_record():
    assert "tensor" not in repr(encode_records(tiny_records(count=2), Halves()))
