"""The script that `test_distributed.py` launches: the main process writes the facts that all processes found.

accelerate launch --multi_gpu --num_processes 2 several_processes.py DIRECTORY
"""

import sys
from pathlib import Path

import torch
from accelerate.utils import gather_object

from diffusers_dp_curriculum import DPCurriculumConfig, load_starting_point, pretrain, set_verbosity
from diffusers_dp_curriculum.distributed import num_processes, process_index, run_on_main_process, set_on_any_process
from diffusers_dp_curriculum.errors import InputError
from diffusers_dp_curriculum.gradients.losses import DenoisingLoss
from diffusers_dp_curriculum.mechanisms.dp_optimizer import ExactDPOptimizer
from diffusers_dp_curriculum.mechanisms.randomness import MechanismRandomness
from diffusers_dp_curriculum.mechanisms.releases import ReleasedImages
from diffusers_dp_curriculum.trainer import DPCurriculumTrainer
from diffusers_dp_curriculum.training.stages import warm_up_stages
from diffusers_dp_curriculum.training.warm_up import start_warm_up, warm_up
from helpers import tiny_records, tiny_scheduler, tiny_unet, uneven_users
from helpers.dp_sgd_steps import make_dp_sgd, parameters, take_step
from helpers.runs import make_config


def count_pickled(trainer):
    """A list, to which each step of DP-SGD adds how many objects the processes have pickled for each other."""
    calls, of_steps, after_step = [], [], trainer._after_step
    for name in ("all_gather_object", "gather_object", "broadcast_object_list"):
        original = getattr(torch.distributed, name)

        def counted(*inputs, original=original, **options):
            calls.append(1)
            return original(*inputs, **options)

        setattr(torch.distributed, name, counted)

    def count(state, *others, **flags):
        stopped = after_step(state, *others, **flags)
        if state.stage == "dp_sgd":
            of_steps.append(len(calls))
        calls.clear()
        return stopped

    trainer._after_step = count
    return of_steps


def run_of_five_steps(directory):
    """A whole run, in which sampling, noise and draws follow from the insecure seed."""
    torch.manual_seed(process_index())  # the network of the main process is the one that is trained
    trainer = DPCurriculumTrainer(
        unet=tiny_unet(),
        noise_scheduler=tiny_scheduler(),
        args=make_config(
            directory / "model",
            insecure_noise_seed=3,
            max_train_steps=5,
            max_physical_batch_size=3,
            frequency_features=40,
            frequency_noise_multiplier=5.0,
            frequency_generator_steps=2,
            frequency_train_steps=0,
            central_train_steps=0,  # Adam enlarges rounding errors where a gradient is zero; see `gradient_of_warm_up`
        ),
        train_dataset=tiny_records(),
    )
    pickled = count_pickled(trainer)
    trainer.train()
    trainer.save_pipeline()
    return {
        "pickled": pickled,
        "parameters": parameters(trainer.unet),
        "central_images": trainer.released["central_images"].images,
        "frequency_sums": trainer.released["frequency_features"].sums,
        "frequency_images": trainer.released["frequency_images"].images,
        "epsilon": trainer.ledger.epsilon(),
        "steps": [(mechanism.name, mechanism.steps) for mechanism in trainer.ledger.mechanisms],
        "not_private": trainer.ledger.not_private,
    }


def run_from_a_public_start(directory):
    """Training on public images, and then DP-SGD of adapters that follow from the insecure seed."""
    torch.manual_seed(process_index())  # the network of the main process is the one that is trained
    start = directory / "public"
    options = {"max_train_steps": 2, "train_batch_size": 4, "num_inference_steps": 2}
    unet = tiny_unet()
    pretrain(unet, tiny_scheduler(), DPCurriculumConfig(str(start), **options), tiny_records())
    name, records = str(start), tiny_records()
    adapted, noise_scheduler = load_starting_point(name, records.info)
    args = make_config(
        directory / "adapted",
        pretrained_model_name_or_path=name,
        trainable="lora",
        lora_rank=2,
        central_statistic="none",
        frequency_features=0,
        insecure_noise_seed=3,
        max_train_steps=2,
        max_physical_batch_size=3,
    )
    trainer = DPCurriculumTrainer(adapted, noise_scheduler, args, records)
    trainer.train()
    trainer.save_pipeline()
    return {"public": parameters(unet), "adapted": parameters(adapted)}


