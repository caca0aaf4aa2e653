"""Several runs on the same records are found wherever they are, counted once, and added up."""

import json
import shutil
import time

import huggingface_hub
import pytest
from dp_accounting import dp_event, pld
from huggingface_hub import HfApi

from diffusers_dp_curriculum import (
    DPCurriculumError,
    HubError,
    InputError,
    Mechanism,
    compute_epsilon,
    recompute_epsilon,
)
from diffusers_dp_curriculum.privacy.composition import compose, find_statements, read_prior_runs
from diffusers_dp_curriculum.privacy.counted_runs import all_mechanisms
from diffusers_dp_curriculum.privacy.journal import Journal
from diffusers_dp_curriculum.privacy.publishability import check_statement
from diffusers_dp_curriculum.privacy.statement import PrivacyStatement
from helpers import resume_run, write_privacy_json, write_run


CENTRAL = Mechanism("central_images_mean", 5.0, 0.1, 5, 4.0)
STEPS = Mechanism("dp_sgd", 2.0, 0.1, 10, 1.0)
pytestmark = pytest.mark.filterwarnings("ignore::diffusers_dp_curriculum.privacy.accounting.LooseEpsilonWarning")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub cache"))


def together(*mechanisms, delta=1e-5, accountant="rdp"):
    return f"Together: epsilon {compute_epsilon(mechanisms, delta, accountant):.4f} at delta {delta:g}, {accountant}"


def anonymous(directory):
    """Rewrite a statement without names of runs, as older versions wrote it; return its path."""
    path = directory / "privacy.json"
    statement = json.loads(path.read_text())
    mechanisms = [{name: value for name, value in entry.items() if name != "run"} for entry in statement["mechanisms"]]
    path.write_text(json.dumps({**statement, "runs": None, "mechanisms": mechanisms}).replace('"runs": null, ', ""))
    shutil.rmtree(directory / "private")
    return path


def test_runs_are_added_up_and_listed_with_their_own_epsilons(tmp_path, recompute):
    one = write_run(tmp_path / "one", CENTRAL, STEPS)
    two = write_run(tmp_path / "two", STEPS)
    code, printed, _ = recompute(one, two / "privacy.json")
    assert not code
    assert f"{one}: epsilon {compute_epsilon([CENTRAL, STEPS], 1e-5, 'rdp'):.4f} alone" in printed
    assert f"{two / 'privacy.json'}: epsilon {compute_epsilon([STEPS], 1e-5, 'rdp'):.4f} alone" in printed
    assert together(CENTRAL, STEPS, STEPS) in printed
    assert "The figure is for 2 runs: further runs on the same records add up." in printed


def test_the_same_run_is_counted_once_wherever_it_is_found(tmp_path, recompute):
    one = write_run(tmp_path / "one", STEPS)
    published = tmp_path / "published"
    published.mkdir()
    shutil.copy(one / "privacy.json", published)  # like the published files of a model or a data set
    early = shutil.copytree(one, tmp_path / "early")
    resume_run(one, STEPS)
    code, printed, _ = recompute(published, one, early, one / "privacy.json")
    assert not code
    assert together(STEPS, STEPS) in printed
    for name in (published, early, one / "privacy.json"):
        assert f"{name} is not counted again: {one} is the same run" in printed


def test_copies_of_a_run_that_were_resumed_separately_are_both_counted_in_full(tmp_path, recompute):
    one = write_run(tmp_path / "one", CENTRAL)
    copy = shutil.copytree(one, tmp_path / "copy")
    resume_run(one, STEPS)
    resume_run(copy, STEPS, STEPS)
    code, printed, _ = recompute(one, copy, "--output", tmp_path / "all.json")
    assert not code
    assert together(CENTRAL, STEPS, CENTRAL, STEPS, STEPS) in printed
    assert f"{one} and {copy} are of one run, and neither counts all that the other does" in printed
    assert "Copies of one run" in " ".join(json.loads((tmp_path / "all.json").read_text())["remarks"])


def test_a_previous_run_that_is_counted_already_is_counted_once(tmp_path, recompute):
    one = write_run(tmp_path / "one", CENTRAL)
    two = write_run(tmp_path / "two", STEPS, prior_runs=read_prior_runs([str(one)]))
    three = write_run(tmp_path / "three", STEPS, prior_runs=read_prior_runs([str(two)]))
    assert len(PrivacyStatement.read(three / "privacy.json").runs) == 3
    for runs in ([one, three], [three, one], [three, two, one]):
        code, printed, _ = recompute(*runs)
        assert not code
        assert together(CENTRAL, STEPS, STEPS) in printed
    resume_run(one, CENTRAL)  # has now more releases than the others count
    _, printed, _ = recompute(three, two, one)
    assert together(CENTRAL, CENTRAL, STEPS, STEPS) in printed
    assert f"previous run 2 of {three} is not counted again: {one} is the same run" in printed


