"""Small whole runs: what is refused, what is written, and what the ledger records."""

import copy
import json
import re
from dataclasses import replace

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from dp_accounting import dp_event, pld
from huggingface_hub import ModelCard
from PIL import Image
from torch.fx.experimental.proxy_tensor import make_fx

from diffusers_dp_curriculum import (
    CentralImageDataset,
    ClassConditionalPipeline,
    DPCurriculumTrainer,
    Mechanism,
    PrivacyLedger,
    load_image_dataset,
    to_image_dataset,
)
from diffusers_dp_curriculum import trainer as trainer_module
from diffusers_dp_curriculum.errors import InputError
from diffusers_dp_curriculum.gradients import compilation
from diffusers_dp_curriculum.mechanisms import central_images, randomness, secure_noise
from diffusers_dp_curriculum.mechanisms.central_images import CentralImageQueries
from diffusers_dp_curriculum.mechanisms.secure_noise import secure_normal
from helpers import PUBLISHED, smallest_unet, tiny_records, tiny_scheduler, tiny_unet
from helpers.image_data import GREY, write_images
from helpers.runs import make_config, make_trainer


pytestmark = pytest.mark.usefixtures("fresh_accelerator")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    trainer = make_trainer(tmp_path_factory.mktemp("run") / "model", tiny_unet(), accountant="prv")
    trainer.train()
    trainer.save_pipeline()
    return trainer


def files(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def test_output_directory_is_laid_out_as_documented(finished):
    published = [name for name in files(finished.output_dir) if not name.startswith("private/")]
    assert published == [".gitignore", *PUBLISHED]


def test_privacy_statement_counts_everything_and_meets_the_target(finished):
    privacy = json.loads((finished.output_dir / "privacy.json").read_text())
    assert [(entry["name"], entry["steps"]) for entry in privacy["mechanisms"]] == [
        ("central_images_mean", 5),
        ("dp_sgd", 4),
    ]
    assert privacy["mechanisms"][1]["sample_rate"] == pytest.approx(10 / 60)
    assert (privacy["dataset_size"], privacy["delta"], privacy["private"]) == (60, 1e-5, True)
    accountant = pld.PLDAccountant()
    for entry in privacy["mechanisms"]:
        gaussian = dp_event.GaussianDpEvent(entry["noise_multiplier"])
        accountant.compose(dp_event.PoissonSampledDpEvent(entry["sample_rate"], gaussian), entry["steps"])
    assert privacy["epsilon"] == pytest.approx(accountant.get_epsilon(1e-5), rel=0.01)
    assert 9.9 <= privacy["epsilon"] <= 10


def test_journal_has_the_same_entries_as_the_statement(finished):
    lines = [json.loads(line) for line in (finished.output_dir / "private" / "journal.jsonl").read_text().splitlines()]
    released = [event["release"] for event in lines if "release" in event]
    assert [entry["name"] for entry in released] == ["central_images_mean"] * 5 + ["dp_sgd"] * 4
    assert all(entry["steps"] == 1 for entry in released)
    visible = ["central_images", "checkpoint-0", "checkpoint-7", "the memory of the process", "pipeline"]
    assert [event["visible"] for event in lines if "visible" in event] == visible


def test_pictures_have_a_row_for_each_class(finished):
    for name, columns in (("samples.png", 10), ("central_images.png", 5)):
        picture = Image.open(finished.output_dir / name)
        assert picture.size == (columns * 64, 3 * 64)
        assert picture.convert("L").getextrema()[0] < picture.convert("L").getextrema()[1]


def test_model_card_states_the_budget_first(finished):
    card = ModelCard.load(finished.output_dir / "README.md")
    privacy = json.loads((finished.output_dir / "privacy.json").read_text())
    first = card.text.strip().split("\n\n")[1]
    stated = re.search(r"\(([\d.]+), 1e-05\)-differentially private", first)
    assert privacy["epsilon"] <= float(stated[1]) <= 1.001 * privacy["epsilon"]
    assert "zeroing out one record" in first
    assert {"differential-privacy", "dp-sgd", "opacus"} <= set(card.data.tags)
    assert card.data.library_name == "diffusers"
    sigma = privacy["mechanisms"][1]["noise_multiplier"]
    assert f"| dp_sgd | {sigma:.6g} | 0.166667 | 4 | 1 |" in card.text
    assert str(finished.output_dir) not in card.content


def test_the_average_of_the_weights_is_what_is_published(finished):
    checkpoint = finished.output_dir / "private" / "checkpoints" / "checkpoint-7" / "state.pt"
    state = torch.load(checkpoint, weights_only=True)
    published = list(ClassConditionalPipeline.from_pretrained(finished.output_dir).unet.parameters())
    assert all(torch.equal(*pair) for pair in zip(published, state["ema"]["shadow_params"], strict=True))
    assert not torch.equal(published[0], state["unet"]["conv_in.weight"])


def test_the_journal_has_what_becomes_visible_before_it_does(tmp_path, monkeypatch):
    journal = tmp_path / "model" / "private" / "journal.jsonl"
    in_time = {}

    def watch(owner, function, what):
        original = getattr(owner, function)

        def watched(*args, **kwargs):
            events = [json.loads(line) for line in journal.read_text().splitlines()]
            in_time.setdefault(what, what in [event.get("visible") for event in events])
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, function, watched)

    watch(Image.Image, "save", "samples")
    watch(ClassConditionalPipeline, "save_pretrained", "pipeline")
    trainer = make_trainer(tmp_path / "model", save_images_steps=2)
    trainer.train()
    trainer.save_pipeline()
    assert in_time == {"samples": True, "pipeline": True}


