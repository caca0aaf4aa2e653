"""Denoising losses: what one noise draw of one record is, and what the network is asked to predict from it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDPMScheduler, EDMDPMSolverMultistepScheduler, EDMEulerScheduler

from ..checks import LABEL_DROPOUT, NOISE_LEVEL_STD, TIMESTEP_SAMPLING, check_edm
from ..errors import InputError


PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
EDM_SCHEDULERS = (EDMEulerScheduler, EDMDPMSolverMultistepScheduler)


@dataclass
class NoiseDraws:
    """K draws of noise for each of B records: the input of the network and what it should answer.

    `noisy` and `target` have the shape `(B, K, channels, height, width)`; `timesteps` (c_noise for EDM) and `labels`
    have the shape `(B, K)`. `labels` is None for an unconditional network.
    """

    noisy: torch.Tensor
    timesteps: torch.Tensor
    labels: torch.Tensor | None
    target: torch.Tensor

    def flatten(self) -> "NoiseDraws":
        """The same draws with one leading dimension of B x K."""
        return self._each(lambda tensor: tensor.flatten(0, 1))

    def transpose(self) -> "NoiseDraws":
        """The same draws with the leading dimensions `(K, B)`."""
        return self._each(lambda tensor: tensor.transpose(0, 1))

    def of_record(self, number: int) -> "NoiseDraws":
        """The K draws of one record, with one leading dimension."""
        return self._each(lambda tensor: tensor[number])

    def of_records(self, numbers: torch.Tensor) -> "NoiseDraws":
        """The K draws of each of the given records, in the given order."""
        return self._each(lambda tensor: tensor[numbers])

    @staticmethod
    def cat(pieces: "list[NoiseDraws]") -> "NoiseDraws":
        """The draws of all pieces, one after the other."""
        noisy, timesteps, labels, target = zip(*(vars(piece).values() for piece in pieces), strict=True)
        return NoiseDraws(
            torch.cat(noisy), torch.cat(timesteps), None if labels[0] is None else torch.cat(labels), torch.cat(target)
        )

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "NoiseDraws":
        labels = None if self.labels is None else change(self.labels)
        return NoiseDraws(change(self.noisy), change(self.timesteps), labels, change(self.target))


class DDPMNoise:
    """Noise of the DDPM training loss (Ho et al. 2020, arXiv:2006.11239, eq. 14), for every prediction type.

    The weighting is a distribution over timesteps rather than a factor on the loss. Under DP every draw costs one pass
    and every gradient is clipped, so a factor near zero wastes the pass and a large one is clipped away; drawing the
    timesteps that matter more often does neither. `"log_normal"` draws the noise level sigma = sqrt((1 - a) / a), with
    a the cumulative alpha, from the log-normal distribution of EDM (Karras et al. 2022, arXiv:2206.00364, table 1),
    which spends the draws on the middle of the schedule; `"uniform"` is DDPM's own.

    For the arguments see [`DenoisingLoss`].
    """

    def __init__(self, noise_scheduler: DDPMScheduler, timestep_sampling: str, mean: float, std: float):
        if noise_scheduler.config.prediction_type not in PREDICTION_TYPES:
            raise InputError(
                f'The prediction type "{noise_scheduler.config.prediction_type}" is not supported: choose one of '
                f"{', '.join(PREDICTION_TYPES)}."
            )
        self.noise_scheduler = noise_scheduler
        alphas = noise_scheduler.alphas_cumprod.double()
        if timestep_sampling == "uniform":
            self.timestep_probabilities = torch.full_like(alphas, 1 / len(alphas))
        else:
            log_sigma = ((1 - alphas) / alphas).log() / 2
            density = torch.exp(-(((log_sigma - mean) / std) ** 2) / 2)
            mass = density * torch.gradient(log_sigma)[0]  # steps of the schedule are uneven in log sigma
            self.timestep_probabilities = mass / mass.sum()
        if not self.timestep_probabilities.isfinite().all():
            raise InputError(
                "No timestep has the noise levels asked for: bring `noise_level_mean` nearer to 0, or use "
                "`timestep_sampling` uniform (as schedules that end at zero signal need)."
            )

    def add_to(self, clean: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Input of the network, timestep and target for each of `(n, channels, height, width)` images."""
        self.timestep_probabilities = self.timestep_probabilities.to(clean.device)  # once; the CPU waits for a copy
        # `multinomial` refuses zero draws, which an empty Poisson batch asks for.
        timesteps = torch.multinomial(self.timestep_probabilities, max(len(clean), 1), replacement=True)[: len(clean)]
        noise = torch.randn_like(clean)
        noisy = self.noise_scheduler.add_noise(clean, noise, timesteps)
        return noisy, timesteps, self._target(clean, noise, timesteps)

    def _target(self, clean: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        match self.noise_scheduler.config.prediction_type:
            case "epsilon":
                return noise
            case "sample":
                return clean
            case "v_prediction":
                return self.noise_scheduler.get_velocity(clean, noise, timesteps)


class EDMNoise:
    """Noise of the EDM training loss (Karras et al. 2022, arXiv:2206.00364, table 1, eq. 7 and 8).

    A noise level sigma is log-normal, and x = y + sigma n. The network F sees c_in x and c_noise = ln(sigma) / 4, and
    its estimate of the image is D = c_skip x + c_out F. The loss weight 1 / c_out^2 on |D - y|^2 makes F's target
    (y - c_skip x) / c_out, of unit variance at every level, with weight 1: no draw is wasted or clipped because of its
    noise level. The scheduler gives the coefficients, with its `sigma_data`.

    For the arguments see [`DenoisingLoss`].
    """

    def __init__(self, noise_scheduler: EDMEulerScheduler, timestep_sampling: str, mean: float, std: float):
        check_edm(noise_scheduler.config.prediction_type, timestep_sampling)
        self.noise_scheduler = noise_scheduler
        self.mean = mean
        self.std = std

    def add_to(self, clean: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Input of the network, c_noise and target for each of `(n, channels, height, width)` images."""
        sigma = (self.mean + self.std * torch.randn(len(clean), 1, 1, 1, device=clean.device)).exp()
        noisy = clean + sigma * torch.randn_like(clean)
        scheduler = self.noise_scheduler
        skipped, c_out = scheduler.precondition_outputs(noisy, 0, sigma), scheduler.precondition_outputs(0, 1, sigma)
        return (
            scheduler.precondition_inputs(noisy, sigma),
            scheduler.precondition_noise(sigma).flatten(),
            (clean - skipped) / c_out,
        )


class DenoisingLoss:
    """The training loss for a noise scheduler, with noise as [`DDPMNoise`] or [`EDMNoise`] draws it.

    Args:
        noise_scheduler (`DDPMScheduler` or `EDMEulerScheduler`): Gives the noise schedule and the prediction type.
        timestep_sampling (`str`, *optional*, defaults to `"log_normal"`): `"log_normal"` or, for DDPM, `"uniform"`.
        noise_level_mean (`float`, *optional*, defaults to -0.6): Mean of log sigma.
        noise_level_std (`float`, *optional*, defaults to 1.2): Standard deviation of log sigma, > 0.
        label_dropout (`float`, *optional*, defaults to 0.1):
            Probability in [0, 1) of replacing a draw's label by the null class, for classifier-free guidance.
        null_label (`int`, *optional*): The null class; None for an unconditional network.
        random_flip (`bool`, *optional*, defaults to False): Mirror half of the draws left to right.

    Raises:
        InputError: If a value is out of range, or the scheduler or its prediction type is not supported.
    """

    def __init__(
        self,
        noise_scheduler: DDPMScheduler | EDMEulerScheduler,
        timestep_sampling: str = "log_normal",
        noise_level_mean: float = -0.6,
        noise_level_std: float = 1.2,
        label_dropout: float = 0.1,
        null_label: int | None = None,
        random_flip: bool = False,
    ):
        TIMESTEP_SAMPLING.check("timestep_sampling", timestep_sampling)
        NOISE_LEVEL_STD.check("noise_level_std", noise_level_std)
        LABEL_DROPOUT.check("label_dropout", label_dropout)
        if not isinstance(noise_scheduler, (DDPMScheduler, *EDM_SCHEDULERS)):
            raise InputError(
                f"There is no loss for {type(noise_scheduler).__name__}: train with a DDPMScheduler or an "
                "EDMEulerScheduler."
            )
        kind = EDMNoise if isinstance(noise_scheduler, EDM_SCHEDULERS) else DDPMNoise
        self.noise = kind(noise_scheduler, timestep_sampling, noise_level_mean, noise_level_std)
        self.label_dropout = label_dropout
        self.null_label = null_label
        self.random_flip = random_flip

    def draw(self, images: torch.Tensor, labels: torch.Tensor, noise_multiplicity: int) -> NoiseDraws:
        """Draw `noise_multiplicity` times a timestep, noise, a label drop and a flip for every record.

        Args:
            images (`torch.Tensor`): `(B, channels, height, width)` in [-1, 1].
            labels (`torch.Tensor`): `(B,)` int64.
            noise_multiplicity (`int`): K, draws per record.
        """
        return self.draw_each(
            images[:, None].expand(-1, noise_multiplicity, -1, -1, -1), labels[:, None].expand(-1, noise_multiplicity)
        )

    def draw_each(self, images: torch.Tensor, labels: torch.Tensor) -> NoiseDraws:
        """Draw a timestep, noise, a label drop and a flip for each of K images of every record or user.

        Args:
            images (`torch.Tensor`): `(B, K, channels, height, width)` in [-1, 1].
            labels (`torch.Tensor`): `(B, K)` int64.
        """
        shape, device = labels.shape, images.device
        clean = images.flatten(0, 1)
        if self.random_flip:
            clean = mirror_half(clean)
        noisy, timesteps, target = self.noise.add_to(clean)
        if self.null_label is None:
            drawn_labels = None
        else:
            dropped = torch.rand(shape, device=device) < self.label_dropout
            drawn_labels = torch.where(dropped, self.null_label, labels)
        return NoiseDraws(noisy.unflatten(0, shape), timesteps.view(shape), drawn_labels, target.unflatten(0, shape))


def mirror_half(images: torch.Tensor) -> torch.Tensor:
    """Mirror each of some images left to right with probability 1/2.

    Args:
        images (`torch.Tensor`): `(n, channels, height, width)`.
    """
    mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(mirrored, images.flip(-1), images)


def denoising_error(model: Callable[..., Any], draws: NoiseDraws) -> torch.Tensor:
    """Mean squared error of the network's prediction over all draws, a float32 scalar.

    Args:
        model (`Callable`): Called as `model(noisy, timesteps, labels)`, returns an object with `.sample`.
        draws (`NoiseDraws`): Draws with one leading dimension.
    """
    prediction = model(draws.noisy, draws.timesteps, draws.labels).sample
    return (prediction.float() - draws.target).square().mean()
