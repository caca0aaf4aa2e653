"""Generate a synthetic data set that may be shared from a trained pipeline.

    python examples/generate_dataset.py        # after examples/custom_unet.py, which writes my-digits/

Sampling is post-processing of the weights: it costs no privacy, however many images are drawn.
"""

from pathlib import Path

import datasets

from diffusers_dp_curriculum import ClassConditionalPipeline, generate_dataset


def synthesize(
    model: str = "my-digits", output_dir: str = "my-data", images_per_class: int = 100, **settings
) -> datasets.Dataset:
    """Generate images of each class as parquet files; `settings` are further arguments of `generate_dataset`."""
    pipeline = ClassConditionalPipeline.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    generate_dataset(
        pipeline,
        images_per_class,
        output_dir=output_dir,
        privacy_json=Path(model, "privacy.json"),  # so that the data set states the model's privacy budget
        **settings,
    )
    return datasets.load_dataset(output_dir, split="train")  # as anyone who has the directory can


if __name__ == "__main__":
    print(synthesize())
