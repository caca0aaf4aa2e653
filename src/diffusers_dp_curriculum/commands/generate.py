"""Generate an image data set from a trained pipeline.

    dp-curriculum generate my-dp-model --images_per_class 1000 --output_dir my-synthetic-data

The result can be loaded by `datasets.load_dataset("my-synthetic-data")`, and has the `privacy.json` of the pipeline.
Sampling is post-processing of the weights, so it costs no privacy, however many images are drawn. The same command
resumes an interrupted run. With --push_to_hub the data set is pushed to the Hub as well, and the same command repeats a
push that has failed.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..checks import FILE_FORMAT, GUIDANCE_SCALE, S_CHURN, at_least
from ..errors import InputError
from ..files import check_is_no_pattern, check_new_or_empty
from ..names import check_pipeline_name, check_repo_id
from ..run_paths import GENERATION_SETTINGS, RunPaths
from .flags import in_range, with_defaults


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the flags."""
    parser = argparse.ArgumentParser(
        prog="dp-curriculum generate", description="Generate an image data set from a trained pipeline."
    )
    parser.add_argument("pipeline", help="directory of a saved pipeline, or its Hub id")
    parser.add_argument(
        "--images_per_class",
        type=int,
        nargs="+",
        required=True,
        action=in_range(at_least(0)),
        help="one number for all classes, or one number per class; without classes, the number of all images",
    )
    parser.add_argument(
        "--class_balance",
        choices=["uniform", "dp_counts"],
        default="uniform",
        help="dp_counts: the same number of images in all, in proportion to the noisy class counts that the run "
        "released with frequency features or mean images; needs the directory of the run",
    )
    parser.add_argument(
        "--output_dir", type=Path, required=True, help="a new or empty directory, or that of an interrupted run"
    )
    parser.add_argument("--file_format", choices=FILE_FORMAT.values, default="parquet", help="format of the data set")
    parser.add_argument(
        "--batch_size",
        type=int,
        action=in_range(at_least(1)),
        default=250,
        help="images sampled at once and written as one shard",
    )
    parser.add_argument(
        "--num_inference_steps", type=int, action=in_range(at_least(1)), default=50, help="denoising steps"
    )
    parser.add_argument(
        "--guidance_scale",
        type=float,
        action=in_range(GUIDANCE_SCALE),
        default=1.0,
        help="classifier-free guidance; 1 is none",
    )
    parser.add_argument(
        "--s_churn", type=float, action=in_range(S_CHURN), default=0.0, help="fresh noise of EDM's stochastic sampler"
    )
    parser.add_argument(
        "--s_tmin",
        type=float,
        action=in_range(at_least(0)),
        default=0.05,
        help="lowest noise level at which s_churn adds noise",
    )
    parser.add_argument(
        "--s_tmax",
        type=float,
        action=in_range(at_least(0)),
        default=50.0,
        help="highest noise level at which s_churn adds noise",
    )
    parser.add_argument(
        "--seed",
        type=int,
        action=in_range(at_least(0)),
        default=0,
        help="seed of sampling; privacy does not depend on it",
    )
    parser.add_argument("--scheduler", help="sample with another diffusers scheduler, such as DDIMScheduler")
    parser.add_argument("--push_to_hub", action="store_true", help="push the data set when it is complete")
    parser.add_argument("--hub_dataset_id", help="repository, USER/NAME or NAME; the name of --output_dir by default")
    parser.add_argument(
        "--hub_private_repo", action="store_true", help="make the repository private, if it does not exist yet"
    )
    parser.add_argument("--hub_token", help="token of the Hub; `hf auth login` or HF_TOKEN is better")
    return with_defaults(parser)


