"""The white-box attack on queries before DP-SGD: what their noisy sums say about each canary."""

import math
from dataclasses import replace

import torch

from ..data.image_dataset import ImageDataset
from ..mechanisms.central_images import CentralImageQueries
from ..mechanisms.randomness import MechanismRandomness
from ..mechanisms.releases import Queries
from ..privacy.ledger import PrivacyLedger
from .canaries import Canaries


CANARIES_AT_ONCE = 200


class ScaledNoise(MechanismRandomness):
    """Noise of which a part is added, to break a mechanism on purpose.

    Args:
        factor (`float`): The factor of the standard deviation, >= 0.
    """

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def normal(self, shape: torch.Size | tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
        """Normal numbers with standard deviation `factor`, as in [`MechanismRandomness.normal`]."""
        return self.factor * super().normal(shape, generator)


def attack_queries(
    queries: Queries, canaries: Canaries, ledger: PrivacyLedger, randomness: MechanismRandomness
) -> torch.Tensor:
    """Make queries of the records and of the canaries that are present, and score the gradient canaries.

    The attacker knows all records, and what each canary would add to the sums, as differential privacy allows. From the
    noisy sums it subtracts what it expects of all others, and compares the rest with what the canary would add: the
    score is the log likelihood ratio of the canary being present against absent.

    Args:
        queries (`Queries`): The queries of a stage before DP-SGD.
        canaries (`Canaries`): The records and the canaries.
        ledger (`PrivacyLedger`): The ledger of the audited run.
        randomness (`MechanismRandomness`): The source of sampling and noise.

    Returns:
        `torch.Tensor`: The scores, `(gradient canaries,)` in float64; large for a canary that seems to be present.
    """
    mechanism = queries.mechanism(canaries.records.info)
    released = queries.noisy_sums(canaries.those_present, ledger, randomness).flatten(2)
    rate = mechanism.sample_rate
    expected = rate * (_exact_sums(queries, canaries.known) + _exact_sums(queries, canaries.all) / 2)
    rest = released - expected
    of_gradients, scores = canaries.of_gradients, []
    for some in torch.arange(len(of_gradients)).split(CANARIES_AT_ONCE):
        labels = of_gradients.labels[some]
        # Each canary in a class of its own: a row of the sums is what this canary adds.
        alone = ImageDataset(of_gradients.images[some], torch.arange(len(some)), [f"{number}" for number in some])
        added = _exact_sums(queries, alone)
        square = added.square().sum(1)
        # It was expected with probability 1/2 itself.
        product = (rest[:, labels] * added).sum(2) + rate / 2 * square
        if_sampled = (product - square / 2) / (mechanism.noise_multiplier * mechanism.sensitivity) ** 2
        scores.append(mixed_log_ratio(if_sampled, rate).sum(0))
    return torch.cat(scores)


def mixed_log_ratio(if_sampled: torch.Tensor, sample_rate: float) -> torch.Tensor:
    """The log likelihood ratio of a record that takes part with some probability against one that never does.

    Args:
        if_sampled (`torch.Tensor`): The log likelihood ratio of a record that takes part.
        sample_rate (`float`): The probability in (0, 1] that it does.
    """
    never = torch.tensor(1 - sample_rate, dtype=torch.float64).log()
    return torch.logaddexp(never, math.log(sample_rate) + if_sampled)


def _exact_sums(queries: Queries, records: ImageDataset) -> torch.Tensor:
    """The sums over all units without noise, `(classes, values)`."""
    if isinstance(queries, CentralImageQueries):
        queries = replace(queries, images_per_class=1, sample_rate=1.0)
    ledger = PrivacyLedger(delta=1e-5, unit=records.units.name)
    return queries.noisy_sums(records, ledger, ScaledNoise(0.0))[0].flatten(1)
