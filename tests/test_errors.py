"""The errors that the library raises on purpose: of one family, and told apart by who can do something about them."""

import pickle

import pytest

from diffusers_dp_curriculum import DPCurriculumError, HubError, InputError, StorageError, TrainingError
from diffusers_dp_curriculum.distributed import _for_other_processes
from diffusers_dp_curriculum.errors import confidential_errors


KINDS = [InputError, StorageError, HubError, TrainingError]


@pytest.mark.parametrize("kind", KINDS)
def test_the_family_passes_where_unexpected_errors_are_kept_and_from_one_process_to_another(tmp_path, kind):
    with pytest.raises(kind, match="it is full: make room"), confidential_errors(tmp_path / "traceback.txt"):
        raise kind("it is full: make room.")
    assert not (tmp_path / "traceback.txt").exists()
    reported = pickle.loads(pickle.dumps(_for_other_processes(kind("it is full: make room."))))
    assert (type(reported), str(reported)) == (kind, "it is full: make room.")


def test_other_processes_learn_nothing_of_an_unexpected_error_but_that_there_was_one():
    assert "a batch of 17" not in str(_for_other_processes(ValueError("a batch of 17")))
    assert type(_for_other_processes(ValueError("a batch of 17"))) is TrainingError


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_are_caught_by_the_base_class_and_none_by_another(kind):
    assert issubclass(kind, DPCurriculumError)
    assert not any(issubclass(kind, other) for other in KINDS if other is not kind)


def test_what_the_user_gave_is_a_value_error_and_a_full_disk_is_not():
    assert issubclass(InputError, ValueError)
    assert not issubclass(StorageError, ValueError)