def released_sum(mechanism):
    """The gradient that DP-SGD hands to the optimizer, times the expected batch size; weights would be rounded."""
    gradients = []
    step = mechanism.optimizer.original_optimizer.step
    mechanism.optimizer.original_optimizer.step = lambda: (
        gradients.extend(p.grad.flatten() for p in mechanism.model.parameters()),
        step(),
    )
    mechanism.step()
    return torch.cat(gradients) * mechanism.mechanism.sample_rate * len(mechanism.records.units)


def summed_clipped_gradient():
    insecure = MechanismRandomness(insecure_noise_seed=5)
    return released_sum(make_dp_sgd(noise_multiplier=1e-9, batch_size=30, randomness=insecure))


def summed_clipped_gradient_of_users():
    insecure = MechanismRandomness(insecure_noise_seed=5)
    return released_sum(make_dp_sgd(noise_multiplier=1e-9, batch_size=9, records=uneven_users(), randomness=insecure))


def sum_before_the_noise():
    """The sum before the noise, on the process that adds it; one record at a time, so that gradients are equal."""
    mechanism = make_dp_sgd(batch_size=30, mode="loop", randomness=MechanismRandomness(insecure_noise_seed=5))
    summed, add_noise = [], ExactDPOptimizer.add_noise

    def watch(optimizer):
        summed.extend(p.summed_grad.flatten().clone() for p in optimizer.params)
        add_noise(optimizer)

    ExactDPOptimizer.add_noise = watch
    try:
        mechanism.step()
    finally:
        ExactDPOptimizer.add_noise = add_noise
    return torch.cat(summed) if summed else None


def gradient_of_warm_up():
    torch.manual_seed(0)
    unet = tiny_unet()
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    released = ReleasedImages(images, torch.arange(6) % 3)
    config = DPCurriculumConfig(central_train_steps=1, central_batch_size=5, use_ema=False, frequency_features=0)
    (stage,) = warm_up_stages(config)
    state = start_warm_up(unet, stage, config)
    state.optimizer, state.lr_scheduler = torch.optim.SGD(unet.parameters(), lr=1.0), None
    before = parameters(unet)
    warm_up(state, DenoisingLoss(tiny_scheduler(), null_label=3), released, stage, config)
    return before - parameters(unet)


def noise_of_empty_batches(secure_rng):
    mechanism = make_dp_sgd(2.0, 1e-6, max_grad_norm=0.5, randomness=MechanismRandomness(secure_rng))
    return torch.stack([take_step(mechanism) for _ in range(10)])


def step_with_empty_shares():
    """A batch of one record: all processes but the first have an empty share, and take the same step."""
    mechanism = make_dp_sgd(noise_multiplier=1e-9, randomness=MechanismRandomness(insecure_noise_seed=5))
    mechanism.batches = iter([[7]])
    return released_sum(mechanism)


def records_of_steps():
    """The records that this process takes in each of three steps."""
    mechanism = make_dp_sgd(physical=1000)
    taken = []
    original = mechanism._set_grad_samples
    mechanism._set_grad_samples = lambda piece: (taken.append(piece.tolist()), original(piece))
    for _ in range(3):
        mechanism.step()
    return taken


def error_of(function):
    try:
        function()
    except InputError as error:
        return str(error)
    return None


def refuse():
    raise InputError("The main process refuses.")


def main(directory):
    of_this_process = {
        "run": run_of_five_steps(directory),
        "from_a_public_start": run_from_a_public_start(directory),
        "gradient": summed_clipped_gradient(),
        "gradient_of_users": summed_clipped_gradient_of_users(),
        "noise": noise_of_empty_batches(secure_rng=False),
        "secure_noise": noise_of_empty_batches(secure_rng=True),
        "warm_up": gradient_of_warm_up(),
        "empty_shares": step_with_empty_shares(),
        "records": records_of_steps(),
        "first_draws": torch.rand(4),
        "expected_batch_size": make_dp_sgd(batch_size=20).optimizer.expected_batch_size,
        "before_the_noise": sum_before_the_noise(),
        "refusal": error_of(lambda: run_on_main_process(refuse)),
        "any": set_on_any_process(False, process_index() == num_processes() - 1, torch.tensor(process_index() == 0)),
    }
    everybody = gather_object([of_this_process])
    if process_index() == 0:
        torch.save(everybody, directory / "facts.pt")


if __name__ == "__main__":
    set_verbosity("info")
    main(Path(sys.argv[1]))
