"""Messages of libraries about single records reach neither the log nor the terminal."""

import io
import logging
import os
import subprocess
import sys
import warnings

import numpy as np
import PIL.ExifTags
import PIL.Image
import pytest

from diffusers_dp_curriculum import InputError, load_image_dataset, to_image_dataset
from diffusers_dp_curriculum.data.silence import no_messages, silence
from helpers.image_data import COLOUR, GREY, encoded, make_dataset


MARK = "patient-4711"


@pytest.fixture
def heard(capfd):
    """A function that runs some work, and returns all its warnings, log messages and output on the terminal."""

    def listen(work):
        log = io.StringIO()
        handler, level = logging.StreamHandler(log), logging.root.level
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        capfd.readouterr()
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            logging.root.addHandler(handler)
            logging.root.setLevel(1)
            try:
                work()
            finally:
                logging.root.setLevel(level)
                logging.root.removeHandler(handler)
        terminal = [line for line in capfd.readouterr().err.splitlines() if "Decoding images" not in line]
        return [str(warning.message) for warning in warned] + log.getvalue().splitlines() + "".join(terminal).split()

    return listen


def palette_with_transparency():
    return encoded(PIL.Image.fromarray(COLOUR[0]).convert("P"), transparency=bytes(range(256)))


def damaged_exif():
    # It announces five entries, and ends within the first.
    exif = b"II*\0\x08\0\0\0" + b"\x05\0\x12\x01\x03\0\x01\0\0\0\x06"
    return encoded(COLOUR[0], format="JPEG", exif=b"Exif\0\0" + exif)


def name_of_the_artist():
    exif = PIL.Image.Exif()
    exif[PIL.ExifTags.Base.Artist] = MARK
    return encoded(COLOUR[0], format="TIFF", exif=exif)


def damaged_fax():
    page = PIL.Image.fromarray(np.tile(GREY[0], (8, 8))).convert("1")
    content = encoded(page, format="TIFF", compression="group4")["bytes"]
    return {"bytes": content[:20] + b"\xff" * 5 + content[25:], "path": None}


def large():
    return encoded(np.tile(GREY[0], (8, 8)))


@pytest.mark.parametrize("image", [palette_with_transparency, damaged_exif, name_of_the_artist, damaged_fax, large])
def test_an_image_of_which_libraries_speak_is_loaded_in_silence(image, heard, monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 64 * 64 - 1)
    image = image()

    def decode_and_convert():
        picture = PIL.Image.open(io.BytesIO(image["bytes"]))
        picture.getexif()
        picture.convert("RGB")

    assert heard(decode_and_convert)  # otherwise the next line would prove nothing
    assert heard(lambda: to_image_dataset(make_dataset([image]), resolution=8, background="white")) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(to_image_dataset(make_dataset([image]), resolution=8, background="white")) == 1


def test_a_refusal_is_silent_as_well(heard):
    content = encoded(COLOUR[0], format="TIFF", compression="tiff_adobe_deflate")["bytes"]
    damaged = {"bytes": content[:60] + b"\xff" * 20 + content[80:], "path": None}

    def load():
        with pytest.raises(InputError, match="1 damaged.*, the first of which is record 0"):
            to_image_dataset(make_dataset([damaged]))

    assert heard(load) == []


@pytest.mark.parametrize("name", ["train.parquet", "metadata.csv", "metadata.jsonl"])
def test_names_of_damaged_files_are_not_logged(name, heard, tmp_path):
    directory = tmp_path / MARK
    directory.mkdir()
    (directory / name).write_bytes(b"\xff\xfenot what its name says")
    PIL.Image.fromarray(GREY[0]).save(directory / "0.png")

    def load():
        with pytest.raises(InputError, match="cannot be (read|used)"):
            load_image_dataset(train_data_dir=str(directory), accept_left_out_files=True)

    assert [words for words in heard(load) if MARK in words] == []


@pytest.mark.parametrize("silent", [silence, no_messages])
@pytest.mark.parametrize("error", [None, ZeroDivisionError])
def test_whatever_comes_after_is_heard_again(silent, error, heard):
    def speak():
        try:
            with silent():
                logging.getLogger("PIL.deep").critical("unheard")
                warnings.warn("unheard", stacklevel=1)
                if error:
                    raise error
        except ZeroDivisionError:
            pass
        logging.getLogger("PIL.deep").debug("logged")
        warnings.warn("warned", stacklevel=1)
        os.write(2, b"written ")
        print("printed", file=sys.stderr)

    assert heard(speak) == ["warned", "PIL.deep: logged", "written", "printed"]


def test_a_process_without_a_terminal_decodes_too():
    code = (
        "import os, sys\nfrom diffusers_dp_curriculum.data.silence import silence\nos.close(2)\n"
        "with silence():\n    print('inside')\nprint('after')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "inside\nafter\n")