def test_privacy_json_is_there_when_all_the_rest_is(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path / "model")
    trainer.train()

    def no_space(*_):
        raise OSError("No space left on device")

    for _ in range(2):  # the first time, and over an earlier pipeline
        with monkeypatch.context() as broken:
            broken.setattr(Image.Image, "save", no_space)
            with pytest.raises(OSError, match="No space"):
                trainer.save_pipeline()
        assert not (tmp_path / "model" / "privacy.json").exists()
        trainer.save_pipeline()
        assert (tmp_path / "model" / "privacy.json").is_file()


@pytest.mark.parametrize("use_ema", [True, False])
def test_pictures_on_the_way_change_nothing(tmp_path, use_ema):
    """After a picture, training continues with its own weights, not with the average that the picture shows."""
    weights = []
    for name, every in (("without", None), ("with", 1)):
        torch.manual_seed(3)
        options = {"insecure_noise_seed": 7, "save_images_steps": every, "use_ema": use_ema, "ema_max_decay": 0.9}
        trainer = make_trainer(tmp_path / name, max_train_steps=6, **options)
        trainer.train()
        weights.append(trainer.unet.state_dict())
    assert len(list((tmp_path / "with" / "private" / "samples").iterdir())) == 9
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_what_was_planned_is_what_was_executed(tmp_path):
    trainer = make_trainer(
        tmp_path / "model",
        central_statistic="mode",
        central_images_per_class=3,
        central_noise_multiplier=4.0,
        central_pool_factor=2,
        central_mode_bins=4,
    )
    trainer.train()
    assert trainer.ledger.mechanisms == [*trainer.plan.warm_ups, trainer.plan.dp_sgd]
    assert trainer.plan.warm_ups[0] == Mechanism("central_images_mode", 4.0, 0.5, 3, 4.0)
    assert trainer.stages[0].queries.mode_bins == 4


def test_trained_weights_are_what_is_saved(finished):
    pipeline = ClassConditionalPipeline.from_pretrained(finished.output_dir)
    for name, parameter in finished.unet.named_parameters():
        assert torch.equal(pipeline.unet.get_parameter(name), parameter)
    assert pipeline.class_names == ["class 0", "class 1", "class 2"]
    central = CentralImageDataset.load_from_disk(finished.output_dir / "private" / "central_images")
    assert central.mechanism == finished.ledger.mechanisms[0]


def test_summary_says_where_everything_is(finished):
    summary = finished.summary()
    assert str(finished.output_dir) in summary
    assert re.search(r"epsilon 9\.\d+ at delta 1e-05", summary)
    assert re.search(r"dp_sgd +4 +\d", summary)
    assert all(name in summary for name in ("samples.png", "central_images.png", "README.md", "privacy.json"))


