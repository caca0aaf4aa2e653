"""The command `dp-curriculum pretrain`, and the run that starts from its result."""

import numpy as np
import pytest
from PIL import Image

from diffusers_dp_curriculum import InputError, cli
from diffusers_dp_curriculum.commands.pretrain import make_parser, parse_arguments
from helpers import write_privacy_json


TINY = ["--block_out_channels", "8", "--max_train_steps", "2", "--train_batch_size", "4", "--num_inference_steps", "2"]


def write_images(path, classes):
    generator = np.random.default_rng(0)
    for number, name in enumerate(classes * 3):
        (path / name).mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (9, 11, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path / name / f"{number}.png")


def test_public_images_to_the_plan_of_a_private_run(tmp_path, capsys, fresh_accelerator):
    write_images(tmp_path / "photos", ["ant", "bee"])
    (tmp_path / "photos" / "ant" / "unread.heic").touch()
    public = tmp_path / "public"
    flags = ["--train_data_dir", str(tmp_path / "photos"), "--resolution", "8", "--output_dir", str(public), *TINY]
    assert cli.main(["pretrain", *flags]) == 0
    printed = capsys.readouterr().out
    for words in (
        "Training on 6 public images of 8x8x3 in 2 classes, WITHOUT privacy\n",
        "  files           7 found, 6 used, 1 left out\n",
        f"NOT PRIVATE: the pipeline in {public} was trained on public images, which it can reproduce.\n",
        "  classes               0 = ant, 1 = bee\n",
        f"dp-curriculum train --pretrained_model_name_or_path {public}\n",
    ):
        assert words in printed
    assert cli.main(["pretrain", *flags]) == 1
    assert "already holds another run" in capsys.readouterr().err

    train = f"--dataset_name digits --output_dir {tmp_path / 'model'} --accountant rdp --noise_multiplicity 1 --plan"
    assert cli.main(["train", *train.split(), "--pretrained_model_name_or_path", str(public)]) == 0
    assert f"  starts from     {public}\n" in capsys.readouterr().out
    assert not (tmp_path / "model").exists()


def test_a_preset_gives_the_network_and_the_loss_and_not_the_private_training():
    script, config = parse_arguments(["--preset", "cifar10", "--train_data_dir", "photos", "--layers_per_block", "3"])
    assert (script.block_out_channels, script.layers_per_block, script.noise_scheduler) == ([64, 128], 3, "edm")
    assert config.noise_level_mean == -1.2
    assert (config.train_batch_size, config.max_train_steps, config.learning_rate) == (128, 20_000, 2e-4)
    assert (config.output_dir, script.dataset_name) == ("public-model", None)


def test_flags_are_those_of_training_on_public_images_alone():
    flags = make_parser().format_help()
    for flag in ("--train_data_dir", "--prediction_type", "--use_ema", "--resume_from_checkpoint"):
        assert flag in flags
    for flag in ("--target_epsilon", "--user_column", "--central_", "--max_grad_norm", "--prior_runs", "--plan"):
        assert flag not in flags
    with pytest.raises(InputError, match="There is no flag --target_epsilon: see --help"):
        parse_arguments(["--target_epsilon", "3"])
    with pytest.raises(InputError, match="`max_train_steps` is 0: give at least 1"):  # a private run may have none
        parse_arguments(["--dataset_name", "digits", "--max_train_steps", "0"])


def test_images_that_a_private_model_made_are_not_public(tmp_path, capsys):
    write_images(tmp_path / "synthetic" / "train", ["ant", "bee"])
    write_privacy_json(tmp_path / "synthetic" / "privacy.json")
    for directory in (tmp_path / "synthetic", tmp_path / "synthetic" / "train"):
        flags = ["--train_data_dir", str(directory), "--resolution", "8", "--output_dir", str(tmp_path / "public")]
        assert cli.main(["pretrain", *flags, *TINY]) == 1
        assert "has a privacy.json, as images made by a model of sensitive records have" in capsys.readouterr().err
    assert not (tmp_path / "public").exists()
