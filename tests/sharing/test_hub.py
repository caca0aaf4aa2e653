"""Pushes by the real clients to a Hub on this machine, with and without faults."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import HfApi, ModelCard

from diffusers_dp_curriculum import (
    DPCurriculumConfig,
    DPCurriculumError,
    DPCurriculumTrainer,
    HubError,
    ImageDataset,
    InputError,
    Mechanism,
    PrivacyLedger,
    cli,
)
from diffusers_dp_curriculum.privacy.composition import read_prior_runs
from diffusers_dp_curriculum.privacy.statement import PrivacyStatement
from diffusers_dp_curriculum.sharing.cards import budget
from diffusers_dp_curriculum.sharing.dataset_card import make_dataset_card
from diffusers_dp_curriculum.sharing.hub import MODEL_FILES, prepare_repo, push_dataset, push_model
from diffusers_dp_curriculum.training.stages import WarmUpStage, warm_up_stages
from helpers import PUBLISHED, smallest_unet, tiny_records, tiny_scheduler, tiny_unet, write_privacy_json


NAMES = ["sneaker", "ankle boot", "bag"]


def train(output_dir, records=None, **options):
    settings = {
        "accountant": "rdp",
        "central_train_steps": 1,
        "central_noise_multiplier": 10.0,
        "train_batch_size": 10,
        "max_train_steps": 1,
        "noise_multiplicity": 1,
        "num_inference_steps": 2,
    }
    records = records or ImageDataset(tiny_records().images, tiny_records().labels, NAMES)
    trainer = DPCurriculumTrainer(
        unet=smallest_unet(num_classes=records.num_classes),
        noise_scheduler=tiny_scheduler(),
        args=DPCurriculumConfig(output_dir=str(output_dir), **{**settings, **options}),
        train_dataset=records,
    )
    trainer.train()
    trainer.save_pipeline()
    return trainer


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run") / "model"
    train(directory, hub_license="mit", hub_dataset_name="Images of the city archive")
    return directory


@pytest.fixture
def model(finished, tmp_path):
    """A copy of the finished run, which the test may change."""
    return Path(shutil.copytree(finished, tmp_path / "model"))


@pytest.fixture(params=["model", "dataset"])
def pushable(request, model):
    """A function that pushes a model or a small data set to a repository, and the type of the repository."""
    if request.param == "model":
        return partial(push_model, model), "model"
    directory = model.parent / "data"
    (directory / "data").mkdir(parents=True)
    (directory / "data" / "train-00000-of-00001.parquet").write_bytes(b"synthetic")
    privacy = PrivacyStatement.read(write_privacy_json(directory / "privacy.json"))
    make_dataset_card(privacy, 1, None).save(directory / "README.md")
    return partial(push_dataset, directory), "dataset"


def edit(path, text):
    path.write_text(path.read_text() + text)


# What is pushed


def test_one_commit_of_the_published_files_and_no_others(hub, model):
    (model / "notes.txt").write_text("patient 17")
    (model / "unet" / "optimizer.bin").write_bytes(b"moments")
    (model / "private" / "README.md").write_text("private")
    (model / "evaluation").mkdir()
    for name in ("patient.png", "my-samples.png", "unet/patient.png", "evaluation/nearest.png", "samples.png.png"):
        (model / name).write_bytes((model / "samples.png").read_bytes())
    (model / "pipeline.py.bak").write_text("ours")
    (model / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"weights")
    (model / "scheduler" / "records.json").write_text("{}")
    for name in ("report.json", "report.html", "evaluation/report.json", "evaluation/report.html"):
        (model / name).write_text("not private")
    commit = push_model(model, "model")
    assert sorted(hub.files("alice/model")) == [".gitattributes", *PUBLISHED]
    assert [made.title for made in hub.commits("alice/model")] == [commit.commit_message]
    privacy = json.loads((model / "privacy.json").read_text())
    assert re.fullmatch(r"Diffusion model, \([\d.]+, 1e-05\)-differentially private", commit.commit_message)
    assert hub.files("alice/model")["privacy.json"] == (model / "privacy.json").read_bytes()
    assert privacy["private"]
    for name, content in hub.files("alice/model").items():
        assert str(model).encode() not in content, name
        assert b"hf_writes" not in content, name


def test_an_upload_of_the_whole_directory_by_other_means_leaves_the_private_part_at_home(hub, model):
    """`hf upload USER/NAME my-model` uploads a directory in this way."""
    api = HfApi()
    api.create_repo("alice/model")
    api.upload_folder(repo_id="alice/model", folder_path=model)
    uploaded = hub.files("alice/model")
    assert set(uploaded) >= set(PUBLISHED)
    assert [name for name in uploaded if name.startswith("private")] == []
    assert (model / "private" / "journal.jsonl").exists()


def test_large_files_go_in_parts_and_a_part_that_breaks_off_is_sent_again(hub, model):
    hub.chunk_size = 10_000
    hub.cut("PUT /lfs-storage/.*/2", after_bytes=1000)
    push_model(model, "model")
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert hub.files("alice/model")[weights] == (model / weights).read_bytes()
    assert sum("/lfs-storage/" in line for line in hub.requests) > 5
    assert not any(fault.times for fault in hub.faults)


def test_a_pull_request_leaves_the_repository_as_it_is(hub, model):
    push_model(model, "model")
    before = (model / "README.md").read_bytes()
    edit(model / "README.md", "\nOur own words.\n")
    commit = push_model(model, "model", create_pr=True)
    assert commit.pr_url == f"{hub.url}/alice/model/discussions/1"
    assert hub.files("alice/model")["README.md"] == before
    assert b"Our own words." in hub.repos["model", "alice/model"].pull_requests[0].files["README.md"]
    push_model(model, "model")  # the open pull request does not keep a push from succeeding
    assert b"Our own words." in hub.files("alice/model")["README.md"]


def test_the_same_push_again_changes_nothing(hub, model):
    push_model(model, "alice/model")
    push_model(model, "alice/model")
    assert len(hub.commits("alice/model")) == 1


def test_what_is_no_longer_part_of_the_model_goes_and_what_others_put_there_stays(hub, model):
    push_model(model, "model")
    hub.edit("alice/model", "LICENSE.txt", b"theirs")
    (model / "central_images.png").unlink()
    push_model(model, "model")
    assert sorted(hub.files("alice/model")) == sorted(
        {".gitattributes", "LICENSE.txt", *PUBLISHED} - {"central_images.png"}
    )
    assert len(hub.commits("alice/model")) == 3


@pytest.mark.parametrize("name", ["samples.png", "unet", "unet/diffusion_pytorch_model.safetensors", "pipeline.py"])
def test_links_are_refused(hub, model, tmp_path, name):
    shutil.move(model / name, tmp_path / "elsewhere")
    (model / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="is a link or no file"):
        push_model(model, "model")
    assert not hub.requests


def test_what_somebody_else_put_on_the_hub_is_not_replaced(hub, pushable):
    """`datasets` gives real images the file names of synthetic ones, and weights have the same names everywhere."""
    push, repo_type = pushable
    name = "unet/diffusion_pytorch_model.safetensors" if repo_type == "model" else "data/train-00000-of-00001.parquet"
    HfApi().create_repo("fashion", repo_type=repo_type)
    for file in ("README.md", "LICENSE"):  # the Hub can create repositories with these files
        hub.edit("alice/fashion", file, b"# Fashion", repo_type)
    assert prepare_repo("fashion", repo_type, None, None) == "alice/fashion"
    hub.edit("alice/fashion", name, b"real", repo_type)
    before = hub.files("alice/fashion", repo_type)
    with pytest.raises(InputError, match=f"alice/fashion holds {name} and no privacy.json.*choose another"):
        prepare_repo("fashion", repo_type, None, None)
    with pytest.raises(InputError, match="alice/fashion holds .* and no privacy.json"):
        push("fashion")
    assert hub.files("alice/fashion", repo_type) == before


def write_privacy(model, **changes):
    path = model / "privacy.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda model: (model / "samples.png").unlink(), "has no samples.png and is not finished"),
        (lambda model: (model / "privacy.json").unlink(), "has no privacy.json"),
        (lambda model: shutil.rmtree(model / "unet"), "has no unet/config.json"),
        (lambda model: shutil.rmtree(model), "is not a directory"),
        (lambda model: (model / "privacy.json").write_text("{"), "cannot be read"),
        (lambda model: (model / "privacy.json").write_text("[]"), "cannot be read .it holds a list"),
        (lambda model: write_privacy(model, private=False, remarks=["NOT PRIVATE: a test."]), "not private.*a test"),
        (lambda model: write_privacy(model, private="yes"), "not private"),
        (lambda model: write_privacy(model, epsilon=0.5), r"states epsilon 0\.5, but its mechanisms amount to"),
        (lambda model: write_privacy(model, epsilon=None), "states epsilon nan"),
        (
            lambda model: write_privacy(
                model, mechanisms=json.loads((model / "privacy.json").read_text())["mechanisms"][:1]
            ),
            "releases that privacy.json does not count",
        ),
        (lambda model: (model / "README.md").write_text("# Mine"), "does not state the budget"),
        (
            lambda model: edit(model / "README.md", "This model is (0.5, 1e-05)-differentially private."),
            r'also says "This model is \(0\.5, 1e-05\)',
        ),
        (lambda model: (model / "private" / "journal.jsonl").write_text("{}\n"), "Line 1 of .* is damaged"),
    ],
)
def test_what_may_not_be_published_is_refused_before_the_hub_is_asked(hub, model, spoil, message):
    spoil(model)
    with pytest.raises(DPCurriculumError, match=message) as refusal:
        push_model(model, "model")
    assert "\n" not in str(refusal.value)
    assert not hub.requests


# Statements of one run


def release_more(directory, steps=1):
    """Resume the journal of the run, record `steps` more, and write its privacy.json and card again."""
    ledger = PrivacyLedger.resume(directory / "private" / "journal.jsonl", 0)
    ledger.record(Mechanism("dp_sgd", 3.0, 0.1, steps, 1.0))
    privacy = ledger.statement(60)
    ledger.close()
    (directory / "privacy.json").write_text(privacy.to_json())
    readme = directory / "README.md"
    readme.write_text(re.sub(r"\([^()]*\)-differentially", f"{budget(privacy)}-differentially", readme.read_text()))


@pytest.fixture(params=["model", "dataset"])
def push_state(request, hub, tmp_path):
    """A function that pushes the present statement of a run's directory, with a model or a data set."""
    if request.param == "model":
        return lambda directory: push_model(directory, "shoes")

    def push(directory):
        data = tmp_path / f"data of {directory.name}"
        (data / "data").mkdir(parents=True, exist_ok=True)
        (data / "data" / "train-00000-of-00001.parquet").write_bytes(b"synthetic")
        shutil.copy(directory / "privacy.json", data)
        make_dataset_card(PrivacyStatement.read(data / "privacy.json"), 1, None).save(data / "README.md")
        push_dataset(data, "shoes")

    return push


