"""Results are written to new or empty directories alone."""

import pytest

from diffusers_dp_curriculum.errors import InputError
from diffusers_dp_curriculum.files import check_new_or_empty


def test_a_directory_that_holds_anything_is_refused(tmp_path):
    check_new_or_empty(tmp_path)
    check_new_or_empty(tmp_path / "new")
    (tmp_path / "report.json").write_text("{}")
    for place in (tmp_path, tmp_path / "report.json"):
        with pytest.raises(InputError, match="neither new nor an empty directory"):
            check_new_or_empty(place)
