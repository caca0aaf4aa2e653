"""Evaluate a trained pipeline, or a synthetic data set, against real images.

    dp-curriculum evaluate my-dp-model --reference path/to/images --output_dir my-evaluation
    dp-curriculum evaluate my-synthetic-data --reference USER/NAME --features facebook/dinov2-base

The reference needs two splits: the images that the model was trained on, and images that it was not trained on. Writes
report.html and report.json to --output_dir and a table to the terminal. All of it is computed from real images outside
of any mechanism, so it is not private: keep it where the images are kept, and do not use it to choose a model that will
be published.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..checks import CLASSIFIER, GUIDANCE_SCALE, SEED, at_least, check_background, check_pixel_range
from ..data.class_names import checked_class_names
from ..errors import DPCurriculumError, HubError, InputError
from ..files import check_new_or_empty, check_outside
from ..names import check_dataset_name
from .flags import in_range, rename_arguments, with_defaults


if TYPE_CHECKING:
    import diffusers
    from torch.utils.data import Dataset


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the flags."""
    parser = argparse.ArgumentParser(
        prog="dp-curriculum evaluate", description="Evaluate a pipeline or a synthetic data set against real images."
    )
    parser.add_argument("samples", metavar="PIPELINE_OR_DATASET", help="a directory, or a Hub id")
    parser.add_argument("--reference", required=True, help="the real images: a directory, or a data set on the Hub")
    parser.add_argument("--train_split", default="train", help="the real images that the model was trained on")
    parser.add_argument("--test_split", default="test", help="real images that it was not trained on")
    parser.add_argument("--image_column", help="column of images in the reference, if there are several")
    parser.add_argument(
        "--pixel_range",
        nargs=2,
        type=float,
        help="values of black and white in a reference of more than 8 bits a pixel",
    )
    parser.add_argument("--background", help="colour to put behind transparent pixels of the reference")
    parser.add_argument("--label_column", help="column of labels in the reference, if it does not declare one")
    parser.add_argument("--class_names", nargs="+", help="the classes of the reference, if it does not declare them")
    parser.add_argument(
        "--accept_left_out_files", action="store_true", help="leave out files that may be images but cannot be read"
    )
    parser.add_argument(
        "--reference_is_public", action="store_true", help="the real images are public, so the report may be public too"
    )
    parser.add_argument(
        "--output_dir", type=Path, default=Path("dp-evaluation"), help="directory for the report, new or empty"
    )
    parser.add_argument(
        "--features",
        nargs="+",
        default=["pixels"],
        help="features for fidelity: pixels, inception (FID), or a vision model on the Hub or in a directory; the "
        "nearest training images are searched in the first ones",
    )
    parser.add_argument("--inception_weights", help="file of the weights of FID's Inception; downloaded by default")
    parser.add_argument(
        "--classifiers",
        nargs="*",
        choices=CLASSIFIER.values,
        default=list(CLASSIFIER.values),
        help="classifiers that are trained on the samples and tested on real images; all by default",
    )
    parser.add_argument(
        "--epochs", type=int, action=in_range(at_least(1)), default=20, help="training epochs of each classifier"
    )
    parser.add_argument(
        "--images_per_class",
        type=int,
        action=in_range(at_least(1)),
        default=1000,
        help="images of each class that a pipeline generates",
    )
    parser.add_argument(
        "--num_inference_steps",
        type=int,
        action=in_range(at_least(1)),
        default=50,
        help="denoising steps of a pipeline",
    )
    parser.add_argument(
        "--guidance_scale",
        type=float,
        action=in_range(GUIDANCE_SCALE),
        default=1.0,
        help="classifier-free guidance of a pipeline",
    )
    parser.add_argument("--scheduler", help="sample a pipeline with another diffusers scheduler")
    parser.add_argument(
        "--seed", type=int, action=in_range(SEED), default=0, help="seed of samples, subsets and initial weights"
    )
    return with_defaults(parser)


def is_pipeline(name: str) -> bool:
    """Whether `name` is a pipeline; otherwise it is a data set."""
    from huggingface_hub import HfApi

    if Path(name).is_dir():
        return Path(name, "model_index.json").is_file()
    try:
        return HfApi().file_exists(name, "model_index.json")
    except Exception as error:  # of many types: from the Hub's client and its HTTP library
        raise HubError(
            f"{name} is no directory, and cannot be looked up on the Hub ({type(error).__name__}): check the name."
        ) from error


def load_samples(args: argparse.Namespace) -> "Dataset":
    """Load the images of a synthetic data set."""
    from ..data.image_dataset import load_image_dataset

    with rename_arguments(train_data_dir="samples", dataset_name="samples"):
        # The classes of the samples have been published with them.
        return load_image_dataset(
            **{source_of(args.samples): args.samples},
            accept_found_classes=True,
            accept_left_out_files=args.accept_left_out_files,
        )


