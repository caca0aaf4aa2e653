"""Images of every kind become 8-bit pixels by public settings alone, and what would be lost is refused."""

import io
import struct
import zlib

import datasets
import numpy as np
import PIL.Image
import pytest
import torch

from diffusers_dp_curriculum import load_image_dataset, to_image_dataset
from diffusers_dp_curriculum.data import image_decoding
from helpers.image_data import COLOUR, GREY, encoded, labelled, make_dataset, refused, write_idx


DISC = np.hypot(*np.indices((8, 8)) - 3.5) < 3


# Transparency


def only_in_alpha(mode, value=0):
    """A shape that only the alpha channel shows."""
    alpha = PIL.Image.fromarray(DISC.astype(np.uint8) * 255)
    image = PIL.Image.new(mode[:-1], (8, 8), (value,) * len(mode[:-1]))
    image.putalpha(alpha)
    return encoded(image)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
@pytest.mark.parametrize(("value", "background"), [(0, "white"), (255, "#000000")])
def test_a_shape_that_is_only_in_alpha_is_seen_before_the_background(mode, value, background):
    dataset = make_dataset([only_in_alpha(mode, value)])
    with refused(r"\(1 with transparent pixels\), .*: pass `background`"):
        to_image_dataset(dataset)
    images = to_image_dataset(dataset, background=background).images
    assert images.shape[1] == len(mode) - 1
    np.testing.assert_array_equal(images[0, 0].numpy(), np.where(DISC, value, 255 - value))


def test_other_kinds_of_transparency():
    palette = PIL.Image.fromarray(COLOUR[0]).convert("P")
    key = PIL.Image.fromarray(GREY[0])
    for image in (
        encoded(palette, transparency=palette.getpixel((0, 0))),
        encoded(key, transparency=int(GREY[0, 0, 0])),
    ):
        with refused("1 with transparent pixels"):
            to_image_dataset(make_dataset([image]))
        assert len(to_image_dataset(make_dataset([image]), background="white")) == 1
    at_key = to_image_dataset(make_dataset([encoded(key, transparency=int(GREY[0, 0, 0]))]), background="white")
    np.testing.assert_array_equal(at_key.images[0, 0], np.where(GREY[0] == GREY[0, 0, 0], 255, GREY[0]))


def test_half_transparent_pixels_are_blended():
    image = PIL.Image.fromarray(np.full((8, 8, 4), 128, dtype=np.uint8))
    mixed = to_image_dataset(make_dataset([encoded(image)]), background="white").images
    assert torch.equal(mixed, torch.full((1, 3, 8, 8), 191, dtype=torch.uint8))


def test_a_background_is_a_colour():
    for background in ("nothing", "", "#ffffff80"):  # the last one would show what transparency hides
        with refused(f'`background` is "{background}": give the name of a colour'):
            to_image_dataset(labelled(), background=background)


# Several frames


@pytest.mark.parametrize("form", ["TIFF", "GIF", "PNG", "WEBP"])
def test_an_image_of_several_frames_is_refused(form):
    frames = [PIL.Image.fromarray(image) for image in GREY]
    buffer = io.BytesIO()
    frames[0].save(buffer, format=form, save_all=True, append_images=frames[1:])
    with refused(r"1 with several frames or pages\), the first of which is record 1: save the one to train on"):
        to_image_dataset(make_dataset([GREY[0], {"bytes": buffer.getvalue(), "path": None}]))


def test_a_photograph_with_a_preview_is_one_picture():
    frames = [PIL.Image.fromarray(image) for image in COLOUR[:2]]
    buffer = io.BytesIO()
    frames[0].save(buffer, format="MPO", save_all=True, append_images=frames[1:])
    assert PIL.Image.open(buffer).is_animated
    assert len(to_image_dataset(make_dataset([{"bytes": buffer.getvalue(), "path": None}]))) == 1


# Channels