def test_a_directory_that_holds_a_run_is_refused_and_left_alone(finished):
    before = {name: (finished.output_dir / name).read_bytes() for name in files(finished.output_dir)}
    with pytest.raises(InputError, match="already holds another run"):
        make_trainer(finished.output_dir)
    assert {name: (finished.output_dir / name).read_bytes() for name in files(finished.output_dir)} == before


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample"])
def test_other_prediction_types_modes_and_accountant_run(tmp_path, prediction_type):
    trainer = DPCurriculumTrainer(
        unet=tiny_unet(channels=3),
        noise_scheduler=tiny_scheduler(prediction_type),
        args=make_config(
            tmp_path / "model",
            central_statistic="mode",
            accountant="rdp",
            lr_scheduler="cosine",
            timestep_sampling="uniform",
            random_flip=True,
            mixed_precision="bf16",
            target_epsilon=3.0,
        ),
        train_dataset=tiny_records(channels=3),
    )
    trainer.train()
    trainer.save_pipeline()
    privacy = json.loads((tmp_path / "model" / "privacy.json").read_text())
    assert privacy["accountant"] == "rdp"
    assert 2.97 <= privacy["epsilon"] <= 3
    assert privacy["mechanisms"][0]["name"] == "central_images_mode"


def test_without_labels_the_result_is_a_stock_pipeline(tmp_path):
    trainer = make_trainer(tmp_path / "model", tiny_unet(num_classes=None), tiny_records(num_classes=None))
    trainer.train()
    trainer.save_pipeline()
    assert not (tmp_path / "model" / "pipeline.py").exists()
    pipeline = DDPMPipeline.from_pretrained(tmp_path / "model")
    images = pipeline(batch_size=2, num_inference_steps=2, output_type="np").images
    assert images.shape == (2, 8, 8, 1)
    assert "with its label" not in (tmp_path / "model" / "README.md").read_text()


def test_dp_sgd_alone(tmp_path):
    trainer = make_trainer(tmp_path / "model", central_statistic="none")
    trainer.train()
    trainer.save_pipeline()
    assert [mechanism.name for mechanism in trainer.ledger.mechanisms] == ["dp_sgd"]
    assert not (tmp_path / "model" / "central_images.png").exists()
    assert "central images" not in (tmp_path / "model" / "README.md").read_text()


def test_two_runs_with_one_seed_share_neither_central_images_nor_weights(tmp_path):
    runs = []
    for name in ("one", "two"):
        torch.manual_seed(3)
        trainer = make_trainer(tmp_path / name, seed=3, max_train_steps=1)
        trainer.train()
        runs.append((trainer.released["central_images"].images, trainer.unet.conv_out.weight.detach()))
    assert not torch.equal(runs[0][0], runs[1][0])
    assert not torch.equal(runs[0][1], runs[1][1])


def test_two_runs_with_one_seed_agree_in_all_but_what_the_mechanisms_draw(tmp_path, monkeypatch):
    """Initial weights and, with equal central images, the warm-up are equal; DP-SGD differs from the first step on."""
    given = CentralImageDataset.from_dataset(tiny_records(), 5, ledger=PrivacyLedger(1e-5))
    original, original_warm_up = CentralImageQueries.release, trainer_module.warm_up
    monkeypatch.setattr(CentralImageQueries, "release", lambda *args: original(*args) and given)
    warmed = []

    def watch(state, *others):
        ended = original_warm_up(state, *others)
        warmed.append(copy.deepcopy(state.unet.state_dict()))
        return ended

    monkeypatch.setattr(trainer_module, "warm_up", watch)
    trained = []
    for name in ("one", "two"):
        torch.manual_seed(3)
        trainer = make_trainer(tmp_path / name, seed=3, max_train_steps=1)
        trainer.train()
        trained.append(trainer.unet.state_dict())
    assert all(torch.equal(warmed[0][name], warmed[1][name]) for name in warmed[0])
    assert not torch.equal(trained[0]["conv_out.weight"], trained[1]["conv_out.weight"])


def test_noise_is_secure_unless_somebody_says_otherwise(tmp_path, monkeypatch):
    drawn = []
    for module in (secure_noise, randomness):
        monkeypatch.setattr(module, "secure_normal", lambda shape: drawn.append(shape) or secure_normal(shape))
    trainer = make_trainer(tmp_path / "model")
    trainer.describe_plan()  # which rehearses a step
    rehearsed = len(drawn)
    trainer.describe_plan = lambda: ""
    trainer.train()
    trainer.save_pipeline()
    parameters = len(list(trainer.unet.parameters()))
    assert len(drawn) == rehearsed + 5 + 4 * parameters  # every query, and every parameter in every step
    assert json.loads((tmp_path / "model" / "privacy.json").read_text())["private"] is True
    make_trainer(tmp_path / "other", secure_rng=False).train()
    assert len(drawn) == rehearsed + 5 + 4 * parameters


