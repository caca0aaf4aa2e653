"""The audit does not refute the mechanism as it is, and refutes one that adds less noise than it claims."""

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

from diffusers_dp_curriculum.auditing import audit as audit_module
from diffusers_dp_curriculum.auditing.audit import audit_run
from diffusers_dp_curriculum.auditing.canaries import Canaries
from diffusers_dp_curriculum.auditing.query_attack import ScaledNoise, attack_queries
from diffusers_dp_curriculum.auditing.report import describe_audit
from diffusers_dp_curriculum.commands import audit as audit_command
from diffusers_dp_curriculum.errors import InputError
from diffusers_dp_curriculum.gradients.losses import DenoisingLoss
from diffusers_dp_curriculum.mechanisms.central_images import CentralImageQueries
from diffusers_dp_curriculum.mechanisms.frequency_features import FrequencyFeatureQuery
from diffusers_dp_curriculum.privacy.accounting import Mechanism, calibrate_noise_multiplier
from diffusers_dp_curriculum.privacy.ledger import PrivacyLedger
from helpers import smallest_unet, tiny_records, tiny_scheduler, uneven_users


CLAIM = 4.0
STEPS = 12


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr(audit_module, "LOSS_DRAWS", 8)  # the black-box attack finds nothing, however many there are


def calibrated(*queries):
    """The queries of a run, and the noise multiplier with which it claims CLAIM."""
    before = [query.mechanism(tiny_records().info) for query in queries]
    planned = Mechanism("dp_sgd", 1.0, 0.5, STEPS, 1.0)
    return {"queries": queries, "noise_multiplier": calibrate_noise_multiplier(CLAIM, 1e-5, planned, before)}


def small_audit(records=None, **options):
    settings = {
        "noise_multiplier": 3.0,
        "steps": STEPS,
        "max_grad_norm": 0.3,
        "gradient_canaries": 1000,
        "image_canaries": 100,
        "max_physical_batch_size": 256,
    }
    loss = DenoisingLoss(tiny_scheduler(), null_label=3)
    return audit_run(smallest_unet(), loss, records or tiny_records(), **settings | options)


def test_canaries_are_users_where_users_are_protected():
    """With hardly any noise the attack finds all of them, and each image canary has several images."""
    records = uneven_users(60, users=30)
    audit = small_audit(records=records, actual_noise=0.0, steps=2 * STEPS)
    assert audit.unit == audit.to_dict()["unit"] == "user"
    assert audit.mechanisms[-1].sample_rate == pytest.approx(0.5, abs=1e-3)
    assert audit.refuted
    assert "for one user: REFUTED" in str(audit)
    canaries = Canaries(records, image_canaries=100, gradient_canaries=200)
    assert canaries.records.units.sizes[30:].tolist() == [3] * 100 + [1] * 200
    assert (len(canaries.present), len(canaries.image_present), len(canaries.gradient_present)) == (330, 100, 200)


def test_a_mechanism_without_noise_is_found_out():
    # More steps, since one in 2^12 canaries would be sampled in none of 12 steps, and leave no trace.
    audit = small_audit(actual_noise=0.0, steps=2 * STEPS)
    white_box = audit.bounds[0]
    assert white_box.correct == white_box.guesses
    assert white_box.epsilon_gaussian > audit.claimed_epsilon
    assert audit.refuted
    assert "REFUTED" in str(audit)


def test_an_absent_canary_leaves_no_trace_and_a_present_one_the_clipping_norm():
    """Without noise, a step releases the clipped gradient of each present canary, and 0 for each absent one."""
    audit = small_audit(actual_noise=0.0, sample_rate=1.0, steps=1)
    # The score of one step without sampling is (released - 1/2) / sigma^2, in units of the clipping norm.
    released = audit.scores["white-box"] * audit.mechanisms[-1].noise_multiplier ** 2 + 0.5
    present = audit.present["white-box"]
    assert 400 < present.sum() < 600
    assert torch.allclose(released, present.double(), atol=1e-4)