def test_an_interrupted_run_is_counted_by_its_journal(tmp_path, recompute):
    one, two = write_run(tmp_path / "one", STEPS), write_run(tmp_path / "two", CENTRAL, STEPS, saved=False)
    code, printed, _ = recompute(one, two)
    assert not code
    assert together(STEPS, CENTRAL, STEPS) in printed
    code, printed, _ = recompute(two)
    assert not code
    assert f"recomputed epsilon   {compute_epsilon([CENTRAL, STEPS], 1e-5, 'rdp'):.4f}" in printed
    assert "no privacy.json states it yet" in printed


@pytest.mark.parametrize("file", ["", "privacy.json"])
def test_the_journal_decides_where_it_counts_more_than_privacy_json(tmp_path, recompute, file, caplog):
    one, two = write_run(tmp_path / "one", STEPS), write_run(tmp_path / "two", CENTRAL)
    resume_run(one, STEPS, saved=False)
    report = f"{one / 'privacy.json'} counts less than {one / 'private' / 'journal.jsonl'}, which decides"
    code, printed, _ = recompute(one / file, two)
    assert code == 1
    assert report in printed
    assert together(STEPS, STEPS, CENTRAL) in printed
    code, printed, _ = recompute(one / file)
    assert code == 1
    assert report in printed
    runs = read_prior_runs([str(one / file)])
    assert "counts less than" in caplog.text
    assert runs[0].mechanisms[0].steps == 20


def test_runs_of_older_versions_are_counted_as_runs_of_their_own(tmp_path, recompute):
    old = [anonymous(write_run(tmp_path / name, STEPS)) for name in ("one", "two")]
    code, printed, _ = recompute(*old)
    assert not code
    assert together(STEPS, STEPS) in printed
    assert printed.count("does not say of which run it is, as an older version wrote it") == 2


def test_the_directory_of_an_older_version_is_read_with_its_journal(tmp_path, recompute, monkeypatch):
    directory = tmp_path / "old"
    monkeypatch.setattr("diffusers_dp_curriculum.privacy.journal.FORMAT", 1)
    write_run(directory, STEPS)
    monkeypatch.undo()
    code, printed, _ = recompute(directory)
    assert not code
    assert "The statement holds." in printed
    assert [run.id for run in find_statements(str(directory))[0].statement.runs] == [None]
    with pytest.raises(InputError, match="not a journal of this version"):
        Journal(directory / "private" / "journal.jsonl")


@pytest.mark.parametrize("saved", [True, False])
def test_a_run_that_is_not_private_is_refused(tmp_path, recompute, saved):
    one, two = write_run(tmp_path / "one", STEPS), write_run(tmp_path / "two", STEPS, saved=False)
    journal = Journal(two / "private" / "journal.jsonl")
    journal.append("not_private", "a test")
    journal.close()
    if saved:
        resume_run(two)
    for runs in ([one, two], [two, one]):
        _, printed, message = recompute(*runs)
        assert message.startswith(f"error: {two}")
        assert "is not private, and no epsilon covers what it has released" in message
        assert "Together" not in printed
    assert recompute(two)[0] not in (0, None)
    with pytest.raises(InputError, match="two.* is not private"):
        read_prior_runs([str(two)])


def test_a_statement_that_understates_is_refused(tmp_path, recompute):
    one = write_run(tmp_path / "one", STEPS)
    path = write_privacy_json(tmp_path / "privacy.json", epsilon=0.01)
    _, printed, message = recompute(one, path)
    assert message.startswith(f"error: {path} states epsilon 0.01, but its mechanisms amount to")
    assert "Together" not in printed
    with pytest.raises(InputError, match="states epsilon 0.01"):
        read_prior_runs([str(path)])


def test_different_deltas_and_accountants_are_said_and_can_be_chosen(tmp_path, recompute):
    one = write_run(tmp_path / "one", STEPS)
    two = write_run(tmp_path / "two", CENTRAL, delta=1e-6, accountant="prv")
    code, printed, _ = recompute(one, two)
    assert not code
    assert together(STEPS, CENTRAL, delta=1e-6, accountant="prv") in printed
    assert "several deltas: all of it is added up at the smallest, 1e-06." in printed
    assert "several accountants: all of it is added up by prv." in printed
    _, printed, _ = recompute(one, two, "--delta", "1e-7", "--accountant", "rdp")
    assert together(STEPS, CENTRAL, delta=1e-7) in printed
    assert "several" not in printed
    _, printed, _ = recompute(one, "--delta", "1e-7")
    assert together(STEPS, delta=1e-7) in printed


