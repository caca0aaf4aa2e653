"""Audits a run: attacks its mechanisms, and computes the epsilon that the success of the attack proves.

Canaries are records that are made to be recognized. A coin toss decides which of them are present in training; the
attack scores each canary by its traces in the releases, and guesses for those with the clearest traces whether they
were present. Epsilon-DP limits how often guesses can be right, so guesses that are right too often prove a *lower*
bound on epsilon. A claim is refuted if the bound is above it. One run is enough, because many canaries replace many
runs (Steinke et al. 2023, "Privacy Auditing with One (1) Training Run", arXiv:2305.08846).

An audit finds mistakes; it cannot prove a claim, which only the accounting does. Use public records: what an audit
reveals about its records is not counted in any privacy.json.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from opacus.optimizers import DPOptimizer

from ..arithmetic import own_arithmetic
from ..checks import CONFIDENCE, NUM_CANARIES, at_least
from ..data.image_dataset import ImageDataset
from ..gradients.losses import DenoisingLoss, denoising_error
from ..gradients.per_record_gradients import per_record_gradients
from ..mechanisms.dp_sgd import DPSGD, Records, dp_sgd_mechanism
from ..mechanisms.releases import Queries
from ..privacy.accounting import Mechanism, compute_epsilon
from ..privacy.ledger import PrivacyLedger
from ..units import RECORD
from .bounds import one_run_bound, trade_off_bound
from .canaries import Canaries
from .query_attack import ScaledNoise, attack_queries, mixed_log_ratio


GUESSED = 0.25  # share of canaries with a guess: those with the clearest traces, half present and half absent
CANARY_NORM = 100.0  # norm of a canary's gradient over the clipping norm: without clipping it would be obvious
LOSS_DRAWS = 64  # noise draws for each image over which a black-box score is averaged
WHITE_BOX, BLACK_BOX = "white-box", "black-box"


@dataclass(frozen=True)
class AuditBound:
    """The epsilon that one attack proves.

    Args:
        attack (`str`):
            `"white-box"` (reads every release of the run), `"white-box: NAME"` (reads those of one mechanism) or
            `"black-box"` (reads the final network's losses).
        claimed_epsilon (`float`): The epsilon of what the attack reads, according to the ledger.
        canaries (`int`): Number of canaries, each present with probability 1/2.
        guesses (`int`): Number of canaries for which a guess was made.
        correct (`int`): Number of right guesses.
        epsilon_any_mechanism (`float`): Lower bound that holds for any mechanism, see [`one_run_bound`].
        epsilon_gaussian (`float`): Lower bound for mechanisms of the claimed kind, see [`trade_off_bound`].
    """

    attack: str
    claimed_epsilon: float
    canaries: int
    guesses: int
    correct: int
    epsilon_any_mechanism: float
    epsilon_gaussian: float


@dataclass(frozen=True)
class Audit:
    """The outcome of [`audit_run`].

    Args:
        claimed_epsilon (`float`): The epsilon of the run according to the ledger.
        delta (`float`): Delta of claim and bounds.
        confidence (`float`): Probability with which a bound stays below a claim that is true.
        mechanisms (`tuple[Mechanism, ...]`): What was executed according to the ledger; DP-SGD is the last.
        bounds (`tuple[AuditBound, ...]`):
            One bound per attack: the white-box attack on the whole run, on each of its mechanisms if there are several,
            and the black-box attack.
        scores (`dict[str, torch.Tensor]`):
            For the `"white-box"` and the `"black-box"` attack on the whole run the scores of the canaries; a large
            score means present.
        present (`dict[str, torch.Tensor]`): For both attacks a boolean per canary: whether it was present.
        unit (`str`, *optional*, defaults to `"record"`): The unit of privacy, `"record"` or `"user"`: what a canary is.
    """

    claimed_epsilon: float
    delta: float
    confidence: float
    mechanisms: tuple[Mechanism, ...]
    bounds: tuple[AuditBound, ...]
    scores: dict[str, torch.Tensor]
    present: dict[str, torch.Tensor]
    unit: str = RECORD

    @property
    def refuted(self) -> bool:
        """`bool`: Whether a white-box attack proves more than the claim, by its bound for the claimed mechanisms.

        A mechanism that is broken can be hidden in the sum over a run by the noise of another one: so each mechanism is
        attacked alone as well. The bounds share `1 - confidence` among them, such that a true claim is refuted with
        that probability at most.
        """
        return any(bound.epsilon_gaussian > bound.claimed_epsilon for bound in self.bounds if bound.attack != BLACK_BOX)

    def to_dict(self) -> dict[str, Any]:
        """Everything except scores and presence, as values that JSON can hold."""
        return {
            "unit": self.unit,
            "claimed_epsilon": self.claimed_epsilon,
            "delta": self.delta,
            "confidence": self.confidence,
            "refuted": self.refuted,
            "mechanisms": [asdict(mechanism) for mechanism in self.mechanisms],
            "bounds": [asdict(bound) for bound in self.bounds],
        }

    def __str__(self) -> str:
        width = max(len(bound.attack) for bound in self.bounds)
        lines = [f"  {'attack':{width}}  canaries  guesses  correct   bound, any mechanism   bound, Gaussian   claim"]
        lines += [
            f"  {bound.attack:{width}}  {bound.canaries:8}  {bound.guesses:7}  {bound.correct / bound.guesses:7.1%}   "
            f"epsilon >= {bound.epsilon_any_mechanism:9.2f}   epsilon >= {bound.epsilon_gaussian:4.2f}   "
            f"<= {bound.claimed_epsilon:.2f}"
            for bound in self.bounds
        ]
        verdict = "REFUTED: a white-box attack proves more" if self.refuted else "not refuted"
        lines += [
            f"  claim       epsilon <= {self.claimed_epsilon:.2f} at delta {self.delta:g} for one {self.unit}: "
            f"{verdict} (confidence {self.confidence:.0%})"
        ]
        return "\n".join(lines)


@own_arithmetic()
def audit_run(
    unet: torch.nn.Module,
    loss: DenoisingLoss,
    records: ImageDataset,
    *,
    noise_multiplier: float,
    queries: Sequence[Queries] = (),
    sample_rate: float = 0.5,
    steps: int = 40,
    max_grad_norm: float = 1.0,
    delta: float = 1e-5,
    noise_multiplicity: int = 1,
    max_physical_batch_size: int = 64,
    learning_rate: float = 1e-3,
    gradient_canaries: int = 4000,
    image_canaries: int = 400,
    confidence: float = 0.95,
    actual_noise: float = 1.0,
    encode: Callable[[ImageDataset], Records] | None = None,
    after_step: Callable[[], object] = lambda: None,
) -> Audit:
    """Query and train by the library's own mechanisms on `records` and canaries, and attack what they release.

    There are two kinds of canaries. A *gradient canary* has a chosen gradient, far above the clipping norm and in a
    direction that no other record has: the worst case that the claim has to cover. In queries before DP-SGD its image
    adds as much as an image can. Its score is the likelihood ratio of everything that was released (white-box). An
    *image canary* is an image of noise. Its score is the denoising loss of
    the trained network on the image (black-box), which anyone who has the model can compute. If `records` has users, a
    canary is a user, and an image canary has several images.

    Args:
        unet (`torch.nn.Module`):
            A `UNet2DModel`. A copy of it is trained, with an additional parameter `canaries` that its output does not
            use.
        loss (`DenoisingLoss`): Makes noise draws from images.
        records (`ImageDataset`):
            The records among which the canaries are placed. They must be public, because no privacy.json counts what
            the audit reveals about them.
        noise_multiplier (`float`): The noise multiplier of DP-SGD that the ledger records.
        queries (`Sequence[Queries]`, *optional*):
            The queries that the run makes before DP-SGD, in order.
        sample_rate (`float`, *optional*, defaults to 0.5): Probability in (0, 1] of each record, per step.
        steps (`int`, *optional*, defaults to 40): DP-SGD steps. Few steps with many records show mistakes most clearly.
        max_grad_norm (`float`, *optional*, defaults to 1.0): Clipping norm.
        delta (`float`, *optional*, defaults to 1e-5): Delta of claim and bounds.
        noise_multiplicity (`int`, *optional*, defaults to 1): Noise draws per record and step.
        max_physical_batch_size (`int`, *optional*, defaults to 64): Records whose gradients are in memory at a time.
        learning_rate (`float`, *optional*, defaults to 1e-3): Learning rate of Adam.
        gradient_canaries (`int`, *optional*, defaults to 4000):
            Number of gradient canaries, at least 100. More canaries can prove larger bounds.
        image_canaries (`int`, *optional*, defaults to 400): Number of image canaries, at least 100.
        confidence (`float`, *optional*, defaults to 0.95): Confidence of each bound, from 0.5 to below 1.
        actual_noise (`float`, *optional*, defaults to 1.0):
            The factor of the noise that all mechanisms really add, >= 0. Any other value than 1 breaks them on purpose,
            to show that an audit detects it.
        encode (`Callable`, *optional*):
            For a network of latents, encodes the records and canaries that DP-SGD reads. The queries read pixels.
        after_step (`Callable`, *optional*): Called after each step.

    Returns:
        `Audit`: The claim, and what the attacks prove.

    Raises:
        InputError: If a value is out of range.
    """
    NUM_CANARIES.check("gradient_canaries", gradient_canaries)
    NUM_CANARIES.check("image_canaries", image_canaries)
    CONFIDENCE.check("confidence", confidence)
    at_least(0).check("actual_noise", actual_noise)
    canaries = Canaries(records, image_canaries, gradient_canaries)
    number = len(canaries.records.units)
    mechanism = dp_sgd_mechanism(noise_multiplier, round(sample_rate * number), number, steps, max_grad_norm)
    ledger = PrivacyLedger(delta, unit=records.units.name)
    randomness = ScaledNoise(actual_noise)
    by_mechanism = [attack_queries(query, canaries, ledger, randomness) for query in queries]
    by_mechanism.append(torch.zeros(gradient_canaries, dtype=torch.float64))
    unet = copy.deepcopy(unet)
    unet.register_parameter(
        "canaries", torch.nn.Parameter(torch.zeros(gradient_canaries, device=next(unet.parameters()).device))
    )
    optimizer = torch.optim.Adam([p for p in unet.parameters() if p.requires_grad], lr=learning_rate)
    unet.train()
    encoded = canaries.records if encode is None else encode(canaries.records)
    dp_sgd = _AuditedDPSGD(
        unet,
        optimizer,
        loss,
        encoded,
        mechanism,
        ledger,
        noise_multiplicity=noise_multiplicity,
        max_physical_batch_size=max_physical_batch_size,
        gradients_of=lambda draws: per_record_gradients(unet, draws, "folded"),
        randomness=randomness,
    )
    dp_sgd.canaries = canaries

    def read_release(dp_optimizer: DPOptimizer) -> None:
        """Add each canary's log likelihood ratio, present against absent, of what the step releases."""
        released = unet.canaries.grad.cpu().double() * dp_optimizer.expected_batch_size / max_grad_norm
        if_sampled = (released - 0.5) / mechanism.noise_multiplier**2
        by_mechanism[-1].add_(mixed_log_ratio(if_sampled, mechanism.sample_rate))

    dp_sgd.optimizer.attach_step_hook(read_release)
    for _ in range(steps):
        dp_sgd.step()
        after_step()
    mechanisms = tuple(ledger.mechanisms)
    attacks = {WHITE_BOX: (torch.stack(by_mechanism).sum(0), mechanisms)}
    if queries:
        for scores, each in zip(by_mechanism, mechanisms, strict=True):
            attacks[f"{WHITE_BOX}: {each.name}"] = (scores, (each,))
    share = (1 - confidence) / len(attacks)
    bounds = [
        bound(name, scores, canaries.gradient_present, read, delta, 1 - share)
        for name, (scores, read) in attacks.items()
    ]
    black_box = -_losses(unet, loss, encoded, canaries.first_image, canaries.first_gradient)
    bounds.append(bound(BLACK_BOX, black_box, canaries.image_present, mechanisms, delta, confidence))
    return Audit(
        ledger.epsilon(),
        delta,
        confidence,
        mechanisms,
        tuple(bounds),
        {WHITE_BOX: attacks[WHITE_BOX][0], BLACK_BOX: black_box},
        {WHITE_BOX: canaries.gradient_present, BLACK_BOX: canaries.image_present},
        records.units.name,
    )


def bound(
    attack: str,
    scores: torch.Tensor,
    present: torch.Tensor,
    mechanisms: Sequence[Mechanism],
    delta: float,
    confidence: float,
) -> AuditBound:
    """Guess which canaries are present, and bound epsilon by the number of right guesses.

    Args:
        attack (`str`): The name of the attack.
        scores (`torch.Tensor`): Scores of the canaries, `(n,)`; a large score means present.
        present (`torch.Tensor`): Whether each canary is present, boolean `(n,)`.
        mechanisms (`Sequence[Mechanism]`): The claimed mechanisms, whose releases the attack reads.
        delta (`float`): Delta of the bounds.
        confidence (`float`): Confidence of the bounds.
    """
    order = scores.argsort()
    guesses = round(GUESSED * len(scores) / 2)
    correct = int(present[order[-guesses:]].sum() + (~present[order[:guesses]]).sum())
    outcome = (len(scores), 2 * guesses, correct)
    return AuditBound(
        attack,
        compute_epsilon(mechanisms, delta),
        *outcome,
        one_run_bound(*outcome, delta, confidence),
        trade_off_bound(*outcome, mechanisms, delta, confidence),
    )


class _AuditedDPSGD(DPSGD):
    """The unchanged mechanism, except that the gradients of canaries are set here."""

    canaries: Canaries

    def _set_grad_samples(self, piece: torch.Tensor) -> None:
        with_gradient = piece[piece < self.canaries.first_gradient]
        chosen = piece[piece >= self.canaries.first_gradient]
        super()._set_grad_samples(with_gradient)
        present = self.canaries.present.to(self.device)
        for name, p in self.model.named_parameters():
            if not p.requires_grad:
                continue
            p.grad_sample[~present[with_gradient]] = 0
            canary_gradients = p.new_zeros(len(chosen), *p.shape)
            if name == "canaries":
                directions = chosen - self.canaries.first_gradient
                canary_gradients[range(len(chosen)), directions] = CANARY_NORM * self.mechanism.sensitivity
                canary_gradients[~present[chosen]] = 0
            p.grad_sample = torch.cat([p.grad_sample, canary_gradients])


@torch.no_grad()
def _losses(unet: torch.nn.Module, loss: DenoisingLoss, records: Records, first: int, last: int) -> torch.Tensor:
    """The denoising loss of the units `first` to `last - 1`, averaged over their records and many noise draws."""
    unet.eval()
    device = next(unet.parameters()).device
    losses = []
    for number in range(first, last):
        index, _ = records.units.records_of(torch.tensor([number]))
        draws = loss.draw(*records.batch(index, device), LOSS_DRAWS)
        losses.append(denoising_error(unet, draws.flatten()).cpu())
    return torch.stack(losses)