def test_a_run_with_seeded_noise_says_everywhere_that_it_is_not_private(tmp_path):
    weights = []
    for name in ("one", "two"):
        torch.manual_seed(3)
        trainer = make_trainer(tmp_path / name, insecure_noise_seed=7)
        trainer.train()
        trainer.save_pipeline()
        weights.append(trainer.unet.conv_out.weight.detach())
    assert torch.equal(*weights)
    privacy = json.loads((tmp_path / "two" / "privacy.json").read_text())
    assert privacy["private"] is False
    assert "insecure_noise_seed" in privacy["remarks"][0]
    card = (tmp_path / "two" / "README.md").read_text()
    assert "**This model is NOT private. Do not share it.**" in card
    assert "differentially private" not in card.split("## Use")[0]
    assert trainer.summary().startswith("NOT PRIVATE, share nothing")


def test_training_stops_before_the_step_that_would_pass_the_target(tmp_path, messages):
    trainer = make_trainer(tmp_path / "model")
    affordable = trainer.plan.dp_sgd
    trainer.plan = replace(trainer.plan, dp_sgd=replace(affordable, steps=9), epsilon_after={0: 1.0, 9: 12.0})
    trainer.train()
    trainer.save_pipeline()
    assert "DP-SGD stops after 4 of 9 steps: the next one would pass the target epsilon 10" in messages.text
    assert json.loads((tmp_path / "model" / "privacy.json").read_text())["epsilon"] <= 10


def test_plan_is_printed_before_anything_is_read(tmp_path, messages, monkeypatch):
    trainer = make_trainer(tmp_path / "model")

    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(CentralImageQueries, "release", stop)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    printed = messages.text
    for words in (
        "epsilon 10 at delta 1e-05",
        "alone",
        "noise multiplier",
        "sample rate 0.1667",
        "4 steps",
        "expected time",
    ):
        assert words in printed
    assert '"release"' not in (tmp_path / "model" / "private" / "journal.jsonl").read_text()


def test_the_warm_up_sees_central_images_alone(tmp_path, monkeypatch):
    """The central images are white here, and so is every image that the loss gets before the first DP-SGD step."""
    trainer = make_trainer(tmp_path / "model")
    release, draw = CentralImageQueries.release, trainer.loss.draw

    def white(*arguments, **options):
        central = release(*arguments, **options)
        central.images[:] = 1
        return central

    def watch(images, labels, noise_multiplicity):
        if trainer._ledger is not None and len(trainer.ledger.mechanisms) == 1:
            watched.append(bool((images > 0.99).all()))
        return draw(images, labels, noise_multiplicity)

    watched = []
    monkeypatch.setattr(CentralImageQueries, "release", white)
    monkeypatch.setattr(trainer.loss, "draw", watch)
    trainer.train()
    assert watched == [True] * 3


def test_one_trainer_and_one_network_learn_from_the_records_once(finished, tmp_path):
    """A second run would spend the budget twice under one epsilon."""
    with pytest.raises(InputError, match="has run already"):
        finished.train()
    with pytest.raises(InputError, match="learned from sensitive records in another run"):
        make_trainer(tmp_path / "model", unet=finished.unet)
    unet = smallest_unet()
    first, second = (make_trainer(tmp_path / name, unet=unet, max_train_steps=1) for name in ("first", "second"))
    first.train()
    with pytest.raises(InputError, match="learned from sensitive records in another run"):
        second.train()
    assert not (tmp_path / "second").exists()


def test_records_are_queried_as_often_as_the_ledger_says(tmp_path, monkeypatch):
    queries = []
    sample = central_images._poisson_sample
    monkeypatch.setattr(central_images, "_poisson_sample", lambda *inputs: queries.append(1) or sample(*inputs))
    trainer = make_trainer(tmp_path / "model")
    trainer.train()
    assert len(queries) == trainer.ledger.mechanisms[0].steps == 5


def test_no_published_file_says_where_anything_was(tmp_path):
    """A network that was loaded from a directory knows its path, which must not be published."""
    tiny_unet().save_pretrained(tmp_path / "secret place")
    trainer = make_trainer(tmp_path / "model", unet=UNet2DModel.from_pretrained(tmp_path / "secret place"))
    trainer.train()
    trainer.save_pipeline()
    for name in files(tmp_path / "model"):
        if not name.startswith("private/"):
            content = (tmp_path / "model" / name).read_bytes()
            assert b"secret place" not in content
            assert str(tmp_path).encode() not in content


