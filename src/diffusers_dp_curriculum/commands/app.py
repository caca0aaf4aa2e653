"""Serve a web page to sample a trained pipeline, with a choice of classes, guidance, steps and seed.

    pip install -c constraints.txt ".[app]"
    dp-curriculum app my-model                 # or USER/NAME on the Hub

Sampling is post-processing of the weights: it costs no privacy, however many images are drawn. The page is served only
on this machine, and no code in the directory or repository of the pipeline is run.
"""

import argparse
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DPCurriculumError, InputError
from ..names import check_pipeline_name
from .flags import with_defaults


if TYPE_CHECKING:
    import diffusers
    import gradio
    import numpy as np
    from PIL import Image


GRID_COLUMNS = 8
MAX_IMAGES = 64


def describe(privacy_json: Path | None) -> str:
    """Describe the privacy guarantee of the images, in Markdown."""
    from ..privacy.publishability import check_statement
    from ..sharing.cards import budget, mechanism_table

    if privacy_json is None:
        return "**No privacy.json:** nothing is known about the privacy of these images."
    try:
        privacy = check_statement(privacy_json)
    except DPCurriculumError as error:
        return f"**Not for sharing.** {error}"
    return (
        f"**{budget(privacy)}-differentially private** with respect to zeroing out one {privacy.unit} of the "
        f"{privacy.dataset_size}. {privacy.scope} Looking at samples, however many, does not change that.\n\n"
        f"{mechanism_table(privacy)}"
    )


def make_sampler(pipeline: "diffusers.DiffusionPipeline") -> Callable[..., "tuple[Image.Image, str]"]:
    """Make the function that the button of the page calls."""
    import gradio
    import torch

    from ..pictures import image_grid

    class_names = getattr(pipeline, "class_names", None)

    def sample(
        classes: list[str], count: int, guidance_scale: float, num_inference_steps: int, seed: int
    ) -> "tuple[Image.Image, str]":
        """Sample `count` images of each class; return a grid of them, and the path of a zip file."""
        generator = torch.Generator(pipeline.device).manual_seed(int(seed))
        options: dict[str, Any] = {
            "num_inference_steps": int(num_inference_steps),
            "generator": generator,
            "output_type": "np",
        }
        if class_names is None:
            labels = ["image"] * int(count)
            images = pipeline(batch_size=len(labels), **options).images
        else:
            if not classes:
                raise gradio.Error("Choose at least one class.")
            labels = [name for name in classes for _ in range(int(count))]
            if len(labels) > MAX_IMAGES:
                raise gradio.Error(f"These are {len(labels)} images: choose at most {MAX_IMAGES}.")
            images = pipeline(class_labels=labels, guidance_scale=guidance_scale, **options).images
        return image_grid(torch.from_numpy(images).permute(0, 3, 1, 2), int(count)), _zip(labels, images)

    return sample


def _zip(labels: list[str], images: "np.ndarray[Any, Any]") -> str:
    from diffusers.utils import numpy_to_pil

    path = Path(tempfile.mkdtemp(), "images.zip")
    with zipfile.ZipFile(path, "w") as archive:
        for number, (label, image) in enumerate(zip(labels, numpy_to_pil(images), strict=True)):
            name = "".join(character if character.isalnum() else "_" for character in label)
            with archive.open(f"{number:02d}_{name}.png", "w") as file:
                image.save(file, "PNG")
    return str(path)


def make_page(name: str) -> "gradio.Blocks":
    """Make the page of a pipeline, given by its directory or Hub id."""
    import gradio
    import torch

    from ..sampling.saved_pipelines import find_privacy_json, load_pipeline

    pipeline = load_pipeline(name)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    pipeline.set_progress_bar_config(disable=True)
    class_names = getattr(pipeline, "class_names", None)
    most_steps = pipeline.scheduler.config.num_train_timesteps
    with gradio.Blocks(title="Images under differential privacy", analytics_enabled=False) as page:
        gradio.Markdown(f"# {Path(name).name}")
        gradio.Markdown(describe(find_privacy_json(name)))
        with gradio.Row():
            with gradio.Column(scale=1):
                classes = gradio.CheckboxGroup(
                    class_names or [], value=(class_names or [])[:4], label="Classes", visible=class_names is not None
                )
                count = gradio.Slider(1, GRID_COLUMNS, value=GRID_COLUMNS, step=1, label="Images of each class")
                guidance = gradio.Slider(
                    0, 5, value=1, step=0.25, label="Guidance (1 is none)", visible=class_names is not None
                )
                steps = gradio.Slider(1, most_steps, value=min(50, most_steps), step=1, label="Denoising steps")
                seed = gradio.Number(0, precision=0, minimum=0, label="Seed")
                button = gradio.Button("Sample", variant="primary")
            with gradio.Column(scale=2):
                grid = gradio.Image(
                    show_label=False, type="pil", format="png", interactive=False, buttons=["fullscreen", "download"]
                )
                download = gradio.File(label="Download", interactive=False)
        inputs, outputs = [classes, count, guidance, steps, seed], [grid, download]
        sample = make_sampler(pipeline)
        button.click(sample, inputs, outputs, api_name="sample")
        page.load(sample, inputs, outputs, api_name=False)
    return page


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the flags."""
    parser = argparse.ArgumentParser(
        prog="dp-curriculum app", description="Serve a web page to sample a trained pipeline."
    )
    parser.add_argument("pipeline", help="directory of a saved pipeline, or its name on the Hub")
    parser.add_argument("--port", type=int, default=7860, help="port of this machine on which the page is served")
    return with_defaults(parser)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve the page until interrupted, and return the exit status."""
    args = make_parser().parse_args(arguments)
    if find_spec("gradio") is None:
        raise InputError("The page needs gradio: install it by `pip install 'diffusers-dp-curriculum[app]'`.")
    check_pipeline_name(args.pipeline)
    make_page(args.pipeline).launch(server_name="127.0.0.1", server_port=args.port, share=False)
    return 0


if __name__ == "__main__":
    from ..cli import run

    sys.exit(run("app"))
