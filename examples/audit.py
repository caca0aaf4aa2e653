"""Attack DP-SGD with a network of your own, and compare the epsilon that the attack proves with the claim.

    python examples/audit.py

Canaries are records that are made to be recognized. A coin toss decides for each of them whether it is trained on, and
the attack guesses the outcome from what the mechanism released. Use public records: an audit spends privacy that no
privacy.json counts.
"""

from diffusers_dp_curriculum import Mechanism, build_scheduler, build_unet, load_image_dataset
from diffusers_dp_curriculum.auditing.audit import Audit, audit_dp_sgd
from diffusers_dp_curriculum.gradients.losses import DenoisingLoss
from diffusers_dp_curriculum.privacy.accounting import calibrate_noise_multiplier


def attack(steps: int = 40, **settings) -> Audit:
    """Train on the digits with canaries among them; `settings` are further arguments of `audit_dp_sgd`."""
    digits = load_image_dataset(dataset_name="digits")
    planned = Mechanism("dp_sgd", noise_multiplier=1.0, sample_rate=0.5, steps=steps, sensitivity=1.0)
    return audit_dp_sgd(
        build_unet(digits.resolution, digits.num_channels, digits.num_classes, block_out_channels=(8, 16)),
        DenoisingLoss(build_scheduler(), null_label=digits.num_classes),
        digits,
        noise_multiplier=calibrate_noise_multiplier(8.0, 1e-5, planned),  # the noise for epsilon 8
        sample_rate=planned.sample_rate,
        steps=steps,
        delta=1e-5,
        **settings,
    )


if __name__ == "__main__":
    audit = attack()
    print(audit)
    print("The claim is refuted." if audit.refuted else "The claim stands.")