def published(hub):
    ((repo_type, repo_id),) = hub.repos
    return json.loads(hub.files(repo_id, repo_type)["privacy.json"])


def test_a_copy_of_a_run_that_was_resumed_separately_does_not_replace_it(hub, model, tmp_path, push_state):
    copy = shutil.copytree(model, tmp_path / "copy")
    push_state(model)
    release_more(copy)
    push_state(copy)  # as from another machine; the copy counts all that the original counted
    release_more(model, steps=5)
    with pytest.raises(InputError, match="alice/shoes holds a statement about a copy of the same run .* push to"):
        push_state(model)
    assert published(hub) == json.loads((copy / "privacy.json").read_text())


def test_an_older_state_of_a_run_does_not_replace_a_newer_one(hub, model, tmp_path, push_state):
    copy = shutil.copytree(model, tmp_path / "copy")
    release_more(model)
    push_state(model)
    with pytest.raises(InputError, match="alice/shoes holds a newer statement of the same run, .*: push the newer"):
        push_state(copy)
    release_more(model)
    push_state(model)
    push_state(model)
    assert published(hub) == json.loads((model / "privacy.json").read_text())


def test_another_run_replaces_a_run_and_what_it_counts(hub, model, tmp_path, push_state):
    copy = shutil.copytree(model, tmp_path / "copy")
    other = shutil.copytree(model, tmp_path / "other")
    release_more(copy)
    for place, prior_runs in ((model, []), (other, read_prior_runs([str(copy)]))):
        shutil.rmtree(place / "private")
        (place / "private").mkdir()
        ledger = PrivacyLedger(1e-5, "rdp", place / "private" / "journal.jsonl", prior_runs=prior_runs)
        ledger.close()
        release_more(place)
    push_state(model)
    push_state(copy)
    push_state(other)  # the statement of `other` counts the copy
    assert len(published(hub)["runs"]) == 2


