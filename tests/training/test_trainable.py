"""DP-SGD trains what `trainable` names and nothing else, and adapters are merged before anything is published."""

import copy
import re
import sys

import pytest
import torch
from diffusers import UNet2DModel

from diffusers_dp_curriculum import DPCurriculumConfig, InputError, checks
from diffusers_dp_curriculum.gradients.per_record_gradients import choose_mode, per_record_gradients
from diffusers_dp_curriculum.training.trainable import trained_part
from helpers import attending_unet, smallest_unet, tiny_records, tiny_unet
from helpers.dp_sgd_steps import make_dp_sgd
from helpers.reference_gradients import BF16, clipped_sum, flat, make_draws, naive_gradients, relative_errors
from helpers.runs import finish, interrupted, make_trainer
from helpers.tensor_memory import TensorMemory


PARTS = ["all", "attention", "lora", "class_embedding", "conv_(in|out).weight"]
PUBLIC_START = {"central_statistic": "none", "frequency_features": 0}  # a run by DP-SGD alone


def config(trainable, **options):
    return DPCurriculumConfig(trainable=trainable, **options)


def trainable_names(unet):
    return {name for name, p in unet.named_parameters() if p.requires_grad}


def values(unet):
    return {name: p.detach().clone() for name, p in unet.state_dict().items()}


def random_adapters(unet):
    """Give adapters the effect that training gives them."""
    with torch.no_grad():
        for name, p in unet.named_parameters():
            if "lora_" in name:
                p.normal_(std=0.2)


def parameters_of(unet, kind):
    return {
        "all": {name for name, _ in unet.named_parameters()},
        "attention": {name for name, _ in unet.named_parameters() if "attentions" in name or "class_emb" in name},
        "class_embedding": {"class_embedding.weight"},
        "conv_(in|out).weight": {"conv_in.weight", "conv_out.weight"},
    }[kind]


@pytest.mark.parametrize("trainable", [part for part in PARTS if part != "lora"])
def test_a_part_of_the_network_is_trainable_and_afterwards_all_is_as_before(trainable):
    unet = tiny_unet()
    unet.conv_in.bias.requires_grad_(False)  # what its owner has frozen stays so
    before, names = values(unet), trainable_names(unet)
    expected = parameters_of(unet, trainable) - {"conv_in.bias"}
    with trained_part(unet, config(trainable)) as part:
        assert trainable_names(unet) == expected
        size = sum(unet.get_parameter(name).numel() for name in expected)
        assert str(part).endswith(f": {size:,} of {unet.num_parameters():,} parameters")
        assert part.published() is unet
    assert trainable_names(unet) == names
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())


def test_adapters_are_on_attention_and_afterwards_the_network_is_plain():
    unet = tiny_unet()
    own, attributes, before = dict(unet.named_parameters()), set(vars(unet)), values(unet)
    with trained_part(unet, config("lora", lora_rank=3)) as part:
        adapters = trainable_names(unet) - {"class_embedding.weight"}
        layers = {name.split(".lora_")[0] for name in adapters}
        blocks = (
            "down_blocks.1.attentions.0",
            "mid_block.attentions.0",
            "up_blocks.0.attentions.0",
            "up_blocks.0.attentions.1",
        )
        assert layers == {f"{block}.{layer}" for block in blocks for layer in ("to_q", "to_k", "to_v", "to_out.0")}
        assert {min(unet.get_parameter(name).shape) for name in adapters} == {3}
        size = len(layers) * (16 * 3 + 3 * 16) + unet.class_embedding.weight.numel()
        assert str(part) == (
            "LoRA adapters of rank 3 on attention, and the class embedding: "
            f"{size:,} parameters, for a network of {sum(p.numel() for p in own.values()):,}"
        )
    assert [*dict(unet.named_parameters())] == [*own]
    assert all(p is own[name] and p.requires_grad for name, p in unet.named_parameters())
    assert set(vars(unet)) == attributes
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())


def test_adapters_start_from_the_seed_of_the_run_and_draw_no_other_random_numbers():
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(found))
        state, unet = torch.get_rng_state(), attending_unet()
        state = torch.get_rng_state()
        with trained_part(unet, config("lora", seed=seed)):
            found.append(unet.mid_block.attentions[0].to_q.lora_A.default.weight.detach().clone())
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_merged_adapters_have_the_effect_that_they_had_in_training():
    torch.manual_seed(0)
    unet = tiny_unet().eval()
    rows = make_draws(unet).flatten()

    def answer(network):
        with torch.no_grad():
            return network(rows.noisy, rows.timesteps, rows.labels).sample

    first = answer(unet)
    with trained_part(unet, config("lora")) as part:
        assert torch.equal(answer(unet), first)
        random_adapters(unet)
        trained, published = answer(unet), part.published()
        assert (answer(published) - trained).abs().max() < 1e-5
        assert [*published.state_dict()] == [*tiny_unet().state_dict()]
        assert "to_q.lora_A" in " ".join(unet.state_dict())  # training goes on with the adapters
    assert torch.equal(answer(unet), answer(published))
    assert (trained - first).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("make", "trainable", "message"),
    [
        (smallest_unet, "attention", 'The UNet has no attention, which `trainable` "attention" trains'),
        (smallest_unet, "lora", 'The UNet has no attention, which `trainable` "lora" trains'),
        (lambda: attending_unet(num_classes=None), "class_embedding", "The UNet has no class embedding"),
        (attending_unet, "attentions", '`trainable` "attentions" names no trainable parameter of the UNet: give all'),
        (lambda: attending_unet().requires_grad_(False), "attention", "names no trainable parameter"),
    ],
)
def test_a_network_without_the_part_is_refused_and_stays_as_it_was(make, trainable, message):
    unet = make()
    names = trainable_names(unet)
    with pytest.raises(InputError, match=re.escape(message)), trained_part(unet, config(trainable)):
        pass
    assert trainable_names(unet) == names


