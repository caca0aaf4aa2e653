"""From a trained pipeline to a synthetic data set that may be shared.

    python examples/generate_dataset.py        # after examples/custom_unet.py, which writes my-digits/

Sampling is post-processing of what the pipeline released: it costs no privacy, however many images are drawn.
"""

from pathlib import Path

import datasets

from diffusers_dp_curriculum import ClassConditionalPipeline, generate_dataset


def synthesize(
    model: str = "my-digits", output_dir: str = "my-data", images_per_class: int = 100, **settings
) -> datasets.Dataset:
    """Draw images of each class and save them as parquet files; `settings` are further arguments of sampling."""
    pipeline = ClassConditionalPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    generate_dataset(
        pipeline,
        images_per_class,
        output_dir=output_dir,
        privacy_json=Path(model, "privacy.json"),  # the data set carries the statement about the model
        **settings,
    )
    return datasets.load_dataset(output_dir, split="train")  # as anybody loads it who has the directory


if __name__ == "__main__":
    print(synthesize())