def test_what_is_no_statement_on_the_hub_is_not_replaced_unread(hub, model):
    push_model(model, "model")
    hub.edit("alice/model", "privacy.json", b"{}")
    with pytest.raises(InputError, match="privacy.json of alice/model on the Hub is not one of this library's"):
        push_model(model, "model")
    assert hub.files("alice/model")["privacy.json"] == b"{}"


def test_a_statement_of_an_older_version_on_the_hub_is_replaced_as_ever(hub, model):
    push_model(model, "model")
    old = json.loads((model / "privacy.json").read_text())
    for entry in old["mechanisms"]:
        del entry["run"]
    del old["runs"]
    hub.edit("alice/model", "privacy.json", json.dumps({**old, "adjacency": "add_or_remove_one_record"}).encode())
    push_model(model, "model")
    assert hub.files("alice/model")["privacy.json"] == (model / "privacy.json").read_bytes()


# The trainer and the flags


def test_trainer_pushes_what_it_saves(hub, tmp_path):
    options = {"push_to_hub": True, "hub_model_id": "shoes", "hub_private_repo": True, "hub_token": "hf_bobs"}
    trainer = train(tmp_path / "model", **options)
    assert sorted(hub.files("bob/shoes")) == [".gitattributes", *PUBLISHED]
    assert hub.repos["model", "bob/shoes"].private
    trainer.push_to_hub("bags", commit_message="Second home", token="hf_writes")
    assert [commit.title for commit in hub.commits("alice/bags")] == ["Second home"]
    for written in [*(tmp_path / "model").rglob("*"), None]:
        if written is None or written.is_file():
            content = repr((trainer.args, asdict(trainer.args))).encode() if written is None else written.read_bytes()
            assert b"hf_bobs" not in content
    assert "hub_" not in (tmp_path / "model" / "README.md").read_text()