@pytest.mark.slow
def test_the_launcher_can_ask_for_a_compiler(tmp_path, monkeypatch):
    """`accelerate launch --dynamo_backend` sets an environment variable, as this test does."""
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "aot_eager")
    unet = tiny_unet(dropout=0.5)
    dropout = unet.mid_block.resnets[0].dropout
    modes = []
    monkeypatch.setattr(compilation, "make_fx", lambda f: modes.append((unet.training, dropout.training)) or make_fx(f))
    make_trainer(tmp_path / "model", unet=unet).train()
    assert modes == [(True, False), (True, True)]  # for the comparison with the loop, and for training
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(InputError, match="only float32 can be compiled"):
        make_trainer(tmp_path / "other", mixed_precision="bf16")


def test_gradients_can_be_taken_one_record_at_a_time(tmp_path):
    assert make_trainer(tmp_path / "model").grad_sample_mode == "folded"
    trainer = make_trainer(tmp_path / "model", grad_sample_mode="loop")
    trainer.train()
    assert trainer.grad_sample_mode == "loop"


def test_an_interrupted_run_is_not_saved(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path / "model")
    monkeypatch.setattr(trainer_module, "warm_up", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    with pytest.raises(InputError, match="let it finish"):
        trainer.save_pipeline()


def test_an_unfinished_run_is_not_saved(tmp_path):
    with pytest.raises(InputError, match="no trained model to save yet"):
        make_trainer(tmp_path / "model").save_pipeline()
    assert not (tmp_path / "model").exists()


def changed_records(**changes):
    records = tiny_records()
    for name, change in changes.items():
        setattr(records, name, change(getattr(records, name)))
    return records


def batch_norm_unet():
    unet = tiny_unet()
    unet.conv_norm_out = torch.nn.BatchNorm2d(8)
    return unet


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: {"target_epsilon": 0.0}, "`target_epsilon` is 0.0"),
        (lambda: {"seed": -1}, "`seed` is -1"),
        (lambda: {"insecure_noise_seed": -1}, "`insecure_noise_seed` is -1"),
        (lambda: {"insecure_noise_seed": 0.5}, "`insecure_noise_seed` is 0.5: give a whole number"),
        (lambda: {"central_images_per_class": 2.5}, "`central_images_per_class` is 2.5: give a whole number"),
        (lambda: {"adam_beta1": 1.5}, "`adam_beta1` is 1.5"),
        (lambda: {"ema_inv_gamma": 0.0}, "`ema_inv_gamma` is 0.0"),
        (lambda: {"guidance_scale": 2.0, "label_dropout": 0.0}, "`guidance_scale` needs the null class"),
        (lambda: {"num_inference_steps": 1001}, "`num_inference_steps` is 1001: give 1 to 1000"),
        (lambda: {"noise_level_mean": 1e6}, "No timestep has the noise levels asked for"),
        (lambda: {"unet": tiny_unet(out_channels=2)}, "takes 1 and gives 2"),
        (lambda: {"unet": tiny_unet().requires_grad_(False)}, "No parameter of the UNet is trainable"),
        (lambda: {"unet": tiny_unet().bfloat16()}, "not in float32"),
        (lambda: {"unet": tiny_unet().to("meta")}, "has shapes and no weights"),
        (lambda: {"records": changed_records(images=lambda images: images * 1000.0)}, "images are torch.float32"),
        (lambda: {"records": changed_records(labels=lambda labels: labels + 1)}, "none of the declared classes"),
        (lambda: {"records": changed_records(images=lambda images: images[:0])}, "data set is empty"),
        (lambda: {"records": changed_records(class_names=lambda names: ["a", "b", "b"])}, "not all different"),
        *(
            (
                lambda name=name: {"records": changed_records(class_names=lambda _: ["a", "b", name])},
                "of a class is no line of text in UTF-8",
            )
            for name in ("gr\udcf6n", "")
        ),
        (lambda: {"records": changed_records(class_names=lambda _: ["a", "b", 3])}, "give a list of texts"),
        (lambda: {"target_epsilon": float("nan")}, "`target_epsilon` is nan"),
        (lambda: {"target_delta": 0.0}, "`target_delta` is 0.0"),
        (lambda: {"target_delta": 1.5}, "`target_delta` is 1.5"),
        (lambda: {"target_delta": 1 / 60}, "`target_delta` 0.0166667 is not below 1/N"),
        (
            lambda: {"central_noise_multiplier": 0.3},
            "warm-up queries alone cost epsilon .* raise `central_",
        ),
        (lambda: {"central_sample_rate": 1.5}, "`central_sample_rate` is 1.5"),
        (lambda: {"central_statistic": "median"}, '`central_statistic` is "median"'),
        (lambda: {"central_pool_factor": 3}, "cannot be pooled by 3"),
        (lambda: {"train_batch_size": 61}, r"`train_batch_size` 61 is larger than the data set \(60 records\)"),
        (lambda: {"train_batch_size": 0}, "`train_batch_size` is 0"),
        (lambda: {"accountant": "gdp"}, '`accountant` is "gdp"'),
        (lambda: {"lr_scheduler": "steep"}, '`lr_scheduler` is "steep"'),
        (lambda: {"label_dropout": 1.0}, "`label_dropout` is 1.0"),
        (lambda: {"unet": batch_norm_unet()}, r"conv_norm_out \(BatchNorm2d\) mixes records"),
        (
            lambda: {"unet": tiny_unet(size=9), "records": tiny_records(size=9)},
            "resolution of 9 cannot be halved",
        ),
        (lambda: {"unet": tiny_unet(size=16)}, "8 pixels per side"),
        (lambda: {"unet": tiny_unet(channels=3)}, "1 channels, and the UNet takes 3"),
        (lambda: {"unet": tiny_unet(num_classes=5)}, "num_class_embeds=6 where the data set needs 4"),
        (lambda: {"unet": tiny_unet(num_classes=None)}, "num_class_embeds=None where the data set needs 4"),
        (lambda: {"records": tiny_records(num_classes=None)}, "num_class_embeds=4 where the data set needs None"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(tmp_path, make, message):
    with pytest.raises(InputError, match=message) as refusal:
        make_trainer(tmp_path / "model", **make())
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variance_type": "learned"}, 'variance_type="fixed_small"'),
        ({"variance_type": "learned_range"}, 'variance_type="fixed_small"'),
        ({"variance_type": "fixed_large_log"}, "cannot be sampled .its images are not finite"),  # as in diffusers 0.42
        ({"steps_offset": 1}, "20 inference steps leave the timesteps 0 to 19"),
    ],
)
def test_a_schedule_that_only_the_last_picture_would_break_on_is_refused(tmp_path, settings, message):
    """A trial of a single step would not notice, as its timestep is 0 or 1."""
    scheduler = DDPMScheduler(num_train_timesteps=20, **settings)
    with pytest.raises(InputError, match=message):
        DPCurriculumTrainer(
            smallest_unet(), scheduler, make_config(tmp_path / "model", num_inference_steps=20), tiny_records()
        )