def share_out(numbers: list[int], class_balance: str, pipeline_directory: str) -> int | list[int]:
    """Compute the number of images of each class."""
    if class_balance == "uniform":
        return numbers[0] if len(numbers) == 1 else numbers

    from ..mechanisms.central_images import CentralImageDataset
    from ..sampling.synthesis import apportion
    from ..training.auxiliary_generator import FrequencyImageDataset

    # The counts of the frequency query are of all records, and so less noisy than those of the mean queries.
    for released in (FrequencyImageDataset, CentralImageDataset):
        path = RunPaths(Path(pipeline_directory)).released(released.name)
        counts = released.load_from_disk(path).class_counts if path.is_dir() else None
        if counts is not None:
            return apportion(numbers[0] * len(counts), counts)
    raise InputError(
        f"{pipeline_directory} holds no noisy class counts, which frequency features and mean images have: leave out "
        "`class_balance`."
    )


def prepare_push(
    pipeline: str, privacy_json: Path | None, repo_id: str, private: bool | None, token: str | None
) -> None:
    """Check before sampling that the data set can be pushed, and create its repository if needed."""
    from ..privacy.publishability import check_statement
    from ..sharing.hub import prepare_repo

    if privacy_json is None:
        raise InputError(
            f"{pipeline} has no privacy.json, and images may not be published without it: leave out `push_to_hub`, or "
            "put the file back."
        )
    check_statement(privacy_json)
    prepare_repo(repo_id, "dataset", private, token)


def main(arguments: Sequence[str] | None = None) -> int:
    """Load the pipeline, generate the images, and push them if asked to; return the exit status."""
    args = make_parser().parse_args(arguments)
    if sum(args.images_per_class) < 1:
        raise InputError("`images_per_class` asks for no image: give at least 1.")
    if args.class_balance != "uniform" and len(args.images_per_class) > 1:
        raise InputError(
            f"`class_balance` {args.class_balance} computes the number of each class itself: give one number as "
            "`images_per_class`."
        )
    check_is_no_pattern(args.output_dir)
    if not (args.output_dir / GENERATION_SETTINGS).is_file():
        check_new_or_empty(args.output_dir)
    repo_id = args.hub_dataset_id or args.output_dir.absolute().name
    if args.push_to_hub:
        check_repo_id(repo_id)
    check_pipeline_name(args.pipeline)
    images_per_class = share_out(args.images_per_class, args.class_balance, args.pipeline)

    import torch

    from ..sampling.saved_pipelines import find_privacy_json, load_pipeline, use_scheduler
    from ..sampling.synthesis import generate_dataset

    pipeline = load_pipeline(args.pipeline)
    if args.scheduler:
        use_scheduler(pipeline, args.scheduler)
    privacy_json = find_privacy_json(args.pipeline)
    private = args.hub_private_repo or None
    if args.push_to_hub:
        prepare_push(args.pipeline, privacy_json, repo_id, private, args.hub_token)

    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    pipeline.set_progress_bar_config(desc="Denoising", leave=False)
    try:
        dataset = generate_dataset(
            pipeline,
            images_per_class,
            output_dir=args.output_dir,
            file_format=args.file_format,
            batch_size=args.batch_size,
            num_inference_steps=args.num_inference_steps,
            guidance_scale=args.guidance_scale,
            s_churn=args.s_churn,
            s_tmin=args.s_tmin,
            s_tmax=args.s_tmax,
            seed=args.seed,
            privacy_json=privacy_json,
        )
    except KeyboardInterrupt:
        print("\nCtrl-C: to continue where this stopped, repeat the command.", file=sys.stderr)
        raise

    classes = f" of {dataset.features['label'].num_classes} classes" if "label" in dataset.features else ""
    print(f"{len(dataset)} images{classes} in {args.output_dir} ({args.file_format}).")
    print(f'Load them by datasets.load_dataset("{args.output_dir}").')
    if privacy_json is None:
        print("The pipeline has no privacy.json: nothing is known about the privacy of these images.")
    else:
        print(f"Their privacy guarantee is in {args.output_dir / 'privacy.json'}.")
    if args.push_to_hub:
        dataset.push_to_hub(repo_id, private=private, token=args.hub_token)
    return 0


if __name__ == "__main__":
    from ..cli import run

    sys.exit(run("generate"))