def test_without_the_flag_the_push_is_left_to_the_user(hub, tmp_path):
    trainer = train(tmp_path / "boots")
    assert not hub.requests
    trainer.push_to_hub()
    assert "README.md" in hub.files("alice/boots")


def test_a_configuration_that_would_publish_what_is_not_private_is_refused():
    with pytest.raises(InputError, match="`push_to_hub` is for private runs"):
        DPCurriculumConfig(push_to_hub=True, insecure_noise_seed=1)


def test_a_push_that_failed_is_repeated_while_the_trainer_is_still_there(hub, tmp_path):
    """The trainer keeps its journal locked meanwhile, for instance in a notebook."""
    trainer = train(tmp_path / "model")
    hub.fail("POST .*/commit/main", 500)
    with pytest.raises(HubError, match="dp-curriculum push .* pushes again"):
        trainer.push_to_hub()
    push_model(tmp_path / "model", "model")
    assert sorted(hub.files("alice/model")) == [".gitattributes", *PUBLISHED]

    trainer.ledger.record(replace(trainer.plan.dp_sgd, steps=1))
    with pytest.raises(InputError, match="releases that privacy.json does not count"):
        push_model(tmp_path / "model", "model")
    trainer.save_pipeline()
    push_model(tmp_path / "model", "model")
    assert hub.files("alice/model")["privacy.json"] == (tmp_path / "model" / "privacy.json").read_bytes()
    assert len(hub.commits("alice/model")) == 2


def test_a_trainer_knows_what_it_has_released_without_its_journal(hub, tmp_path):
    trainer = train(tmp_path / "model")
    trainer.ledger.record(replace(trainer.plan.dp_sgd, steps=1))
    (tmp_path / "model" / "private" / "journal.jsonl").unlink()
    with pytest.raises(InputError, match="releases that privacy.json does not count"):
        trainer.push_to_hub()
    assert not hub.requests


