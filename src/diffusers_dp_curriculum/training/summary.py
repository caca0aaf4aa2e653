"""The summary that is printed at the end of a run: what it wrote, where, and at what privacy cost."""

from collections.abc import Iterable
from pathlib import Path

from ..data.dataset_info import DatasetInfo, classes_in_words
from ..privacy.accounting import Mechanism, round_up
from ..privacy.ledger import PrivacyLedger
from ..privacy.statement import scope_in_words


PUBLISHED = {
    "samples.png": "samples, one row per class",
    "README.md": "model card",
    "privacy.json": "the privacy budget, which anyone can recompute",
    "model_index.json": "the pipeline, with unet/ and scheduler/",
    **dict.fromkeys(("vae", "vqvae"), "its autoencoder, which is public and was not trained"),
}


def summarize(output_dir: Path, ledger: PrivacyLedger, info: DatasetInfo, stages: Iterable[str]) -> str:
    """Make two tables: the files that may be published, and the mechanisms that read the records.

    Args:
        output_dir (`Path`): The directory of the run.
        ledger (`PrivacyLedger`): What was executed.
        info (`DatasetInfo`): The classes; a pipeline with classes needs `trust_remote_code`.
        stages (`Iterable[str]`): The names of the warm-up stages, each of which has a picture.
    """
    published = PUBLISHED | {f"{stage}.png": f"the DP {stage.replace('_', ' ')}" for stage in stages}
    mechanisms = [("mechanism", "steps", "noise multiplier", "sample rate"), *map(_row, ledger.mechanisms)]
    for number, run in enumerate(ledger.prior_runs, start=1):
        mechanisms += [(f"previous run {number}", "", "", ""), *map(_row, run.mechanisms)]
    trust, classes = "", []
    if info.class_names is not None:
        trust, classes = ", trust_remote_code=True", [f"  classes               {classes_in_words(info.class_names)}"]
    headline = f"Published files are in {output_dir} (share all of it except private/):"
    if ledger.not_private:
        headline = f"NOT PRIVATE, share nothing of {output_dir}: {ledger.not_private}."
    return "\n".join(
        [
            headline,
            *(f"  {name:<21} {what}" for name, what in published.items() if (output_dir / name).exists()),
            f'  to sample             DiffusionPipeline.from_pretrained("{output_dir}"{trust})',
            *classes,
            *(f"  {name:<21}{steps:>8}{sigma:>18}{rate:>13}".rstrip() for name, steps, sigma, rate in mechanisms),
            f"  together              epsilon {round_up(ledger.epsilon())} at delta {round_up(ledger.delta)}, "
            f"for one {ledger.unit}",
            f"  {scope_in_words(len(ledger.prior_runs))}",
        ]
    )


def summarize_public(output_dir: Path, info: DatasetInfo) -> str:
    """Say where a model of public images is, what it is not, and what it is for.

    Args:
        output_dir (`Path`): The directory of the pipeline.
        info (`DatasetInfo`): The description of the public images.
    """
    trust = "" if info.class_names is None else ", trust_remote_code=True"
    classes = [] if info.class_names is None else [f"  classes               {classes_in_words(info.class_names)}"]
    return "\n".join(
        [
            f"NOT PRIVATE: the pipeline in {output_dir} was trained on public images, which it can reproduce.",
            *(f"  {name:<21} {what}" for name, what in PUBLISHED.items() if (output_dir / name).exists()),
            f'  to sample             DiffusionPipeline.from_pretrained("{output_dir}"{trust})',
            *classes,
            f"  to start from it      dp-curriculum train --pretrained_model_name_or_path {output_dir}",
        ]
    )


def _row(mechanism: Mechanism) -> tuple[str, str, str, str]:
    return (
        mechanism.name,
        f"{mechanism.steps:,}",
        f"{mechanism.noise_multiplier:.4g}",
        f"{mechanism.sample_rate:.4g}",
    )
