"""A wrong name is refused before anything slow: without imports of what computes, and without a second request."""

import subprocess
import sys

import pytest
from huggingface_hub import HfApi

from diffusers_dp_curriculum.errors import DPCurriculumError, InputError
from diffusers_dp_curriculum.names import check_pipeline_name, check_run_name, is_on_hub


OUT_OF_REACH = "http://127.0.0.1:9"
WRONG = [
    ("generate TYPO --images_per_class 3 --output_dir new", "cannot be looked up on the Hub (ConnectError)"),
    ("generate ./typo --images_per_class 3 --output_dir new", "neither the directory of a saved pipeline nor one on"),
    ("generate taken --images_per_class 3 --output_dir new", "neither the directory of a saved pipeline nor one on"),
    ("app TYPO", "cannot be looked up on the Hub"),
    ("evaluate TYPO --reference digits", "cannot be looked up on the Hub"),
    ("evaluate taken --reference digits --output_dir taken", "is neither new nor an empty directory"),
    ("epsilon TYPO", "cannot be looked up on the Hub"),
    ("epsilon ../typo/privacy.json", "is no path, and there is no repository"),
    ("push typo me/name", "typo is not a directory"),
    ("audit --output_dir taken", "is neither new nor an empty directory"),
    ("train --train_data_dir typo --resolution 8 --output_dir new", "typo does not exist"),
    ("train --model_config_name_or_path TYPO --output_dir new", "cannot be looked up on the Hub"),
    ("train --model_config_name_or_path a/b/c --output_dir new", "a/b/c has no config of a UNet2DModel"),
    ("train --prior_runs TYPO --output_dir new", "cannot be looked up on the Hub"),
    ("train --block_out_channels 32 30 --output_dir new", "--block_out_channels is 30: give a multiple of 8"),
    ("train --prediction_type noise --output_dir new", '--prediction_type is "noise": choose epsilon, v_prediction or'),
    ("train --output_dir taken", "already holds another run or other files"),
    ("train --no_such_flag 1", "There is no flag --no_such_flag"),
]


def test_no_command_imports_what_computes_or_asks_twice_for_a_name_that_is_wrong(tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    code = f"""
import contextlib, io, os, sys, time
os.environ["HF_ENDPOINT"] = {OUT_OF_REACH!r}
os.environ.pop("HF_HUB_OFFLINE", None)
from diffusers_dp_curriculum import cli
def wait(seconds):
    raise AssertionError("the Hub is asked again")
time.sleep = wait
for command, message in {WRONG!r}:
    with contextlib.redirect_stderr(io.StringIO()) as printed:
        assert cli.main(command.split()) == 1, command
    assert message in printed.getvalue(), (command, printed.getvalue())
    assert printed.getvalue().count("\\n") == 1, printed.getvalue()
    heavy = {{"torch", "diffusers", "transformers", "datasets", "matplotlib", "gradio"}} & set(sys.modules)
    assert not heavy, (command, heavy)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_a_repository_is_found_by_its_name(hub):
    HfApi().create_repo("model")
    assert is_on_hub("alice/model")
    assert not is_on_hub("alice/model", "dataset")
    check_pipeline_name("alice/model")
    check_run_name("alice/model")
    for check in (check_pipeline_name, check_run_name):
        with pytest.raises(InputError, match="^alice/typo is n"):
            check("alice/typo")


def test_offline_the_cache_decides(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert is_on_hub("alice/model")


def test_a_hub_that_fails_is_no_reason_to_believe_that_a_name_is_wrong(hub):
    hub.fail(r"/api/models/alice/model", 500)
    with pytest.raises(DPCurriculumError, match="alice/model is no path here, .* on the Hub .500.: check"):
        is_on_hub("alice/model")