def test_what_a_run_saves_during_a_push_is_not_part_of_it(hub, model):
    """Files are read before the first request; the journal that was checked does not count later releases."""
    names = ["privacy.json", "samples.png", "unet/diffusion_pytorch_model.safetensors"]
    before = {name: (model / name).read_bytes() for name in names}

    class Requests(list):
        def append(self, line):
            for name in names:
                (model / name).write_bytes(b"of later releases")
            super().append(line)

    hub.requests = Requests()
    push_model(model, "model")
    assert (model / "samples.png").read_bytes() == b"of later releases"
    assert {name: hub.files("alice/model")[name] for name in names} == before


def test_an_unfinished_run_is_not_pushed(hub, tmp_path):
    records = tiny_records()
    trainer = DPCurriculumTrainer(
        tiny_unet(),
        tiny_scheduler(),
        DPCurriculumConfig(
            output_dir=str(tmp_path / "model"), accountant="rdp", train_batch_size=10, max_train_steps=1
        ),
        records,
    )
    with pytest.raises(InputError, match="no trained model to push yet"):
        trainer.push_to_hub()
    assert not hub.requests


def test_a_run_with_seeded_noise_is_not_pushed(hub, tmp_path):
    trainer = train(tmp_path / "model", insecure_noise_seed=1)
    with pytest.raises(InputError, match="not private and may not be published"):
        trainer.push_to_hub()
    assert not hub.requests


# Faults


@pytest.mark.parametrize(
    ("line", "status", "advice"),
    [
        ("POST /api/repos/create", 401, "log in with `hf auth login`"),
        ("GET /api/models/alice/model", 401, "log in"),
        ("POST .*/preupload", 403, "use a token that may write there"),
        ("POST .*/lfs/objects/batch", 403, "make room in the account"),
        ("PUT /lfs-storage", 403, "use a token"),
        ("POST .*/commit/main", 409, "wait until the other change"),
        ("POST .*/commit/main", 412, "look at what somebody else"),
        ("POST .*/commit/main", 413, "make room"),
        ("POST .*/commit/main", 500, "wait for the Hub to recover"),
    ],
)
def test_a_push_that_fails_says_what_to_do_and_can_be_repeated(hub, model, line, status, advice):
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    hub.fail(line, status, "Storage quota exceeded")
    with pytest.raises(HubError, match=advice) as failure:
        push_model(model, "alice/model")
    assert re.search(
        r"Storage quota exceeded.*nothing is lost, and `dp-curriculum push .*` pushes again", str(failure.value)
    )
    assert "\n" not in str(failure.value)
    assert {path: path.read_bytes() for path in model.rglob("*") if path.is_file()} == before
    assert not hub.repos or not hub.commits("alice/model")

    push_model(model, "alice/model")
    assert sorted(hub.files("alice/model")) == [".gitattributes", *PUBLISHED]
    assert len(hub.commits("alice/model")) == 1


def test_a_server_error_and_a_cut_connection_in_the_middle_of_an_upload_are_survived(hub, model):
    hub.fail("POST .*/lfs/objects/batch", 500)
    hub.cut("PUT /lfs-storage", after_bytes=1000)
    push_model(model, "model")
    assert sorted(hub.files("alice/model")) == [".gitattributes", *PUBLISHED]
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert hub.files("alice/model")[weights] == (model / weights).read_bytes()
    assert not any(fault.times for fault in hub.faults)


def test_a_connection_cut_in_the_middle_of_the_commit_leaves_the_repository_as_it_was(hub, model):
    hub.cut("POST .*/commit/main", after_bytes=1000)
    with pytest.raises(HubError, match="check the connection"):
        push_model(model, "model")
    assert not hub.commits("alice/model")
    push_model(model, "model")
    assert len(hub.commits("alice/model")) == 1


def test_no_hub_at_all(hub, model, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HubError, match="check the connection; nothing is lost"):
        push_model(model, "model")


@pytest.mark.parametrize("token", ["hf_invalid", "hf_reads"])
def test_a_token_that_will_not_do_is_found_before_training_and_shown_to_nobody(hub, token):
    with pytest.raises(HubError) as failure:
        prepare_repo("model", "model", None, token)
    assert token not in str(failure.value)
    assert failure.value.__suppress_context__


