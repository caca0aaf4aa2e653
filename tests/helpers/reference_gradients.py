"""Per-record gradients computed by a simple loop in float64, and the distance of others from them."""

import copy
from functools import partial

import torch

from diffusers_dp_curriculum.gradients.losses import DenoisingLoss
from diffusers_dp_curriculum.gradients.precision import Precision
from helpers import tiny_scheduler


def make_draws(unet, count=5, noise_multiplicity=3, classes=3):
    torch.manual_seed(1)
    size, config = unet.config.sample_size, unet.config
    null_label = None if config.num_class_embeds is None else classes
    loss = DenoisingLoss(tiny_scheduler(), null_label=null_label)
    images = torch.rand(count, config.in_channels, size, size) * 2 - 1
    draws = loss.draw(images, torch.arange(count) % classes, noise_multiplicity)
    # A Fourier embedding takes the logarithm of its input, and a learned one has no timestep 1,000.
    draws.timesteps = draws.timesteps.clamp(1, 999)
    if config.class_embed_type == "timestep":
        draws.labels = draws.labels.clamp(min=1)
    return draws


BF16 = Precision(partial(torch.autocast, "cpu", torch.bfloat16))


def naive_gradients(unet, draws):
    """The gradients in float64: one record and one draw at a time, then the mean over the draws."""
    unet = copy.deepcopy(unet).double()
    if unet.config.class_embed_type == "timestep":  # diffusers leaves this embedding in float32
        unet.class_embedding.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    parameters = {name: p for name, p in unet.named_parameters() if p.requires_grad}
    gradients = {name: [] for name in parameters}
    for record in range(draws.noisy.shape[0]):
        total = dict.fromkeys(parameters, 0.0)
        for k in range(draws.noisy.shape[1]):
            unet.zero_grad()
            labels = None if draws.labels is None else draws.labels[record, k : k + 1]
            prediction = unet(draws.noisy[record, k : k + 1].double(), draws.timesteps[record, k : k + 1], labels)
            (prediction.sample - draws.target[record, k : k + 1].double()).square().mean().backward()
            for name, p in parameters.items():
                total[name] = total[name] + (0 if p.grad is None else p.grad) / draws.noisy.shape[1]
        for name, p in parameters.items():
            gradients[name].append(torch.as_tensor(total[name]).double().expand_as(p))
    return {name: torch.stack(gradient) for name, gradient in gradients.items()}


def flat(gradients):
    return torch.cat([gradient.double().flatten(1) for gradient in gradients.values()], dim=1)


def relative_errors(gradients, expected):
    """For each record, the norm of the difference over the norm of the expected gradient."""
    assert gradients.keys() == expected.keys()
    return (flat(gradients) - flat(expected)).norm(dim=1) / flat(expected).norm(dim=1)


def clipped_sum(gradients, max_grad_norm):
    norms = flat(gradients).norm(dim=1, keepdim=True)
    return (flat(gradients) * (max_grad_norm / norms).clamp(max=1)).sum(dim=0)
