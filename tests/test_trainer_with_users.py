"""Whole runs that protect users: what they count, what they publish, and that a run about records is the same."""

import json
import re

import pytest
import torch

from diffusers_dp_curriculum.errors import InputError
from diffusers_dp_curriculum.privacy.statement import PrivacyStatement, recompute_epsilon
from helpers import tiny_records, uneven_users, with_users
from helpers.dp_sgd_steps import parameters
from helpers.runs import finish, interrupted, make_trainer


FREQUENCY = {
    "frequency_features": 40,
    "frequency_noise_multiplier": 5.0,
    "frequency_generator_steps": 2,
    "frequency_train_steps": 2,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    trainer = make_trainer(
        tmp_path_factory.mktemp("users") / "model", records=uneven_users(), insecure_noise_seed=1, **FREQUENCY
    )
    finish(trainer)
    return trainer


def test_plan_and_statement_count_users(finished, tmp_path):
    privacy = json.loads((finished.output_dir / "privacy.json").read_text())
    assert (privacy["unit"], privacy["adjacency"], privacy["dataset_size"]) == ("user", "zero_out_one_user", 12)
    rates = {entry["name"]: entry["sample_rate"] for entry in privacy["mechanisms"]}
    assert rates == {"central_images_mean": 0.5, "frequency_features": 1.0, "dp_sgd": pytest.approx(10 / 12)}
    assert privacy["public_assumptions"][0] == "the number of users N"
    assert recompute_epsilon(privacy) == privacy["epsilon"] <= 10
    plan = finished.describe_plan()
    assert "Plan for 12 users of 8x8x1 in 3 classes" in plan
    assert "for zeroing out one user" in plan
    assert "2 draws a user" in plan
    for options, match in (
        ({"train_batch_size": 13}, "larger than the data set .12 users.: give at most the number of users"),
        ({"target_delta": 0.09}, "not below 1/N = 0.0833 for 12 users"),
    ):
        with pytest.raises(InputError, match=match):
            make_trainer(tmp_path / "model", records=uneven_users(), **options)


def test_the_card_says_who_is_protected(tmp_path):
    trainer = make_trainer(tmp_path / "model", records=uneven_users())
    finish(trainer)
    card = (tmp_path / "model" / "README.md").read_text()
    for words in (
        "with respect to zeroing out one user (all images of one person, with their labels) of its training data",
        "It covers adding or removing all images of one person, however many they are.",
        "if any one of the 12 users had contributed nothing",
        "**Unit of privacy.** One user: all images of one person, with their labels.",
    ):
        assert words in card
    assert not re.search(
        r"(?<!previous runs on the same )records?\b",
        card.split("## Training")[0]
        .replace("further runs on the same records add up", "")
        .replace("learned nothing from these records", ""),
    )


def test_what_is_published_does_not_tell_the_number_of_records(finished, tmp_path):
    """A run on the same users, of whom one has thirty records more."""
    records = uneven_users()
    more = torch.cat([torch.arange(60), torch.zeros(30, dtype=torch.int64)])
    records = type(records)(records.images[more], records.labels[more], records.class_names, users=records.users[more])
    trainer = make_trainer(tmp_path / "model", records=records, insecure_noise_seed=1, **FREQUENCY)
    finish(trainer)
    texts = {}
    for output_dir in (finished.output_dir, tmp_path / "model"):
        published = {
            str(path.relative_to(output_dir)): path
            for path in output_dir.rglob("*")
            if path.is_file() and "private" not in path.parts
        }
        of_run = json.loads(published["privacy.json"].read_text())
        known = {
            name: re.sub(r"[0-9a-f]{16}", "NAME", path.read_text())
            for name, path in published.items()
            if path.suffix in (".json", ".md", ".py")
        }
        sizes = {name: path.stat().st_size for name, path in published.items() if path.suffix == ".safetensors"}
        checkpoints = sorted(path.name for path in (output_dir / "private" / "checkpoints").iterdir())
        texts[output_dir] = known, sizes, sorted(published), checkpoints, sum(of_run["runs"][0]["sessions"].values())
    one, other = texts.values()
    assert one == other


def test_with_one_record_a_user_a_run_is_that_of_records(tmp_path):
    """Number for number, where sampling, noise and draws follow from a seed."""
    trainers = []
    for name, records in {"records": tiny_records(), "users": with_users(tiny_records(), torch.arange(60))}.items():
        torch.manual_seed(0)  # of the network
        trainer = make_trainer(tmp_path / name, records=records, insecure_noise_seed=1, **FREQUENCY)
        trainer.train()
        trainers.append(trainer)
    one, other = trainers
    assert torch.equal(parameters(one.unet), parameters(other.unet))
    for name in ("central_images", "frequency_images"):
        assert torch.equal(one.released[name].images, other.released[name].images)
    assert torch.equal(one.released["frequency_features"].sums, other.released["frequency_features"].sums)
    assert one.ledger.mechanisms == other.ledger.mechanisms


def test_a_run_about_users_is_resumed_with_the_same_users_alone(tmp_path):
    interrupted(tmp_path / "model", 5, records=uneven_users())
    other = with_users(tiny_records(), torch.arange(60) % 12)
    for records in (tiny_records(), other):
        with pytest.raises(InputError):
            make_trainer(tmp_path / "model", records=records, resume_from_checkpoint="latest")
    trainer = make_trainer(tmp_path / "model", records=uneven_users(), resume_from_checkpoint="latest")
    privacy = finish(trainer)
    assert (privacy["unit"], privacy["dataset_size"]) == ("user", 12)
    assert PrivacyStatement.read(tmp_path / "model" / "privacy.json").unit == "user"


@pytest.mark.parametrize("unit", ["record", "user"])
def test_previous_runs_have_the_unit_of_the_new_run(tmp_path, unit):
    records = {"record": tiny_records(), "user": uneven_users()}
    make_trainer(tmp_path / "first", records=records.pop(unit), target_epsilon=5.0).train()
    (other,) = records.values()
    with pytest.raises(InputError, match=f"protects each {unit}, and what it is added to protects each"):
        make_trainer(tmp_path / "second", records=other, prior_runs=[str(tmp_path / "first")])