@pytest.mark.parametrize(
    ("repo_id", "message"), [("a b/c", "give a repository as USER/NAME"), ("bob/model", "use a token that may write")]
)
def test_repositories_that_cannot_be(hub, model, repo_id, message):
    with pytest.raises(HubError, match=message):
        push_model(model, repo_id)


def test_a_public_repository_does_not_take_what_was_meant_to_be_private(hub, model):
    push_model(model, "model")
    with pytest.raises(InputError, match="exists and is public"):
        push_model(model, "model", private=True)


def test_a_license_that_the_hub_does_not_know(hub, model):
    readme = model / "README.md"
    readme.write_text(readme.read_text().replace("license: mit", "license: mine"))
    with pytest.raises(HubError, match='"license" must be one of .*correct the lines at the top of README.md'):
        push_model(model, "model")
    assert not hub.commits("alice/model")


# The card


def test_card_header_and_snippet(hub, model):
    push_model(model, "model")
    card = ModelCard(hub.files("alice/model")["README.md"].decode())
    assert (card.data.license, card.data.library_name) == ("mit", "diffusers")
    assert {"differential-privacy", "dp-sgd", "opacus"} <= set(card.data.tags)
    assert card.data.datasets is None  # the name is not a Hub id
    assert "Trained on Images of the city archive." in card.text
    assert 'DiffusionPipeline.from_pretrained("alice/model", trust_remote_code=True)' in card.text


def test_the_data_set_is_named_only_if_the_user_says_so(tmp_path):
    train(tmp_path / "named", hub_dataset_name="ylecun/mnist")
    assert ModelCard.load(tmp_path / "named" / "README.md").data.datasets == ["ylecun/mnist"]
    train(tmp_path / "unnamed")
    card = ModelCard.load(tmp_path / "unnamed" / "README.md")
    assert card.data.datasets is None
    assert card.data.license is None
    assert "Trained on" not in card.text


def test_names_are_no_markup(hub, tmp_path):
    """If a class name could end a section, the card would lose text that people wrote, or the budget."""
    names = ["<!-- end: use -->", "a|b", "*bold* x"]
    records = ImageDataset(tiny_records().images, tiny_records().labels, names)
    train(tmp_path / "model", records, push_to_hub=True)
    card = hub.files("alice/model")["README.md"].decode()
    assert "Classes: 0 = &lt;!-- end: use --&gt;, 1 = a\\|b, 2 = \\*bold\\* x." in card
    assert card.count("<!-- end: use -->") == 1


def test_text_written_into_the_card_stays_wherever_it_was_written(hub, model):
    readme = model / "README.md"
    push_model(model, "model")

    edit(readme, "\nOur own words.\n")  # in the directory of the run
    push_model(model, "model")
    assert "Our own words." in hub.files("alice/model")["README.md"].decode()

    on_hub = hub.files("alice/model")["README.md"].decode().replace("license: mit", "license: mit\nlanguage: en")
    hub.edit("alice/model", "README.md", f"{on_hub}\nWords of the website.\n".encode())  # on the Hub
    push_model(model, "model")
    for text in (readme.read_text(), hub.files("alice/model")["README.md"].decode()):
        assert "Our own words." in text
        assert "Words of the website." in text
        assert "language: en" in text

    readme.write_text(readme.read_text().replace("Our own words.", ""))  # removed again
    push_model(model, "model")
    assert "Our own words." not in hub.files("alice/model")["README.md"].decode()


def test_the_address_is_put_into_generated_sections_alone(hub, model):
    readme = model / "README.md"
    ours = """
Compare it with `DiffusionPipeline.from_pretrained("google/ddpm-cifar10-32")`, on `load_dataset("ylecun/mnist")`.
"""
    first, end_of_title, rest = readme.read_text().partition("<!-- end: title -->")
    readme.write_text(f"{first}{end_of_title}\n{ours}{rest}{ours}")
    push_model(model, "first")
    push_model(model, "second")
    for text in (readme.read_text(), hub.files("alice/second")["README.md"].decode()):
        assert text.count(ours) == 2
        assert 'DiffusionPipeline.from_pretrained("alice/second", trust_remote_code=True)' in text
        assert 'ClassConditionalPipeline.from_pretrained("alice/second")' in text