QUERIES = [
    CentralImageQueries(8, "mean", 5.0, 0.5),
    CentralImageQueries(2, "mean", 5.0, 1.0),
    CentralImageQueries(8, "mode", 5.0, 1.0),
    FrequencyFeatureQuery(1000, 5.0),
]


@pytest.mark.parametrize("query", QUERIES, ids=["mean", "mean of all", "mode", "frequency"])
@pytest.mark.parametrize("users", [False, True])
def test_without_noise_a_query_tells_which_canaries_were_sampled(query, users):
    records = uneven_users(60, users=30) if users else tiny_records()
    chances = []
    for _ in range(5):
        canaries = Canaries(records, 10, 40)
        ledger = PrivacyLedger(1e-5, unit=records.units.name)
        scores = attack_queries(query, canaries, ledger, ScaledNoise(0.0))
        present = canaries.gradient_present
        assert ledger.mechanisms == [query.mechanism(records.info)]
        chances.append((scores[present][:, None] > scores[~present]).double().mean())
    # That a present canary has a larger score than an absent one. It is 0.86 for the mode, in which canaries interfere
    # with each other most, and 0.5 for an attack that sees nothing; both with a standard deviation below 0.04.
    assert torch.stack(chances).mean() > 0.68


def test_canaries_that_are_absent_add_nothing_to_a_query():
    canaries = Canaries(tiny_records(), 100, 100)
    query = CentralImageQueries(1, "mean", 5.0, 1.0)
    (sums,) = query.noisy_sums(canaries.those_present, PrivacyLedger(1e-5), ScaledNoise(0.0))
    weight = query.noisy_sums(tiny_records(), PrivacyLedger(1e-5), ScaledNoise(0.0))[0][:, -1].sum() / len(
        tiny_records()
    )
    assert sums[:, -1].sum() / weight == pytest.approx(int(canaries.present.sum()))


def test_scores_of_a_single_gaussian_query_are_log_likelihood_ratios():
    """Present and absent canaries are one sensitivity apart, and sigma sensitivities is the standard deviation."""
    sigma = 2.0
    canaries = Canaries(tiny_records(), 100, 3000)
    ledger = PrivacyLedger(1e-5)
    scores = attack_queries(FrequencyFeatureQuery(3000, sigma), canaries, ledger, ScaledNoise(1.0))
    present = canaries.gradient_present
    # The noise on what all canaries of a class have in common moves both means.
    assert scores[present].mean() - scores[~present].mean() == pytest.approx(1 / sigma**2, abs=0.08)
    assert 0.9 < sigma * scores[present].std() < 1.6  # other canaries, of which each is present or not, add to it


def test_a_whole_run_as_it_is_stays_under_its_claim_is_seen_to_release_something_and_is_reported():
    audit = small_audit(**calibrated(CentralImageQueries(2, "mean", 5.0, 0.4), FrequencyFeatureQuery(60, 3.0)))
    assert [mechanism.name for mechanism in audit.mechanisms] == [
        "central_images_mean",
        "frequency_features",
        "dp_sgd",
    ]
    assert [bound.attack for bound in audit.bounds] == [
        "white-box",
        "white-box: central_images_mean",
        "white-box: frequency_features",
        "white-box: dp_sgd",
        "black-box",
    ]
    for bound in audit.bounds:
        assert bound.epsilon_gaussian <= bound.claimed_epsilon
    assert audit.bounds[0].claimed_epsilon == pytest.approx(audit.claimed_epsilon)
    assert audit.bounds[2].claimed_epsilon < audit.claimed_epsilon
    assert 0.97 * CLAIM < audit.claimed_epsilon <= CLAIM
    assert 0.5 < audit.bounds[0].epsilon_gaussian < audit.claimed_epsilon
    assert [(bound.canaries, bound.guesses) for bound in audit.bounds] == [(1000, 250)] * 4 + [(100, 24)]
    assert not audit.refuted
    assert "not refuted" in str(audit)
    assert json.loads(json.dumps(audit.to_dict()))["refuted"] is False
    report = describe_audit(audit, 1.0, "audit.png")
    assert "It is not refuted" in report
    assert "| frequency_features | 3 | 1 | 1 |" in report
    assert f"at least {audit.bounds[0].epsilon_gaussian:.2f} | at most" in report
    assert "they added 0.5 of the noise" in describe_audit(audit, 0.5, "audit.png")


