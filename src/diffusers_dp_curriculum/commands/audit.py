"""Attack a whole run, and compare the epsilon that the attack proves with the epsilon that the ledger claims.

    # the code as it is: the bounds stay below the claim
    dp-curriculum audit --output_dir dp-audit
    # half the noise that the ledger records: refuted
    dp-curriculum audit --output_dir dp-audit-half-noise --actual_noise 0.5
    # no noise at all: refuted
    dp-curriculum audit --output_dir dp-audit-no-noise --actual_noise 0

The run has the queries and the noise that `dp-curriculum train` would choose, and then steps of DP-SGD.
`--central_statistic none --frequency_features 0` attacks DP-SGD alone.

The attack targets canaries that it makes itself; the data set only supplies the other records. Keep the default digits
or use another public data set, because an audit spends privacy of the records that no privacy.json counts. Writes
a report (audit.md), audit.json and audit.png to --output_dir, which must be new or empty.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..checks import (
    AUTO,
    CONFIDENCE,
    DELTA,
    FREQUENCY_FEATURES_OR_NONE,
    NUM_CANARIES,
    SAMPLE_RATE,
    STATISTIC,
    above,
    at_least,
    auto_or,
)
from ..files import check_data_dir, check_new_or_empty
from ..names import check_autoencoder_name, check_dataset_name
from ..options import declared_options
from .data_arguments import DataArguments
from .flags import add_options, in_range, number_or_auto, with_defaults


if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..auditing.audit import Audit


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the flags."""
    parser = argparse.ArgumentParser(
        prog="dp-curriculum audit", description="Attack a whole run and bound its epsilon from below."
    )
    add_options(parser, DataArguments)
    parser.add_argument(
        "--output_dir", type=Path, default=Path("dp-audit"), help="new or empty directory for the report"
    )
    parser.add_argument(
        "--target_epsilon", type=float, action=in_range(above(0)), default=8.0, help="epsilon that the run claims"
    )
    parser.add_argument(
        "--target_delta", type=float, action=in_range(DELTA), default=1e-5, help="delta that the run claims"
    )
    parser.add_argument(
        "--sample_rate",
        type=float,
        action=in_range(SAMPLE_RATE),
        default=0.5,
        help="probability of each record or user, per step",
    )
    parser.add_argument(
        "--central_statistic",
        choices=[*STATISTIC.values, "none"],
        default="mean",
        help="central images that the run queries first; none for no query",
    )
    parser.add_argument(
        "--frequency_features",
        type=number_or_auto(int),
        action=in_range(auto_or(FREQUENCY_FEATURES_OR_NONE)),
        default=AUTO,
        help="frequency features that the run queries next; 0 for no query, and auto for as many as training chooses",
    )
    parser.add_argument(
        "--vae_name_or_path", metavar="TEXT", help="autoencoder of the run: DP-SGD is attacked on a network of latents"
    )
    parser.add_argument("--max_train_steps", type=int, action=in_range(at_least(1)), default=40, help="DP-SGD steps")
    parser.add_argument(
        "--noise_multiplicity",
        type=int,
        action=in_range(at_least(1)),
        default=1,
        help="noise draws per record or user, and step",
    )
    parser.add_argument(
        "--gradient_canaries",
        type=int,
        action=in_range(NUM_CANARIES),
        default=4000,
        help="number of canaries of the white-box attack, which reads every release",
    )
    parser.add_argument(
        "--image_canaries",
        type=int,
        action=in_range(NUM_CANARIES),
        default=400,
        help="number of canaries of the black-box attack, which reads the final losses",
    )
    parser.add_argument(
        "--confidence", type=float, action=in_range(CONFIDENCE), default=0.95, help="confidence of the proved bounds"
    )
    parser.add_argument(
        "--actual_noise",
        type=float,
        action=in_range(at_least(0)),
        default=1.0,
        help="break the mechanism on purpose: add only this share of the noise that the ledger records",
    )
    return with_defaults(parser)