def test_text_written_in_both_places_is_for_a_person_to_merge(hub, model):
    readme = model / "README.md"
    push_model(model, "model")
    hub.edit("alice/model", "README.md", readme.read_bytes() + b"\nTheirs.\n")
    edit(readme, "\nOurs.\n")
    with pytest.raises(InputError, match="edited both in .* and on the Hub") as conflict:
        push_model(model, "model")
    seen = model / "private" / "README.hub.md"
    assert str(seen) in str(conflict.value)
    assert "Theirs." in seen.read_text()

    edit(readme, "\nTheirs, and ours.\n")
    push_model(model, "model")
    assert "Theirs, and ours." in hub.files("alice/model")["README.md"].decode()


def test_a_new_run_brings_new_figures_into_a_card_that_was_edited(hub, model, tmp_path):
    push_model(model, "model")
    old = hub.files("alice/model")["README.md"].decode()
    edited = old.replace("# Diffusion model under", "# Our model under").replace(
        "## Training", "## How\n\nNeatly.\n\n## T"
    )
    edited = edited.replace("<!-- end: statement -->", "<!-- end: statement -->\n\nAsk Jo about it.")
    hub.edit("alice/model", "README.md", edited.encode())

    train(tmp_path / "again", target_epsilon=3.0)
    push_model(tmp_path / "again", "model")
    new = hub.files("alice/model")["README.md"].decode()
    epsilon = json.loads((tmp_path / "again" / "privacy.json").read_text())["epsilon"]
    assert epsilon <= 3
    assert "Ask Jo about it." in new
    assert re.findall(r"\(([\d.]+), 1e-05\)-differentially", new) == [re.search(r"\(([\d.]+), 1e-05\)", new)[1]]
    assert float(re.search(r"\(([\d.]+), 1e-05\)-differentially", new)[1]) == pytest.approx(epsilon, rel=1e-3)
    assert "Neatly." not in new  # within a generated section
    assert "license: mit" in new


def with_an_old_budget(card):
    return re.sub(r"\([^()]*\)-differentially", "(0.5, 1e-05)-differentially", card)


def budgets(card):
    return re.findall(r"(\([^()]*\))-differentially", card)


def test_an_old_budget_goes_also_where_its_section_has_lost_its_end(hub, pushable):
    push, repo_type = pushable
    push("shoes")
    new = hub.files("alice/shoes", repo_type)["README.md"].decode()
    old = with_an_old_budget(new).replace("<!-- end: statement -->", "\nAsk Jo about it.\n")
    hub.edit("alice/shoes", "README.md", old.encode(), repo_type)
    push("shoes")
    pushed = hub.files("alice/shoes", repo_type)["README.md"].decode()
    assert budgets(pushed) == budgets(new) != budgets(old)
    assert "Ask Jo about it." in pushed
    assert pushed.count("<!-- generated: statement -->") == pushed.count("<!-- end: statement -->") == 1


@pytest.mark.parametrize("kept", ["", "<!-- end: statement -->"])
def test_a_card_with_another_budget_in_the_words_of_ours_is_not_pushed(hub, pushable, kept):
    """The owner of the card had removed the comments around the statement of an earlier run."""
    push, repo_type = pushable
    push("shoes")
    old = with_an_old_budget(hub.files("alice/shoes", repo_type)["README.md"].decode())
    old = old.replace("<!-- generated: statement -->", "").replace("<!-- end: statement -->", kept)
    hub.edit("alice/shoes", "README.md", old.encode(), repo_type)
    with pytest.raises(InputError, match=r"README.md of alice/shoes .*also says .*\(0\.5, 1e-05\)-diff"):
        push("shoes")
    assert hub.files("alice/shoes", repo_type)["README.md"].decode() == old


def test_a_statement_that_was_made_ones_own_is_merged_and_missed(hub, model):
    readme = model / "README.md"
    readme.write_text(re.sub("<!-- (generated|end): statement -->", "", readme.read_text()))
    push_model(model, "model")
    hub.edit("alice/model", "README.md", readme.read_bytes() + b"\nTheirs.\n")
    push_model(model, "model")
    merged = hub.files("alice/model")["README.md"].decode()
    assert "Theirs." in merged
    assert len(budgets(merged)) == 1

    without = re.sub(r"\n.*-differentially private.*\n", "\n", merged)
    hub.edit("alice/model", "README.md", without.encode())
    with pytest.raises(InputError, match="README.md of alice/model .*does not state the budget"):
        push_model(model, "model")