def test_a_network_with_adapters_gets_no_others():
    unet = attending_unet()
    with (
        trained_part(unet, config("lora")),
        pytest.raises(InputError, match="The UNet has adapters already: merge them first"),
        trained_part(unet, config("lora")),
    ):
        pass


def test_without_peft_one_sentence_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    for trainable in ("all", "attention"):
        with trained_part(attending_unet(), config(trainable)):
            pass
    message = r'peft, .* `trainable` lora, is not installed: .*"diffusers-dp-curriculum\[lora\]"'
    with pytest.raises(InputError, match=message), trained_part(attending_unet(), config("lora")):
        pass


@pytest.mark.parametrize(
    ("trainable", "num_classes"), [("attention", 3), ("lora", 3), ("lora", None), ("conv_(in|out).weight", 3)]
)
def test_gradients_of_a_part_are_those_of_a_naive_float64_loop(trainable, num_classes):
    torch.manual_seed(0)
    unet = attending_unet(num_classes=num_classes)
    draws = make_draws(unet, count=4)
    with trained_part(unet, config(trainable)):
        random_adapters(unet)
        expected = naive_gradients(unet, draws)
        assert expected.keys() == trainable_names(unet)
        for mode in ("folded", "loop"):
            assert relative_errors(per_record_gradients(unet, draws, mode), expected).max() < 5e-5
        assert choose_mode(unet, draws, 3, "auto") == choose_mode(unet, draws, 3, "auto", BF16) == "folded"


@pytest.mark.parametrize(("trainable", "checkpointing"), [("attention", False), ("lora", False), ("lora", True)])
def test_frozen_parameters_take_no_memory_for_each_record(trainable, checkpointing):
    """Beside what an ordinary backward pass takes, there are the gradients of B records, and little more."""
    torch.manual_seed(0)
    unet, memory = tiny_unet(size=2), {}
    if checkpointing:
        unet.enable_gradient_checkpointing()
    draws = make_draws(unet, count=200, noise_multiplicity=1)
    for part in (trainable, "all"):
        with trained_part(unet, config(part)), TensorMemory() as measured:
            per_record_gradients(unet, draws, "folded")
        memory[part] = measured.num_bytes
        with trained_part(unet, config(part)):
            memory[part, "gradients"] = 200 * sum(p.nbytes for p in unet.parameters() if p.requires_grad)
    saved = memory["all", "gradients"] - memory[trainable, "gradients"]
    assert saved > 8 * memory[trainable, "gradients"]
    assert memory["all"] - memory[trainable] > 0.9 * saved


@pytest.mark.parametrize("mode", ["folded", "loop"])
@pytest.mark.parametrize("trainable", ["attention", "lora"])
def test_a_step_is_clipped_over_all_that_is_trained(monkeypatch, trainable, mode):
    """At sample rate 1 with hardly any noise, the step is the sum of the clipped float64 reference gradients."""
    torch.manual_seed(0)
    unet = attending_unet()
    with trained_part(unet, config(trainable)):
        random_adapters(unet)
        mechanism = make_dp_sgd(1e-6, batch_size=12, physical=12, mode=mode, records=tiny_records(12), unet=unet)
        original, pieces, draw = copy.deepcopy(unet), [], mechanism.loss.draw_each

        def remember(*inputs):
            pieces.append(draw(*inputs))
            return pieces[-1]

        monkeypatch.setattr(mechanism.loss, "draw_each", remember)
        mechanism.step()
        gradients = naive_gradients(original, pieces[0])
        changes = {
            name: (original.get_parameter(name) - p).detach() * mechanism.optimizer.expected_batch_size
            for name, p in unet.named_parameters()
        }
    assert (flat(gradients).norm(dim=1) > 0.05).any()
    expected = clipped_sum(gradients, 0.05)
    released = torch.cat([changes.pop(name).double().flatten() for name in gradients])
    assert (released - expected).norm() / expected.norm() < 1e-4
    assert not any(change.any() for change in changes.values())


