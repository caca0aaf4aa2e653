"""Attack a run with a network of your own, and compare the epsilon that the attack proves with the claim.

    python examples/audit.py

Canaries are records that are made to be recognized. A coin toss decides for each of them whether it is trained on, and
the attack guesses the outcome from what the mechanisms released. Use public records: an audit spends privacy that no
privacy.json counts.
"""

from diffusers_dp_curriculum import Mechanism, build_scheduler, build_unet, load_image_dataset
from diffusers_dp_curriculum.auditing.audit import Audit, audit_run
from diffusers_dp_curriculum.gradients.losses import DenoisingLoss
from diffusers_dp_curriculum.mechanisms.central_images import CentralImageQueries
from diffusers_dp_curriculum.mechanisms.frequency_features import FrequencyFeatureQuery
from diffusers_dp_curriculum.privacy.accounting import calibrate_noise_multiplier


def attack(steps: int = 40, **settings) -> Audit:
    """Query and train on the digits with canaries among them; `settings` are further arguments of `audit_run`."""
    digits = load_image_dataset(dataset_name="digits")
    queries = [CentralImageQueries(noise_multiplier=5.0), FrequencyFeatureQuery(1000, noise_multiplier=2.5)]
    planned = Mechanism("dp_sgd", noise_multiplier=1.0, sample_rate=0.5, steps=steps, sensitivity=1.0)
    before = [query.mechanism(digits.info) for query in queries]
    return audit_run(
        build_unet(digits.resolution, digits.num_channels, digits.num_classes, block_out_channels=(8, 16)),
        DenoisingLoss(build_scheduler(), null_label=digits.num_classes),
        digits,
        queries=queries,
        noise_multiplier=calibrate_noise_multiplier(8.0, 1e-5, planned, before),  # the noise for epsilon 8 in all
        sample_rate=planned.sample_rate,
        steps=steps,
        delta=1e-5,
        **settings,
    )


if __name__ == "__main__":
    audit = attack()
    print(audit)
    print("The claim is refuted." if audit.refuted else "The claim stands.")
