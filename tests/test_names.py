"""A wrong name is refused before anything slow: without imports of what computes, and without a second request."""

import subprocess
import sys

import pytest
from huggingface_hub import HfApi, snapshot_download

from diffusers_dp_curriculum.errors import DPCurriculumError, InputError
from diffusers_dp_curriculum.names import check_dataset_name, check_pipeline_name, check_run_name, is_on_hub


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
    ("epsilon taken --delta 2", "--delta is 2.0: give a number from 1e-12 to 1, below 1/N"),
    ("epsilon taken --output taken/file", "taken/file exists already, or its directory does not exist"),
    ("push typo me/name", "typo is not a directory"),
    ("evaluate digits --reference TYPO", "cannot be looked up on the Hub"),
    ("evaluate TYPO --reference digits --epochs 0", "--epochs is 0: give at least 1"),
    ("generate TYPO --images_per_class 1 -1 --output_dir new", "--images_per_class is -1: give at least 0"),
    ("generate TYPO --images_per_class 0 --output_dir new", "--images_per_class asks for no image: give at least 1"),
    ("generate TYPO --images_per_class 3 --output_dir taken", "taken is neither new nor an empty directory"),
    ("generate TYPO --images_per_class 3 --output_dir a[1]", "a[1] has [ in its path, so that `datasets` would load"),
    ("generate TYPO --images_per_class 3 --output_dir taken/file/new", "cannot be created in"),
    ("generate TYPO --images_per_class 3 --output_dir a.. --push_to_hub", "a.. cannot be the name of a repository"),
    ("push taken me/typo/again", "me/typo/again cannot be the name of a repository"),
    ("audit --output_dir taken", "is neither new nor an empty directory"),
    ("audit --train_data_dir typo", "typo does not exist: give the directory of images as --train_data_dir"),
    ("audit --dataset_name TYPO", "cannot be looked up on the Hub"),
    ("audit --image_canaries 99", "--image_canaries is 99: give at least 100"),
    ("train --dataset_name TYPO --output_dir new", "cannot be looked up on the Hub"),
    ("train --dataset_name taken --output_dir new", "taken is a directory: give it as --train_data_dir"),
    ("train --dataset_name digits --train_data_dir taken", "--dataset_name and --train_data_dir are both given"),
    ("train --attention_levels 3 --output_dir new", "--attention_levels is 3: give a number from 0 to 2, the levels"),
    ("train --train_data_dir taken --resolution 9", "A resolution of 9 cannot be halved 1 times"),
    ("train --train_data_dir taken --pixel_range 1", "--pixel_range is 1.0: give two numbers"),
    ("train --train_data_dir taken --background gray90x", '--background is "gray90x": give the name of a colour'),
    ("train --train_data_dir taken --class_names a a", "The classes a, a are not all different"),
    ("train --num_inference_steps 20 --ddpm_num_steps 10", "--num_inference_steps is 20: give 1 to 10, the steps"),
    ("train --s_churn 3", "--s_churn belongs to EDM's sampler"),
    ("train --noise_scheduler edm --prediction_type sample", 'EDM has no prediction type "sample"'),
    ("train --noise_scheduler edm --timestep_sampling uniform", "EDM has no timesteps to draw"),
    ("train --logger trackio", "The logger trackio is not installed"),
    ("train --push_to_hub --hub_model_id me/you/model", "me/you/model cannot be the name of a repository"),
    ("train --train_data_dir typo --resolution 8 --output_dir new", "typo does not exist"),
    ("train --model_config_name_or_path TYPO --output_dir new", "cannot be looked up on the Hub"),
    ("train --model_config_name_or_path a/b/c --output_dir new", "a/b/c has no config of a UNet2DModel"),
    ("train --pretrained_model_name_or_path TYPO --output_dir new", "cannot be looked up on the Hub"),
    ("train --pretrained_model_name_or_path taken/file --output_dir new", "has neither a pipeline of diffusers nor a"),
    ("pretrain --train_data_dir typo --output_dir new", "typo does not exist"),
    ("pretrain --output_dir new", "--dataset_name and --train_data_dir are both given or both missing"),
    ("pretrain --dataset_name TYPO --output_dir new", "cannot be looked up on the Hub"),
    ("pretrain --dataset_name digits --output_dir taken", "already holds another run or other files"),
    ("pretrain --dataset_name digits --pretrained_model_name_or_path TYPO --output_dir new", "cannot be looked up on"),
    ("pretrain --dataset_name digits --target_epsilon 1", "There is no flag --target_epsilon"),
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


def test_offline_the_cache_decides(hub, monkeypatch):
    HfApi().create_repo("model")
    HfApi().upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="alice/model")
    snapshot_download("alice/model")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert is_on_hub("alice/model")
    assert not is_on_hub("alice/typo")
    assert not is_on_hub("alice/typo", "dataset")
    check_dataset_name("alice/data")  # `datasets` has a cache of its own


def test_a_data_set_is_found_by_its_name(hub):
    HfApi().create_repo("data", repo_type="dataset")
    check_dataset_name("alice/data")
    check_dataset_name("digits")
    with pytest.raises(InputError, match="^There is no data set alice/typo on the Hub: check the name"):
        check_dataset_name("alice/typo")


def test_a_hub_that_fails_is_no_reason_to_believe_that_a_name_is_wrong(hub):
    hub.fail(r"/api/models/alice/model", 500)
    with pytest.raises(DPCurriculumError, match="alice/model is no path here, .* on the Hub .500.: check"):
        is_on_hub("alice/model")