@pytest.mark.parametrize("trainable", ["attention", "lora"])
def test_noise_is_on_every_number_that_is_trained_and_on_no_other(trainable):
    """Also on an adapter's first matrix, whose gradient is zero for all records while its second is zero."""
    unet = attending_unet()
    with trained_part(unet, config(trainable)):
        before = {name: p.detach().clone() for name, p in unet.named_parameters()}
        mechanism = make_dp_sgd(noise_multiplier=2.0, max_grad_norm=0.5, unet=unet, batch_size=1)
        mechanism.step()
        size = mechanism.optimizer.expected_batch_size
        changes = {name: (before[name] - p).detach() * size for name, p in unet.named_parameters()}
        trained = trainable_names(unet)
    assert {name for name, change in changes.items() if change.any()} == trained
    for name in trained:
        assert (changes[name] != 0).all()
        assert 0.5 < changes[name].std() < 2 or changes[name].numel() < 30


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory):
    """A whole run with adapters: the initial weights, the trainer and the last checkpoint."""
    torch.manual_seed(0)
    unet = attending_unet()
    initial = values(unet)
    trainer = make_trainer(
        tmp_path_factory.mktemp("lora") / "model",
        unet=unet,
        trainable="lora",
        lora_rank=2,
        max_train_steps=3,
        learning_rate=0.1,
        adam_weight_decay=0.1,
        **PUBLIC_START,
    )
    finish(trainer)
    state = torch.load(trainer.paths.checkpoints / "checkpoint-3" / "state.pt", weights_only=True)
    return initial, trainer, state


def test_the_published_network_is_plain_and_has_the_averaged_adapters_merged(lora_run, monkeypatch):
    initial, trainer, state = lora_run
    average = dict(zip((name for name in state["unet"]), state["ema"]["shadow_params"], strict=True))
    monkeypatch.setitem(sys.modules, "peft", None)  # nothing of it is needed to load
    published = UNet2DModel.from_pretrained(trainer.output_dir / "unet").state_dict()
    assert published.keys() == initial.keys()
    for name, value in published.items():
        assert torch.equal(value, trainer.unet.state_dict()[name])  # what the samples of the card were made with
        layer, _, kind = name.rpartition(".")
        first, second = (average.get(f"{layer}.lora_{matrix}.default.weight") for matrix in "AB")
        if first is not None and kind == "weight":
            assert (value - initial[name]).abs().max() > 1e-3
            assert (value - initial[name] - second @ first).abs().max() < 1e-6
        elif name == "class_embedding.weight":
            assert torch.equal(value, average[name])
            assert not torch.equal(value, initial[name])
        else:
            assert torch.equal(value, initial[name])


def test_plan_and_card_say_what_was_trained(lora_run):
    trainer = lora_run[1]
    text = "LoRA adapters of rank 2 on attention, and the class embedding: 256 parameters, for a network of"
    card = (trainer.output_dir / "README.md").read_text()
    assert f"DP-SGD has trained {text}" in card
    assert "The warm-up has trained" not in card
    assert "| trainable | lora |\n| lora_rank | 2 |" in card
    assert f"  trained         {text}" in trainer.describe_plan()


def test_frozen_parameters_are_those_of_the_warm_up(tmp_path):
    trainer = make_trainer(
        tmp_path / "model",
        unet=attending_unet(),
        trainable=".*attentions.*",
        frequency_features=0,
        max_train_steps=2,
        adam_weight_decay=0.1,
        use_ema=False,
        checkpointing_steps=1,
        save_images_steps=5,
        gradient_checkpointing=True,
        log_sensitive_curves=True,
    )
    finish(trainer)
    before, after = (
        torch.load(trainer.paths.checkpoints / name / "state.pt", weights_only=True)["unet"]
        for name in ("checkpoint-3", "checkpoint-5")
    )
    assert {name for name in after if not torch.equal(before[name], after[name])} == {
        name for name, _ in trainer.unet.named_parameters() if "attentions" in name
    }
    assert all(torch.equal(value, after[name]) for name, value in trainer.unet.state_dict().items())


def test_a_run_with_adapters_is_resumed_where_it_was_interrupted(tmp_path):
    options = {"trainable": "lora", "max_train_steps": 3, **PUBLIC_START}  # as planned for the run above
    interrupted(tmp_path / "model", 1, unet=attending_unet(), **options)
    trainer = make_trainer(tmp_path / "model", unet=attending_unet(), resume_from_checkpoint="latest", **options)
    restore, restored = trainer._restore, {}

    def restore_and_look(state):
        restore(state)
        restored.update(values(state.unet))

    trainer._restore = restore_and_look
    assert finish(trainer)["mechanisms"][0]["steps"] == 3
    saved = torch.load(trainer.paths.checkpoints / "checkpoint-1" / "state.pt", weights_only=True)["unet"]
    assert restored.keys() == saved.keys()
    assert all(torch.equal(value, saved[name]) for name, value in restored.items())
    assert restored["mid_block.attentions.0.to_q.lora_B.default.weight"].any()
    with pytest.raises(InputError, match="was made with other trainable"):
        make_trainer(
            tmp_path / "model", attending_unet(), resume_from_checkpoint="latest", **{**options, "trainable": "all"}
        )
