"""Attack a run of DP-SGD, and compare the epsilon that the attack proves with the epsilon that the ledger claims.

    # the code as it is: the bounds stay below the claim
    python examples/audit.py --output_dir dp-audit
    # half the noise that the ledger is told of: refuted
    python examples/audit.py --output_dir dp-audit-half-noise --actual_noise 0.5
    # no noise at all: refuted
    python examples/audit.py --output_dir dp-audit-no-noise --actual_noise 0

Needs a data set for company only: the canaries are its own. Leave it at the digits, or take another public one: an
audit spends privacy of its records that no privacy.json counts. Writes audit.json and audit.png to --output_dir, which
must be new or empty.
"""

import argparse
import json
import sys
from pathlib import Path

import matplotlib


matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DModel
from tqdm.auto import tqdm

from diffusers_dp_curriculum import DPCurriculumError, Mechanism, load_image_dataset
from diffusers_dp_curriculum.auditing.audit import Audit, audit_dp_sgd
from diffusers_dp_curriculum.files import check_new_or_empty
from diffusers_dp_curriculum.gradients.losses import DenoisingLoss
from diffusers_dp_curriculum.privacy.accounting import calibrate_noise_multiplier


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Attack a run of DP-SGD and bound its epsilon from below.")
    parser.add_argument("--dataset_name", help='Hub id of the data set; "digits" if nothing is given')
    parser.add_argument("--train_data_dir", help="or a directory with a data set, a public one")
    parser.add_argument("--resolution", type=int, help="resize and crop to this size")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("dp-audit"), help="new or empty; for audit.json and audit.png"
    )
    parser.add_argument("--target_epsilon", type=float, default=8.0, help="what the run claims")
    parser.add_argument("--target_delta", type=float, default=1e-5)
    parser.add_argument("--sample_rate", type=float, default=0.5, help="probability of each record, per step")
    parser.add_argument("--max_train_steps", type=int, default=40)
    parser.add_argument("--noise_multiplicity", type=int, default=1)
    parser.add_argument("--gradient_canaries", type=int, default=4000, help="read from every release (white-box)")
    parser.add_argument("--image_canaries", type=int, default=400, help="read from the final losses (black-box)")
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument(
        "--actual_noise",
        type=float,
        default=1.0,
        help="break the mechanism on purpose: add only this part of the noise that the ledger is told of",
    )
    return parser.parse_args()


def make_unet(dataset) -> UNet2DModel:
    """A small network: what is audited is the mechanism, which is the same for all networks."""
    return UNet2DModel(
        sample_size=dataset.resolution,
        in_channels=dataset.num_channels,
        out_channels=dataset.num_channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        num_class_embeds=None if dataset.num_classes is None else dataset.num_classes + 1,
    )


def plot(audit: Audit) -> plt.Figure:
    """For each attack the scores of present and absent canaries; beside them the bounds under or over the claim."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    for axis, bound in zip(axes, audit.bounds, strict=False):
        scores, present = audit.scores[bound.attack].numpy(), audit.present[bound.attack].numpy()
        bins = np.histogram_bin_edges(scores, bins=50)
        axis.hist(scores[present], bins, alpha=0.6, label="present")
        axis.hist(scores[~present], bins, alpha=0.6, label="absent")
        axis.set(title=f"{bound.attack}: {bound.correct / bound.guesses:.1%} of guesses right", yticks=[])
        axis.set_xlabel("score of a canary")
        axis.legend(frameon=False)
    names = [bound.attack for bound in audit.bounds]
    proved = [bound.epsilon_gaussian for bound in audit.bounds]
    bars = axes[2].bar(names, proved, color=["tab:red" if e > audit.claimed_epsilon else "tab:green" for e in proved])
    axes[2].bar_label(bars, fmt="%.2f")
    axes[2].axhline(audit.claimed_epsilon, color="black", linestyle="--")
    axes[2].text(1.45, audit.claimed_epsilon, "claim", va="bottom", ha="right")
    axes[2].set(title="epsilon: proved at least, claimed at most", ylim=(0, 1.25 * max(*proved, audit.claimed_epsilon)))
    return figure


def main() -> int:
    """Train, attack, report; return 1 if the claim is refuted."""
    args = parse_args()
    check_new_or_empty(args.output_dir)
    torch.set_num_threads(1)  # so small a network is slower on two, and many times so on a busy machine
    if args.dataset_name is None and args.train_data_dir is None:
        args.dataset_name = "digits"
    dataset = load_image_dataset(
        dataset_name=args.dataset_name,
        train_data_dir=args.train_data_dir,
        resolution=args.resolution,
        accept_found_classes=True,  # the records are public
    )
    planned = Mechanism("dp_sgd", 1.0, args.sample_rate, args.max_train_steps, 1.0)
    noise_multiplier = calibrate_noise_multiplier(args.target_epsilon, args.target_delta, planned)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    with tqdm(total=args.max_train_steps, desc="DP-SGD with canaries") as progress:
        audit = audit_dp_sgd(
            make_unet(dataset),
            DenoisingLoss(
                DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction"),
                null_label=dataset.num_classes,
            ),
            dataset,
            noise_multiplier=noise_multiplier,
            sample_rate=args.sample_rate,
            steps=args.max_train_steps,
            delta=args.target_delta,
            noise_multiplicity=args.noise_multiplicity,
            gradient_canaries=args.gradient_canaries,
            image_canaries=args.image_canaries,
            confidence=args.confidence,
            actual_noise=args.actual_noise,
            after_step=progress.update,
        )
    (args.output_dir / "audit.json").write_text(
        json.dumps({"actual_noise": args.actual_noise, **audit.to_dict()}, indent=2) + "\n", encoding="utf-8"
    )
    plot(audit).savefig(args.output_dir / "audit.png", dpi=120)
    if args.actual_noise != 1:
        print(f"Broken on purpose: {args.actual_noise:g} of the noise that the ledger was told of.")
    print(audit)
    print(f"Details are in {args.output_dir / 'audit.json'}, the picture in {args.output_dir / 'audit.png'}.")
    return 1 if audit.refuted else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DPCurriculumError as error:
        sys.exit(f"error: {error}")
