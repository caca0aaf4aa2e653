"""Results are written to new or empty directories alone."""

import pytest

from diffusers_dp_curriculum.errors import InputError
from diffusers_dp_curriculum.files import check_new_or_empty, check_outside


def test_a_directory_that_holds_anything_is_refused(tmp_path):
    check_new_or_empty(tmp_path)
    check_new_or_empty(tmp_path / "new")
    (tmp_path / "report.json").write_text("{}")
    for place in (tmp_path, tmp_path / "report.json"):
        with pytest.raises(InputError, match="neither new nor an empty directory"):
            check_new_or_empty(place)


@pytest.mark.parametrize(
    "name", [".DS_Store", "Thumbs.db", ".ipynb_checkpoints", "._.DS_Store", "@eaDir", "lost+found"]
)
def test_what_tools_leave_behind_is_nothing(tmp_path, name):
    (tmp_path / name).mkdir() if "." not in name else (tmp_path / name).touch()
    check_new_or_empty(tmp_path)
    (tmp_path / ".git").mkdir()
    with pytest.raises(InputError, match="neither new nor an empty directory"):
        check_new_or_empty(tmp_path)


def test_results_lie_outside_of_the_data_set(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    for place in ("data2", "data/../model", "."):
        check_outside(tmp_path / place, tmp_path / "data")
    for place in ("data", "data/new/model", "link/model"):
        with pytest.raises(InputError, match="is in the directory of the data set"):
            check_outside(tmp_path / place, tmp_path / "data")
