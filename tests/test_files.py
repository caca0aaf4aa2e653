"""Results are written to new or empty directories alone."""

import pytest

from diffusers_dp_curriculum.errors import InputError, StorageError
from diffusers_dp_curriculum.files import check_new_or_empty, check_outside, storage_errors
from diffusers_dp_curriculum.run_paths import check_output_dir


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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("n" * 300, "cannot be created .File name too long."),
        ("nul\0", "cannot be created .*null"),
        ("link", "is a link to nothing"),
        ("file/new", "cannot be created in .*file: choose another `output_dir`"),
    ],
)
def test_a_directory_that_cannot_be_made_is_refused_in_one_sentence(tmp_path, name, message):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for check in (check_new_or_empty, check_output_dir):
        with pytest.raises(StorageError, match=message):
            check(tmp_path / name)


def test_an_error_of_a_file_names_it_if_it_is_a_result_and_no_other_file(tmp_path):
    message = r"model.a cannot be written or read \(No such file or directory\): see to"
    with pytest.raises(StorageError, match=message), storage_errors(tmp_path / "model", "resume"):
        (tmp_path / "model" / "a").write_text("")
    with pytest.raises(FileNotFoundError), storage_errors(tmp_path / "model", "resume"):
        (tmp_path / "records" / "patient-7.png").read_bytes()


def test_results_lie_outside_of_the_data_set(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "data")
    for place in ("data2", "data/../model", "."):
        check_outside(tmp_path / place, tmp_path / "data")
    for place in ("data", "data/new/model", "link/model"):
        with pytest.raises(InputError, match="is in the directory of the data set"):
            check_outside(tmp_path / place, tmp_path / "data")
