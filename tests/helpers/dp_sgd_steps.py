"""DP-SGD on a small network, and what a step of it releases."""

import torch

from diffusers_dp_curriculum.gradients.losses import DenoisingLoss, NoiseDraws
from diffusers_dp_curriculum.gradients.per_record_gradients import per_record_gradients
from diffusers_dp_curriculum.mechanisms.dp_sgd import DPSGD, dp_sgd_mechanism
from diffusers_dp_curriculum.privacy.ledger import PrivacyLedger
from helpers import tiny_records, tiny_scheduler, tiny_unet


def make_dp_sgd(
    noise_multiplier=1.0,
    batch_size=20,
    max_grad_norm=0.05,
    physical=7,
    steps=50,
    mode="folded",
    records=None,
    ledger=None,
    randomness=None,
    unet=None,
):
    torch.manual_seed(0)
    records = records or tiny_records()
    unet = tiny_unet() if unet is None else unet
    mechanism = dp_sgd_mechanism(noise_multiplier, batch_size, len(records.units), steps, max_grad_norm)
    return DPSGD(
        unet,
        torch.optim.SGD([p for p in unet.parameters() if p.requires_grad], lr=1.0),
        DenoisingLoss(tiny_scheduler(), null_label=3),
        records,
        mechanism,
        ledger or PrivacyLedger(1e-5, unit=records.units.name),
        noise_multiplicity=2,
        max_physical_batch_size=physical,
        gradients_of=lambda draws: per_record_gradients(unet, draws, mode),
        randomness=randomness,
    )


def parameters(model):
    return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


def take_step(mechanism):
    """One step of SGD at learning rate 1: the released gradient, times the expected batch size."""
    before = parameters(mechanism.model)
    mechanism.step()
    return (before - parameters(mechanism.model)) * mechanism.optimizer.expected_batch_size


def fixed_draws(images, labels):
    """The same draws for every record, wherever it is in the batch."""
    return NoiseDraws(images, torch.full(images.shape[:2], 300), labels, images * 0)