def test_the_composed_statement_is_one_that_everything_reads(tmp_path, recompute):
    one, two = write_run(tmp_path / "one", CENTRAL, STEPS), write_run(tmp_path / "two", STEPS)
    path = tmp_path / "all.json"
    assert not recompute(one, two, "--output", path)[0]
    statement = check_statement(path)
    assert statement.epsilon == recompute_epsilon(statement)
    assert (statement.adjacency, statement.dataset_size) == ("zero_out_one_record", 60)
    assert str(tmp_path) not in path.read_text()
    accountant = pld.PLDAccountant()
    for mechanism in all_mechanisms(statement.runs):
        gaussian = dp_event.GaussianDpEvent(mechanism.noise_multiplier)
        accountant.compose(dp_event.PoissonSampledDpEvent(mechanism.sample_rate, gaussian), mechanism.steps)
    assert statement.epsilon >= accountant.get_epsilon(1e-5)
    code, printed, _ = recompute(path)
    assert not code
    assert "The statement holds." in printed
    three = write_run(tmp_path / "three", CENTRAL)
    assert together(CENTRAL, STEPS, STEPS, CENTRAL) in recompute(path, one, three)[1]
    assert len(read_prior_runs([str(path)])) == 2
    _, _, message = recompute(one, two, "--output", path)  # nothing is overwritten
    assert message.startswith(f"error: {path} exists already")
    assert check_statement(path) == statement


@pytest.mark.parametrize("repo_type", ["model", "dataset"])
def test_runs_are_found_on_the_hub(hub, tmp_path, recompute, repo_type):
    one, two = write_run(tmp_path / "one", STEPS), write_run(tmp_path / "two", CENTRAL)
    HfApi().create_repo("published", repo_type=repo_type, private=True)
    hub.edit("alice/published", "privacy.json", (one / "privacy.json").read_bytes(), repo_type)
    code, printed, _ = recompute("alice/published")
    assert not code
    assert "The statement holds." in printed
    assert together(STEPS, CENTRAL) in recompute("alice/published", two)[1]
    resume_run(one, STEPS)  # published again, so that the earlier download is outdated
    hub.edit("alice/published", "privacy.json", (one / "privacy.json").read_bytes(), repo_type)
    assert together(STEPS, STEPS, CENTRAL) in recompute("alice/published", two)[1]


def test_a_model_and_a_data_set_of_one_name_are_both_counted(hub, tmp_path, recompute):
    for repo_type, mechanism in (("model", STEPS), ("dataset", CENTRAL)):
        HfApi().create_repo("name", repo_type=repo_type)
        run = write_run(tmp_path / repo_type, mechanism)
        hub.edit("alice/name", "privacy.json", (run / "privacy.json").read_bytes(), repo_type)
    code, printed, _ = recompute("alice/name")
    assert not code
    assert together(STEPS, CENTRAL) in printed
    assert "alice/name (model): epsilon" in printed
    assert "alice/name (data set): epsilon" in printed


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("alice/nothing", "is no path, and there is no repository with a privacy.json of this name on the Hub: check"),
        ("no such file.json", "no such file.json is no path, and there is no repository"),
        ("empty", "holds neither a privacy.json nor the journal of a run: give the directory of a run"),
        ("begun", "holds neither a privacy.json nor the journal"),
        ("damaged", "Line 1 of .* is damaged"),
        ("notes.json", "cannot be read .it holds a list.: give a privacy.json"),
    ],
)
def test_what_is_no_run_is_refused_in_one_sentence(hub, tmp_path, monkeypatch, recompute, run, message):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "begun/private", "damaged/private"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "begun/private/journal.jsonl").touch()
    (tmp_path / "damaged/private/journal.jsonl").write_text("{}\n")
    (tmp_path / "notes.json").write_text("[]")
    with pytest.raises(DPCurriculumError, match=message) as refused:
        find_statements(run)
    assert "\n" not in str(refused.value)
    assert recompute(write_run(tmp_path / "one", STEPS), run)[2].startswith("error: ")


def test_a_hub_out_of_reach_is_no_reason_to_take_an_earlier_download(hub, tmp_path, monkeypatch):
    HfApi().create_repo("name")
    hub.edit("alice/name", "privacy.json", (write_run(tmp_path / "one", STEPS) / "privacy.json").read_bytes())
    assert len(find_statements("alice/name")) == 1
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(time, "sleep", lambda _: None)  # the client waits between its attempts
    with pytest.raises(HubError, match="alice/name is no path, and the Hub is out of reach: check the path"):
        find_statements("alice/name")


def test_remarks_of_the_runs_stay(tmp_path):
    one = write_run(tmp_path / "one", STEPS)
    path = one / "privacy.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "remarks": ["Curves were written."]}))
    two = write_run(tmp_path / "two", STEPS)
    statements = [found for run in (one, two) for found in find_statements(str(run))]
    assert compose(statements).statement.remarks == ("Curves were written.",)