def test_grey_images_in_colour_are_noticed_and_converted():
    in_colour = make_dataset([np.dstack([image] * 3) for image in GREY])
    found = to_image_dataset(in_colour)
    assert found.num_channels == 3
    assert found.provenance["channels"].startswith("3, but all images are grey: pass `channels` 1")
    converted = to_image_dataset(in_colour, channels=1)
    np.testing.assert_array_equal(converted.images[:, 0].numpy(), GREY)
    assert "channels" not in converted.provenance
    assert "channels" not in to_image_dataset(make_dataset([*COLOUR[:1], np.dstack([GREY[0]] * 3)])).provenance


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_colour_together_become_what_is_asked_for(channels):
    images = to_image_dataset(make_dataset([GREY[0], COLOUR[0]]), channels=channels).images
    assert images.shape == (2, channels, 8, 8)
    np.testing.assert_array_equal(images[0].numpy(), np.stack([GREY[0]] * channels))


def test_the_number_of_channels_is_checked(tmp_path):
    with refused("`channels` is 2: give 1 for grey images or 3 for RGB"):
        to_image_dataset(labelled(), channels=2)
    with refused("loaded with 1 channels: load them with `channels` 3"):
        to_image_dataset(to_image_dataset(labelled()), channels=3)
    write_idx(tmp_path / "train-images-idx3-ubyte", GREY)
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(6, dtype=np.uint8))
    assert load_image_dataset(train_data_dir=str(tmp_path), channels=3).num_channels == 3


def test_a_column_declares_its_channels_by_its_mode():
    for mode, channels in (("L", 1), ("RGB", 3)):
        declared = make_dataset([GREY[0], COLOUR[0]]).cast_column("image", datasets.Image(mode=mode))
        assert to_image_dataset(declared).num_channels == channels


# More than 8 bits


def deep(values, form="PNG"):
    return encoded(PIL.Image.fromarray(values), format=form)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_16_bit_images_are_loaded_with_their_public_range(form):
    values = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    full, twelve = (
        to_image_dataset(make_dataset([deep(values, form)]), pixel_range=[0, high]).images[0, 0].numpy()
        for high in (65535, 4095)
    )
    np.testing.assert_array_equal(full, np.rint(values / 257))
    np.testing.assert_array_equal(twelve, np.rint(np.minimum(values / 4095, 1) * 255))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_negative_values_such_as_hounsfield_units_have_a_range_too(dtype):
    values = np.linspace(-1500, 1500, 64).reshape(8, 8).astype(dtype)
    images = to_image_dataset(make_dataset([deep(values, "TIFF")]), pixel_range=[-1000, 1000]).images
    np.testing.assert_array_equal(images[0, 0], np.rint(np.clip((values.astype(float) + 1000) / 2000, 0, 1) * 255))


def test_big_endian_16_bit_images():
    values = (np.arange(64).reshape(8, 8) * 1000).astype(">u2")
    image = PIL.Image.frombytes("I;16B", (8, 8), values.tobytes())
    images = to_image_dataset(make_dataset([encoded(image, format="TIFF")]), pixel_range=[0, 65535]).images
    np.testing.assert_array_equal(images[0, 0], np.rint(values / 257))


def test_x_rays_whose_lowest_value_is_white_are_not_inverted():
    values = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    tag = struct.pack("<HHII", 262, 3, 1, 1)
    content = deep(values, "TIFF")["bytes"]
    assert content.count(tag) == 1
    content = content.replace(tag, struct.pack("<HHII", 262, 3, 1, 0))
    images = to_image_dataset(make_dataset([{"bytes": content, "path": None}]), pixel_range=[0, 65535]).images
    np.testing.assert_array_equal(images[0, 0], 255 - np.rint(values / 257))


def test_deep_images_are_turned_upright():
    exif = PIL.Image.Exif()
    exif[PIL.Image.ExifTags.Base.Orientation] = 6
    image = encoded(PIL.Image.fromarray(GREY[0].astype(np.uint16)), format="TIFF", exif=exif)
    images = to_image_dataset(make_dataset([image]), pixel_range=[0, 255]).images
    np.testing.assert_array_equal(images[0, 0], np.rot90(GREY[0], -1))


def test_deep_images_whose_values_pillow_rescales_are_refused():
    content = b"P5 8 8 4095\n" + np.arange(64, dtype=">u2").tobytes()
    with refused("1 with more than 8 bits a pixel that are neither plain PNG nor plain TIFF"):
        to_image_dataset(make_dataset([{"bytes": content, "path": None}]), pixel_range=[0, 4095])


