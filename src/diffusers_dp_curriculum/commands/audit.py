"""Attack a run of DP-SGD, and compare the epsilon that the attack proves with the epsilon that the ledger claims.

    # the code as it is: the bounds stay below the claim
    dp-curriculum audit --output_dir dp-audit
    # half the noise that the ledger records: refuted
    dp-curriculum audit --output_dir dp-audit-half-noise --actual_noise 0.5
    # no noise at all: refuted
    dp-curriculum audit --output_dir dp-audit-no-noise --actual_noise 0

The attack targets canaries that it makes itself; the data set only supplies the other records. Keep the default digits
or use another public data set, because an audit spends privacy of the records that no privacy.json counts. Writes
audit.json and audit.png to --output_dir, which must be new or empty.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import check_new_or_empty, check_outside


if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..auditing.audit import Audit


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the flags."""
    parser = argparse.ArgumentParser(
        prog="dp-curriculum audit", description="Attack a run of DP-SGD and bound its epsilon from below."
    )
    parser.add_argument("--dataset_name", help='Hub id of a public data set; "digits" by default')
    parser.add_argument("--train_data_dir", help="directory with a public data set, instead of --dataset_name")
    parser.add_argument(
        "--accept_left_out_files", action="store_true", help="leave out files that may be images but cannot be read"
    )
    parser.add_argument("--user_column", help="column that says whose image it is: a canary is then a user")
    parser.add_argument(
        "--user_directory_level", type=int, help="level of the directories that say whose image it is, 1 for the first"
    )
    parser.add_argument("--resolution", type=int, help="resize and crop images to this size")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("dp-audit"), help="new or empty directory for audit.json and audit.png"
    )
    parser.add_argument("--target_epsilon", type=float, default=8.0, help="epsilon that the run claims")
    parser.add_argument("--target_delta", type=float, default=1e-5, help="delta that the run claims")
    parser.add_argument("--sample_rate", type=float, default=0.5, help="probability of each record or user, per step")
    parser.add_argument("--max_train_steps", type=int, default=40, help="DP-SGD steps")
    parser.add_argument("--noise_multiplicity", type=int, default=1, help="noise draws per record or user, and step")
    parser.add_argument(
        "--gradient_canaries",
        type=int,
        default=4000,
        help="number of canaries of the white-box attack, which reads every release",
    )
    parser.add_argument(
        "--image_canaries",
        type=int,
        default=400,
        help="number of canaries of the black-box attack, which reads the final losses",
    )
    parser.add_argument("--confidence", type=float, default=0.95, help="confidence of the proved bounds")
    parser.add_argument(
        "--actual_noise",
        type=float,
        default=1.0,
        help="break the mechanism on purpose: add only this share of the noise that the ledger records",
    )
    return parser


def plot(audit: "Audit") -> "Figure":
    """Draw the scores of present and absent canaries for each attack, and the proved bounds next to the claim."""
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.2), layout="constrained")
    axes = figure.subplots(1, 3)
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, attack and report; return the exit status, 1 if the claim is refuted."""
    args = make_parser().parse_args(arguments)
    check_new_or_empty(args.output_dir)
    if args.train_data_dir is not None:
        check_outside(args.output_dir, Path(args.train_data_dir))

    import torch
    from tqdm.auto import tqdm

    from ..auditing.audit import audit_dp_sgd
    from ..data.image_dataset import load_image_dataset
    from ..gradients.losses import DenoisingLoss
    from ..privacy.accounting import Mechanism, calibrate_noise_multiplier
    from ..training.networks import build_scheduler, build_unet

    torch.set_num_threads(1)  # two threads slow down so small a network, and very much on a busy machine
    if args.dataset_name is None and args.train_data_dir is None:
        args.dataset_name = "digits"
    dataset = load_image_dataset(
        dataset_name=args.dataset_name,
        train_data_dir=args.train_data_dir,
        resolution=args.resolution,
        user_column=args.user_column,
        user_directory_level=args.user_directory_level,
        accept_found_classes=True,  # the records are public
        accept_left_out_files=args.accept_left_out_files,
    )
    planned = Mechanism("dp_sgd", 1.0, args.sample_rate, args.max_train_steps, 1.0)
    noise_multiplier = calibrate_noise_multiplier(args.target_epsilon, args.target_delta, planned)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    with tqdm(total=args.max_train_steps, desc="DP-SGD with canaries") as progress:
        audit = audit_dp_sgd(
            # A small network is enough, because the audited mechanism is the same for all networks.
            build_unet(dataset.resolution, dataset.num_channels, dataset.num_classes, block_out_channels=(8, 16)),
            DenoisingLoss(build_scheduler(), null_label=dataset.num_classes),
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
        print(f"Broken on purpose: {args.actual_noise:g} of the noise that the ledger records.")
    print(audit)
    print(f"Details are in {args.output_dir / 'audit.json'}, the picture in {args.output_dir / 'audit.png'}.")
    return 1 if audit.refuted else 0


if __name__ == "__main__":
    from ..cli import run

    sys.exit(run("audit"))