def test_queries_without_noise_refute_a_claim_whose_dp_sgd_is_right(monkeypatch):
    """Each mechanism is attacked alone as well."""
    monkeypatch.setattr(
        audit_module,
        "attack_queries",
        lambda query, canaries, ledger, _: attack_queries(query, canaries, ledger, ScaledNoise(0.0)),
    )
    audit = small_audit(**calibrated(FrequencyFeatureQuery(3000, 1.5)))
    assert audit.refuted
    refuted = [bound.attack for bound in audit.bounds if bound.epsilon_gaussian > bound.claimed_epsilon]
    assert refuted == ["white-box: frequency_features"]  # in the whole run the noise of DP-SGD hides it
    assert "REFUTED" in str(audit)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient_canaries": 10}, "`gradient_canaries` is 10: give at least 100"),
        ({"image_canaries": 0}, "`image_canaries` is 0: give at least 100"),
        ({"confidence": 1.0}, "`confidence` is 1.0"),
        ({"actual_noise": -1.0}, "`actual_noise` is -1.0"),
        ({"sample_rate": 0.0}, "sample rate"),
    ],
)
def test_bad_input_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        small_audit(**options)


def test_the_script_overwrites_no_earlier_audit_and_says_so_before_it_loads_anything(tmp_path):
    (tmp_path / "audit.json").write_text("{}")
    flags = ["--output_dir", str(tmp_path), "--train_data_dir", str(tmp_path / "nowhere")]
    with pytest.raises(InputError, match="neither new nor an empty directory"):
        audit_command.main(flags)
    assert (tmp_path / "audit.json").read_text() == "{}"


def test_the_script_writes_nothing_among_the_images(tmp_path):
    with pytest.raises(InputError, match="is in the directory of the data set"):
        audit_command.main(["--output_dir", str(tmp_path / "audit"), "--train_data_dir", str(tmp_path)])


def test_the_script_loads_images_as_training_does(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("LA", (8, 8)).save(tmp_path / "images" / "0.png")
    flags = ["--output_dir", str(tmp_path / "audit"), "--train_data_dir", str(tmp_path / "images")]
    with pytest.raises(InputError, match="pass `background`"):
        audit_command.main(flags)
    with pytest.raises(InputError, match="`image_canaries` is 0: give at least 100"):
        audit_command.main([*flags, "--background", "white", "--channels", "3", "--image_canaries", "0"])


@pytest.mark.slow
@pytest.mark.parametrize("actual_noise", [1.0, 0.5, 0.0])
def test_the_script_on_digits(tmp_path, actual_noise):
    command = [
        sys.executable,
        "-m",
        "diffusers_dp_curriculum.cli",
        "audit",
        "--actual_noise",
        str(actual_noise),
        "--output_dir",
        tmp_path,
    ]
    finished = subprocess.run(command, capture_output=True, text=True)
    broken = actual_noise < 1
    assert finished.returncode == (1 if broken else 0), finished.stderr
    assert ("REFUTED" in finished.stdout) == broken
    audit = json.loads((tmp_path / "audit.json").read_text())
    whole_run = audit["bounds"][0]["epsilon_gaussian"]
    assert 7.9 < audit["claimed_epsilon"] <= 8
    assert 1 < whole_run < audit["claimed_epsilon"] or broken
    assert any(bound["epsilon_gaussian"] > bound["claimed_epsilon"] for bound in audit["bounds"]) == broken
    assert "What the attacks prove" in (tmp_path / "audit.md").read_text()
    assert Image.open(tmp_path / "audit.png").size[0] > 1000