def test_saving_again_keeps_what_was_written(tmp_path):
    trainer = train(tmp_path / "model")
    readme = tmp_path / "model" / "README.md"
    text = readme.read_text().replace("<!-- generated: limits -->", "").replace("<!-- end: limits -->", "")
    text = text.replace("for teaching", "for teaching in our school").replace("## Privacy", "## Secrecy")
    readme.write_text(re.sub("<!-- generated: statement.*end: statement -->", "", text, flags=re.DOTALL))
    trainer.save_pipeline()
    saved = readme.read_text()
    assert saved.count("for teaching in our school") == 1
    assert "## Privacy" in saved
    assert "-differentially private with respect to" in saved  # the only section that is added again
    assert saved.count("# Diffusion model under") == 1


# Loading from the Hub


def run_python(code, hub, tmp_path):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=hub.environment(tmp_path / "hf")
    )


def test_a_stranger_runs_the_snippets_of_the_cards(hub, model, tmp_path):
    """The snippets are executed in a process that cannot import this package."""
    push_model(model, "model")
    train(tmp_path / "unconditional", tiny_records(num_classes=None), push_to_hub=True)
    assert "pipeline.py" not in hub.files("alice/unconditional")  # such models need no remote code
    code = """
import re, sys
sys.modules["diffusers_dp_curriculum"] = None
from huggingface_hub import ModelCard

def snippet(model):
    return re.search("```python\\n(.*?)```", ModelCard.load(model).text, re.DOTALL)[1]

exec(snippet("alice/unconditional"))
assert type(pipe).__module__ == "diffusers.pipelines.ddpm.pipeline_ddpm"
assert len(images) == 2

exec(snippet("alice/model"))
assert [image.size for image in images] == [(8, 8)] * 2, images
assert pipe.class_names == ["sneaker", "ankle boot", "bag"]
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
def sample(labels):
    return pipe(labels, num_inference_steps=3, output_type="pt", generator=torch.Generator().manual_seed(0)).images
assert torch.equal(sample(["bag", "sneaker"]), sample([2, 0]))
ancestral = sample([1])
for scheduler in (DDIMScheduler, DPMSolverMultistepScheduler):
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    assert not torch.equal(sample([1]), ancestral)
try:
    DiffusionPipeline.from_pretrained("alice/model")
except ValueError as error:
    assert "trust_remote_code" in str(error)
else:
    raise AssertionError("remote code ran without consent")
"""
    done = run_python(code, hub, tmp_path)
    assert done.returncode == 0, done.stderr


def test_with_the_package_no_code_of_the_repository_runs(hub, model, tmp_path):
    push_model(model, "model")
    hub.edit("alice/model", "pipeline.py", b"raise RuntimeError('remote code ran')")
    code = """
from diffusers_dp_curriculum import ClassConditionalPipeline
pipe = ClassConditionalPipeline.from_pretrained("alice/model")
assert pipe(["bag"], num_inference_steps=2).images[0].size == (8, 8)
"""
    done = run_python(code, hub, tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_script(hub, model, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "diffusers_dp_curriculum.cli", "push", "model", "alice/model", "--private"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=hub.environment(tmp_path / "hf", HF_TOKEN="hf_writes"),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"Pushed to {hub.url}/alice/model/commit/{hub.commits('alice/model')[-1].oid}.\n"
    assert hub.repos["model", "alice/model"].private
    assert "hf_writes" not in done.stdout + done.stderr


def test_the_script_with_a_token_that_is_not_valid(hub, model, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_invalid")
    assert cli.main(["push", str(tmp_path / "model"), "alice/model", "--private"]) == 1
    printed = capsys.readouterr()
    assert "log in with `hf auth login`" in printed.err.splitlines()[-1]
    assert "hf_invalid" not in printed.out + printed.err


def test_the_picture_of_every_stage_may_be_published():
    for stage in warm_up_stages(DPCurriculumConfig(frequency_features=400, frequency_noise_multiplier=5.0)):
        if isinstance(stage, WarmUpStage):
            assert any(re.fullmatch(pattern, f"{stage.name}.png") for pattern in MODEL_FILES)