def test_channels_beyond_the_colours_are_not_dropped():
    extra = encoded(PIL.Image.frombytes("RGBX", (8, 8), np.dstack([COLOUR[0], GREY[0]]).tobytes()), format="TIFF")
    assert PIL.Image.open(io.BytesIO(extra["bytes"])).mode == "RGB"
    with refused("1 with more channels than colours"):
        to_image_dataset(make_dataset([extra]))


def test_what_has_no_value_or_another_depth_is_refused():
    values = np.zeros((8, 8), dtype=np.float32)
    values[3, 3] = np.nan
    with refused("1 with pixels that are no numbers"):
        to_image_dataset(make_dataset([deep(values, "TIFF")]), pixel_range=[0, 1])
    with refused("1 with 8 bits a channel"):
        to_image_dataset(make_dataset([deep(GREY[0].astype(np.uint16)), GREY[0]]), pixel_range=[0, 4095])


def test_colour_of_16_bits_of_which_pillow_keeps_8_needs_the_whole_range():
    # Pillow writes no such file: a PNG of 8-bit RGB, whose header says that it has 16 bits and half the width.
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in COLOUR[0].astype(np.uint16) * 257)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0))
    content += chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    dataset = make_dataset([{"bytes": content, "path": None}])
    for options in ({}, {"pixel_range": [0, 4095]}):
        with refused("1 of several channels with 16 bits each"):
            to_image_dataset(dataset, **options)
    whole = to_image_dataset(dataset, pixel_range=[0, 65535]).images
    np.testing.assert_array_equal(whole[0].numpy(), COLOUR[0].transpose(2, 0, 1))


@pytest.mark.parametrize("pixel_range", [[0], [0, 1, 2], [5, 5], [9, 1], [0, float("inf")], "01"])
def test_a_range_is_two_numbers_in_order(pixel_range):
    with refused("`pixel_range` is .+: give two numbers"):
        to_image_dataset(labelled(), pixel_range=pixel_range)


# Transforms, speed and size


def test_a_transform_that_would_be_ignored_is_refused():
    with refused("has a transform, which would not be applied, .*: store its result"):
        to_image_dataset(labelled().with_transform(lambda batch: batch))


def test_large_photographs_are_decoded_at_a_fraction_of_their_size(monkeypatch):
    photo = PIL.Image.fromarray(COLOUR[0]).resize((1024, 1024))
    sizes = []
    fit = PIL.ImageOps.fit
    monkeypatch.setattr(PIL.ImageOps, "fit", lambda image, size: sizes.append(image.size) or fit(image, size))
    dataset = to_image_dataset(make_dataset([encoded(photo, format="JPEG", quality=95)]), resolution=32)
    assert sizes == [(128, 128)]
    whole = fit(photo, (32, 32))
    assert np.abs(dataset.images[0].numpy() - np.asarray(whole).transpose(2, 0, 1).astype(float)).mean() < 3


def test_more_images_than_one_chunk_stay_in_order(monkeypatch):
    monkeypatch.setattr(image_decoding, "CHUNK", 4)
    images = [np.full((2, 2), value, dtype=np.uint8) for value in range(11)]
    assert to_image_dataset(make_dataset(images)).images[:, 0, 0, 0].tolist() == list(range(11))
    with refused("1 of 11 images .* record 9"):
        to_image_dataset(make_dataset([*images[:9], {"bytes": b"?", "path": None}, images[10]]))


def test_a_setting_that_no_image_fits_is_reported_after_the_first_chunk(monkeypatch):
    monkeypatch.setattr(image_decoding, "CHUNK", 4)
    with refused("4 of 4 images"):
        to_image_dataset(make_dataset([image.astype(np.uint16) for image in GREY]))


def test_sound_images_may_be_larger_than_pillow_lets_strangers_send(monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 8 * 8 // 2 - 1)
    assert len(to_image_dataset(labelled())) == 6
    assert PIL.Image.MAX_IMAGE_PIXELS == 8 * 8 // 2 - 1
    monkeypatch.setattr(image_decoding, "MAX_IMAGE_PIXELS", 8 * 8 // 2 - 1)
    with refused("6 of more than 62 pixels"):
        to_image_dataset(labelled())
