"""The errors that the library raises on purpose have one base class, four kinds, and one grammar."""

import ast
import pickle
import re
from pathlib import Path

import pytest

import diffusers_dp_curriculum
from diffusers_dp_curriculum import (
    DPCurriculumConfig,
    DPCurriculumError,
    HubError,
    InputError,
    StorageError,
    TrainingError,
)
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


# The messages

SOURCE = Path(diffusers_dp_curriculum.__file__).parent
NAMES = {kind.__name__ for kind in KINDS}
ARGUMENTS = [name for name in DPCurriculumConfig.__dataclass_fields__ if "_" in name]


def messages(path):
    """The messages in the source of a module; `{}` stands for what is filled in."""
    kinds = NAMES | ({"ValueError"} if path.name == "pipeline.py" else set())  # which runs without this package
    for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not (isinstance(call, ast.Call) and call.args):
            continue
        if kinds & {name.id for name in ast.walk(call.func) if isinstance(name, ast.Name)}:
            text = call.args[0]
            parts = text.values if isinstance(text, ast.JoinedStr) else [text]
            if all(isinstance(part, ast.Constant | ast.FormattedValue) for part in parts):
                yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in parts)


def is_message(text):
    return bool(re.fullmatch(r"(?s)[^\n]+: [^\n]+\.", text)) or text == "{}: {}"  # the second part is another message


def test_messages_say_what_is_wrong_and_after_a_colon_what_to_do():
    found = {path: list(messages(path)) for path in SOURCE.rglob("*.py")}
    assert sum(map(len, found.values())) > 150
    for path, texts in found.items():
        for text in texts:
            assert is_message(text), f"{path.name}: {text}"
            assert not re.search(", so (?!that )", text), f"{path.name}: {text}"


def test_messages_name_arguments_in_backticks_and_no_flags():
    for path in SOURCE.rglob("*.py"):
        if path.name == "cli.py" or path.parent.name == "commands":
            continue  # their messages name flags
        for text in messages(path):
            assert not re.search(r"(^|[\s`])--\w", text), f"{path.name}: {text}"
            bare = re.sub("`[^`]*`", "", text)
            assert not re.search(rf"\b({'|'.join(ARGUMENTS)})\b", bare), f"{path.name}: {text}"


def test_what_the_test_of_messages_would_find():
    assert not is_message("The image is empty.")
    assert not is_message("`resolution` is 0: give more")
    assert is_message("`resolution` is {}: give more.")