def load_reference(
    args: argparse.Namespace, split: str, channels: int, resolution: int, with_labels: bool
) -> "Dataset":
    """Load one split of the real images, with the channels and the size of the samples."""
    from ..data.image_dataset import load_image_dataset

    with rename_arguments(train_data_dir="reference", dataset_name="reference"):
        return load_image_dataset(
            **{source_of(args.reference): args.reference},
            split=split,
            resolution=resolution,
            image_column=args.image_column,
            label_column=args.label_column if with_labels else None,
            class_names=args.class_names if with_labels else None,
            unconditional=not with_labels,
            accept_found_classes=True,  # the report is not published
            accept_left_out_files=args.accept_left_out_files,
            channels=channels,
            pixel_range=args.pixel_range,
            background=args.background,
        )


def source_of(name: str) -> str:
    """The argument of `load_image_dataset` for `name`, which is a directory or a Hub id."""
    return "train_data_dir" if Path(name).is_dir() else "dataset_name"


def sample(pipeline: "diffusers.DiffusionPipeline", args: argparse.Namespace) -> "Dataset":
    """Generate the images of a pipeline, on a GPU if there is one."""
    import torch

    from ..data.image_dataset import to_image_dataset
    from ..sampling.synthesis import generate_dataset

    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    pipeline.set_progress_bar_config(desc="Denoising", leave=False)
    dataset = generate_dataset(
        pipeline,
        args.images_per_class,
        num_inference_steps=args.num_inference_steps,
        guidance_scale=args.guidance_scale,
        seed=args.seed,
    )
    return to_image_dataset(dataset)


def describe(
    args: argparse.Namespace, channels: int, resolution: int, pipeline: "diffusers.DiffusionPipeline | None"
) -> dict[str, str]:
    """Describe in words what is compared, and with which settings."""
    from ..privacy.publishability import check_statement
    from ..sampling.saved_pipelines import find_privacy_json
    from ..sharing.cards import budget

    about = {
        "samples": args.samples,
        "reference": f"{args.reference}: split {args.train_split} (real training images) and split {args.test_split} "
        f"(real test images), {resolution}x{resolution} pixels, {'grey' if channels == 1 else 'in colour'}",
        "features": ", ".join(args.features),
        "classifiers": f"{', '.join(args.classifiers) or 'none'}; {args.epochs} epochs",
        "seed": str(args.seed),
    }
    if pipeline is not None:
        about["sampling"] = (
            f"{args.images_per_class} images per class, {args.num_inference_steps} steps, guidance scale "
            f"{args.guidance_scale}, {type(pipeline.scheduler).__name__}"
        )
    privacy_json = find_privacy_json(args.samples, "dataset" if pipeline is None else "model")
    if privacy_json is None:
        about["privacy"] = "nothing is known about the privacy of the samples"
    else:
        try:
            promise = f"are {budget(check_statement(privacy_json))}-differentially private, as their privacy.json says"
        except DPCurriculumError as error:
            promise = f"are not for sharing ({error})"
        about["privacy"] = f"the samples {promise}; this report is not covered by it"
    return about


def main(arguments: Sequence[str] | None = None) -> int:
    """Load and check everything; then sample, measure and report; return the exit status."""
    args = make_parser().parse_args(arguments)
    check_new_or_empty(args.output_dir)
    if Path(args.reference).is_dir():
        check_outside(args.output_dir, Path(args.reference))
    else:
        check_dataset_name(args.reference)
    if args.train_split == args.test_split:
        raise InputError("`train_split` and `test_split` are the same: give another `test_split`.")
    checked_class_names(args.class_names)
    check_pixel_range(args.pixel_range)
    check_background(args.background)
    samples_are_made = is_pipeline(args.samples)
    if not samples_are_made and not Path(args.samples).is_dir():
        check_dataset_name(args.samples)

    from ..evaluation.features import load_feature_extractor
    from ..evaluation.metrics import check_reference, evaluate
    from ..evaluation.report import NOT_PRIVATE, table, write_report
    from ..sampling.saved_pipelines import image_shape, load_pipeline, use_scheduler

    extractors = {name: load_feature_extractor(name, args.inception_weights) for name in args.features}
    if samples_are_made:
        pipeline = load_pipeline(args.samples)
        if args.scheduler:
            use_scheduler(pipeline, args.scheduler)
        shape, class_names = image_shape(pipeline), getattr(pipeline, "class_names", None)
    else:
        pipeline = None
        samples = load_samples(args)
        shape, class_names = samples.images.shape[1:], samples.class_names
    train, test = (
        load_reference(args, split, shape[0], shape[-1], class_names is not None)
        for split in (args.train_split, args.test_split)
    )
    check_reference(shape, class_names, train, test)
    about = describe(args, shape[0], shape[-1], pipeline)

    if pipeline is not None:
        samples = sample(pipeline, args)
    evaluation = evaluate(samples, train, test, extractors, args.classifiers, epochs=args.epochs, seed=args.seed)
    write_report(
        args.output_dir,
        evaluation,
        samples,
        train,
        test,
        about=about,
        space=args.features[0],
        reference_is_public=args.reference_is_public,
    )
    print(table(evaluation.measures))
    print(f"The report is {args.output_dir / 'report.html'}; the numbers are in report.json beside it.")
    if not args.reference_is_public:
        print(NOT_PRIVATE)
    return 0


if __name__ == "__main__":
    from ..cli import run

    sys.exit(run("evaluate"))