def test_images_without_pixels_are_planned_for_and_not_trained_on(tmp_path):
    write_images(tmp_path / "photos" / "cat", GREY[:5])
    write_images(tmp_path / "photos" / "dog", GREY[:5])
    records = load_image_dataset(train_data_dir=str(tmp_path / "photos"), decode=False)
    assert (records.is_decoded, records.info.images_shape) == (False, (10, 1, 8, 8))
    trainer = make_trainer(tmp_path / "model", smallest_unet(num_class_embeds=3), records)
    assert "Plan for 10 records of 8x8x1 in 2 classes\n  files           10 found" in trainer.describe_plan()
    with pytest.raises(InputError, match="loaded for a plan alone: load them with `decode` to train"):
        trainer.train()
    assert not (tmp_path / "model").exists()


def test_a_plan_lists_the_classes_of_any_data_set(tmp_path):
    plan = make_trainer(tmp_path / "model").describe_plan()
    assert "\n  classes         0 = class 0, 1 = class 1, 2 = class 2\n" in plan


def test_a_trainer_does_not_write_into_the_directory_of_its_records(tmp_path):
    write_images(tmp_path / "photos", GREY)
    records = load_image_dataset(train_data_dir=str(tmp_path / "photos"))
    with pytest.raises(InputError, match="is in the directory of the data set"):
        make_trainer(tmp_path / "photos" / "model", smallest_unet(), to_image_dataset(records, unconditional=True))
