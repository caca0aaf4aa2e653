"""Fixtures that several tests of the data share."""

import datasets
import pytest

from helpers.image_data import GREY, write_images


@pytest.fixture
def quiet():
    datasets.disable_progress_bars()


@pytest.fixture
def photos(tmp_path):
    """Ten images in two classes."""
    write_images(tmp_path / "photos" / "cat", GREY[:5])
    write_images(tmp_path / "photos" / "dog", GREY[:5])
    return tmp_path / "photos"