def plot(audit: "Audit") -> "Figure":
    """Draw the scores of present and absent canaries for each attack, and the proved bounds next to the claim."""
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.2), layout="constrained")
    axes = figure.subplots(1, 3)
    drawn = [bound for bound in audit.bounds if bound.attack in audit.scores]  # those on the whole run
    for axis, bound in zip(axes, drawn, strict=False):
        scores, present = audit.scores[bound.attack].numpy(), audit.present[bound.attack].numpy()
        bins = np.histogram_bin_edges(scores, bins=50)
        axis.hist(scores[present], bins, alpha=0.6, label="present")
        axis.hist(scores[~present], bins, alpha=0.6, label="absent")
        axis.set(title=f"{bound.attack}: {bound.correct / bound.guesses:.1%} of guesses right", yticks=[])
        axis.set_xlabel("score of a canary")
        axis.legend(frameon=False)
    names = [bound.attack.removeprefix("white-box: ").replace("_", "\n") for bound in audit.bounds]
    proved = [bound.epsilon_gaussian for bound in audit.bounds]
    claims = [bound.claimed_epsilon for bound in audit.bounds]
    colours = ["tab:red" if e > claim else "tab:green" for e, claim in zip(proved, claims, strict=True)]
    bars = axes[2].bar(names, proved, color=colours)
    axes[2].bar_label(bars, fmt="%.2f", fontsize=8)
    axes[2].hlines(claims, np.arange(len(claims)) - 0.4, np.arange(len(claims)) + 0.4, color="black", linestyle="--")
    axes[2].tick_params(axis="x", labelsize=8)
    axes[2].set(title="epsilon: proved (bars), claimed (lines)", ylim=(0, 1.25 * max(*proved, *claims)))
    return figure


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, attack and report; return the exit status, 1 if the claim is refuted."""
    args = make_parser().parse_args(arguments)
    if args.dataset_name is None and args.train_data_dir is None:
        args.dataset_name = "digits"
    data = DataArguments(**{option.name: getattr(args, option.name) for option in declared_options(DataArguments)})
    check_new_or_empty(args.output_dir)
    if data.dataset_name is not None:
        check_dataset_name(data.dataset_name)
    if data.train_data_dir is not None:
        check_data_dir(Path(data.train_data_dir), args.output_dir)
    if args.vae_name_or_path is not None:
        check_autoencoder_name(args.vae_name_or_path)

    from dataclasses import replace
    from functools import partial

    import torch
    from tqdm.auto import tqdm

    from ..auditing.audit import audit_run
    from ..auditing.report import describe_audit
    from ..config import DPCurriculumConfig
    from ..data.latents import encode_records
    from ..gradients.losses import DenoisingLoss
    from ..privacy.accounting import Mechanism, calibrate_noise_multiplier
    from ..training.autoencoder import find_autoencoder
    from ..training.networks import build_scheduler, build_unet
    from ..training.planning import choose_queries
    from ..training.stages import warm_up_stages

    torch.set_num_threads(1)  # two threads slow down so small a network, and very much on a busy machine
    dataset = data.load(accept_found_classes=True)  # the records are public
    info, canaries = dataset.info, args.gradient_canaries + args.image_canaries
    numbers = {"num_users": info.num_units + canaries} if info.num_users else {"num_records": info.num_units + canaries}
    seen, encode = info, None
    if args.vae_name_or_path is not None:
        autoencoder = find_autoencoder(args.vae_name_or_path).load(info)
        seen, encode = autoencoder.latent_info, partial(encode_records, encoder=autoencoder)
    config = DPCurriculumConfig(
        target_epsilon=args.target_epsilon,
        target_delta=args.target_delta,
        central_statistic=args.central_statistic,
        frequency_features=args.frequency_features,
    )
    config, _ = choose_queries(config, replace(info, **numbers))
    queries = [stage.queries for stage in warm_up_stages(config) if stage.queries is not None]
    planned = Mechanism("dp_sgd", 1.0, args.sample_rate, args.max_train_steps, 1.0)
    noise_multiplier = calibrate_noise_multiplier(
        args.target_epsilon, args.target_delta, planned, [query.mechanism(info) for query in queries]
    )
    args.output_dir.mkdir(parents=True, exist_ok=True)
    with tqdm(total=args.max_train_steps, desc="DP-SGD with canaries") as progress:
        audit = audit_run(
            # A small network is enough, because the audited mechanisms are the same for all networks.
            build_unet(seen.resolution, seen.num_channels, seen.num_classes, block_out_channels=(8, 16)),
            DenoisingLoss(build_scheduler(), null_label=dataset.num_classes),
            dataset,
            noise_multiplier=noise_multiplier,
            queries=queries,
            sample_rate=args.sample_rate,
            steps=args.max_train_steps,
            delta=args.target_delta,
            noise_multiplicity=args.noise_multiplicity,
            gradient_canaries=args.gradient_canaries,
            image_canaries=args.image_canaries,
            confidence=args.confidence,
            actual_noise=args.actual_noise,
            encode=encode,
            after_step=progress.update,
        )
    (args.output_dir / "audit.json").write_text(
        json.dumps({"actual_noise": args.actual_noise, **audit.to_dict()}, indent=2) + "\n", encoding="utf-8"
    )
    plot(audit).savefig(args.output_dir / "audit.png", dpi=120)
    report = describe_audit(audit, args.actual_noise, "audit.png")
    (args.output_dir / "audit.md").write_text(report, encoding="utf-8")
    if args.actual_noise != 1:
        print(f"Broken on purpose: {args.actual_noise:g} of the noise that the ledger records.")
    print(audit)
    print(f"The report is {args.output_dir / 'audit.md'}, its numbers are in {args.output_dir / 'audit.json'}.")
    return 1 if audit.refuted else 0


if __name__ == "__main__":
    from ..cli import run

    sys.exit(run("audit"))
