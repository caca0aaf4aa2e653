"""Reads and downloads the files of a trained network, and refuses a network that no run can start from."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import DDPMScheduler, EDMEulerScheduler, ModelMixin, UNet2DModel
from huggingface_hub import hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, LocalEntryNotFoundError

from ..checks import IMAGE_CHANNELS
from ..data.silence import no_messages
from ..errors import HubError, InputError, first_line
from ..finite import is_finite
from ..gradients.losses import EDM_SCHEDULERS


Network = TypeVar("Network", bound=ModelMixin)
AUTOENCODER_PARTS = ("vae", "vqvae")  # the names that pipelines have for their autoencoder
# The files of a pipeline, and of a network in a directory of its own; in older repositories, all at the top.
DESCRIPTIONS = (
    *("model_index.json", "config.json", "scheduler_config.json"),
    *("unet/config.json", "scheduler/scheduler_config.json"),
    *(f"{part}/config.json" for part in AUTOENCODER_PARTS),
)
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json")
PARTS_OF_WEIGHTS = "diffusion_pytorch_model-*-of-*.safetensors"


def check_parts(index: dict[str, Any], name: str) -> str | None:
    """Refuse a pipeline of other parts than a `UNet2DModel`, a noise scheduler and, for latents, an autoencoder.

    Args:
        index (`dict`): The content of model_index.json.
        name (`str`): The name of the network in messages.

    Returns:
        `str`, *optional*: The name of the part that is the autoencoder; None if there is none.

    Raises:
        InputError: If it has other parts.
    """
    parts = {
        part: value[1]
        for part, value in index.items()
        if not part.startswith("_") and isinstance(value, list) and len(value) == 2 and value[1] is not None
    }
    autoencoder = next((part for part in AUTOENCODER_PARTS if part in parts), None)
    if others := sorted(parts.keys() - {"unet", "scheduler", autoencoder}):
        raise InputError(
            f"{name} has a part called {others[0]} besides its network, its scheduler and an autoencoder, as pipelines "
            "of texts have: give a pipeline whose UNet2DModel takes pixels or latents, and nothing else."
        )
    if parts.get("unet") != "UNet2DModel" or "scheduler" not in parts:
        raise InputError(
            f"{name} is no pipeline of a UNet2DModel and a scheduler, but of {', '.join(sorted(parts.values()))}: give "
            "one that is."
        )
    return autoencoder


def whole_config(kind: type[ModelMixin], content: dict[str, Any], name: str) -> dict[str, Any]:
    """The config of a model, with the defaults of what its file leaves out.

    Args:
        kind (`type`): The class of the model.
        content (`dict`): The content of config.json.
        name (`str`): The name of the model in messages.

    Raises:
        InputError: If it is no config of that class.
    """
    try:
        with torch.device("meta"), no_messages():
            return dict(kind.from_config(content).config)
    except Exception as error:  # whatever diffusers and PyTorch raise
        raise InputError(
            f"config.json of {name} gives no {kind.__name__} ({type(error).__name__}: {first_line(error)}): give the "
            "files as `save_pretrained` wrote them."
        ) from error


def network_config(content: dict[str, Any], name: str, latent_channels: int | None = None) -> dict[str, Any]:
    """The whole config of a network, with the defaults of what its file leaves out.

    Args:
        content (`dict`): The content of config.json.
        name (`str`): The name of the network in messages.
        latent_channels (`int`, *optional*): The channels of the latents that it denoises; None for pixels.

    Raises:
        InputError: If it is no network that denoises the pixels of images, or such latents.
    """
    kind = content.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        raise InputError(f"{name} is a {kind}: give a UNet2DModel, or a pipeline with one.")
    config = whole_config(UNet2DModel, content, name)
    into, out = config["in_channels"], config["out_channels"]
    if latent_channels is None and (into != out or not IMAGE_CHANNELS.contains(into)):
        raise InputError(
            f"{name} takes {into} channels and gives {out}, as networks of latents or of variances do: give one that "
            "takes and gives the pixels of grey (1) or RGB (3) images, or its autoencoder as `vae_name_or_path`."
        )
    if latent_channels is not None and {into, out} != {latent_channels}:
        raise InputError(
            f"{name} takes {into} channels and gives {out}, and the latents have {latent_channels}: give a network of "
            "the latents of this autoencoder."
        )
    if (kind := config["class_embed_type"]) is not None:
        raise InputError(
            f"{name} has class_embed_type={kind!r}, from which no embedding of a class can be taken: give one with "
            "class_embed_type=None."
        )
    return config


def names_of_classes(index: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """The names of the classes of a pipeline of this library, in which the null class follows them; empty if none.

    Args:
        index (`dict`): The content of model_index.json.
        config (`dict`): The config of the network.
    """
    names = {int(number): name for number, name in (index.get("id2label") or {}).items()}
    return [names[number] for number in range((config["num_class_embeds"] or 1) - 1) if number in names]


def training_scheduler(config: dict[str, Any], name: str) -> DDPMScheduler | EDMEulerScheduler:
    """The noise scheduler of a pipeline, as one that there is a loss for.

    Args:
        config (`dict`): The content of scheduler_config.json.
        name (`str`): The name of the network in messages.

    Raises:
        InputError: If there is no loss for schedulers of its class.
    """
    kind = config.get("_class_name")
    like_edm = {scheduler.__name__ for scheduler in EDM_SCHEDULERS}
    # They have the same timesteps and betas, of which DDPM's loss is made.
    like_ddpm = {scheduler.__name__ for scheduler in DDPMScheduler().compatibles} - like_edm
    settings = {key: value for key, value in config.items() if value is not None}
    with no_messages():  # about settings of samplers, which are dropped
        if kind in like_ddpm and config.get("timestep_type") != "continuous":
            return DDPMScheduler.from_config(settings)
        if kind in like_edm:
            return EDMEulerScheduler.from_config(settings)
    raise InputError(
        f"{name} was trained with a {kind}, for which there is no loss: give a pipeline with a scheduler of DDPM's or "
        "EDM's noise levels."
    )


def load_weights(directory: Path, name: str, kind: type[Network]) -> Network:
    """Load a network in float32, and refuse one that its files do not give completely.

    Args:
        directory (`Path`): The directory of the network.
        name (`str`): The name of the network in messages.
        kind (`type`): The class of the network.

    Raises:
        InputError: If there are no weights, not all of them, or other ones than the config describes.
    """
    if not any((directory / file).is_file() for file in WEIGHTS):
        raise InputError(
            f"{name} has no weights in the format of safetensors: load it by diffusers, and save it again by "
            "`save_pretrained`."
        )
    try:
        with no_messages():
            network, loading = kind.from_pretrained(
                directory, torch_dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
    except Exception as error:  # of many types, from diffusers, safetensors and PyTorch
        raise InputError(
            f"The weights of {name} are not those of its config ({type(error).__name__}: {first_line(error)}): give "
            "the files as `save_pretrained` wrote them."
        ) from error
    if loading["missing_keys"]:
        raise InputError(
            f"{name} has no weights for {min(loading['missing_keys'])}: give the files as `save_pretrained` wrote them."
        )
    if not is_finite(network):
        raise InputError(f"The weights of {name} are not all finite numbers, as its training diverged: give others.")
    loaded: Network = network
    return loaded


def read_json(path: Path, name: str) -> dict[str, Any]:
    """Read a description of a network or a part of a pipeline.

    Args:
        path (`Path`): The file.
        name (`str`): The name of the network in messages.

    Raises:
        InputError: If the file cannot be read.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path.name} of {name} cannot be read ({type(error).__name__}): give the files as `save_pretrained` wrote "
            "them."
        ) from error


def download_descriptions(repo_id: str) -> Path:
    """Download the descriptions of a pipeline or a network, and its privacy.json, into the cache.

    Args:
        repo_id (`str`): The id of the repository on the Hub.

    Returns:
        `Path`: The directory of the repository's state in the cache, which is called like that state.

    Raises:
        HubError: If the Hub is out of reach, or refuses access.
    """
    directory = _download(repo_id, DESCRIPTIONS)
    _fetch_privacy_json(repo_id, revision=directory.name)
    return directory


def download_weights(repo_id: str, directory: Path) -> None:
    """Download the weights of a network to its config in the cache.

    Args:
        repo_id (`str`): The id of the repository on the Hub.
        directory (`Path`):
            The directory of the config: what [`download_descriptions`] returned, or that of a part in it.

    Raises:
        HubError: If the Hub is out of reach, or refuses access.
    """
    top = directory.parent if directory.name in ("unet", *AUTOENCODER_PARTS) else directory
    patterns = [(directory.relative_to(top) / name).as_posix() for name in (*WEIGHTS, PARTS_OF_WEIGHTS)]
    _download(repo_id, patterns, revision=top.name)


def _download(repo_id: str, patterns: Sequence[str], revision: str | None = None) -> Path:
    """Download some files of a repository into the cache; return the directory of its state there."""
    with _hub_errors(repo_id):
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(patterns)))


def _fetch_privacy_json(repo_id: str, revision: str) -> None:
    """Put the privacy.json of a repository into the cache, or what says that it has none.

    The cache alone may lack the file because nobody has asked for it.
    """
    if try_to_load_from_cache(repo_id, "privacy.json", revision=revision) is not None:  # or it is known to be missing
        return
    with _hub_errors(repo_id):
        try:
            hf_hub_download(repo_id, "privacy.json", revision=revision)
        except LocalEntryNotFoundError as error:
            raise HubError(
                f"The Hub is out of reach, and whether {repo_id} has a privacy.json is known only there: load it once "
                "with a connection."
            ) from error
        except EntryNotFoundError:
            return


@contextmanager
def _hub_errors(repo_id: str) -> Iterator[None]:
    """Turn any failure of a download into one sentence."""
    try:
        yield
    except HubError:
        raise
    except GatedRepoError as error:
        raise HubError(
            f"{repo_id} is gated: accept its terms on its page on the Hub, and log in with `hf auth login`."
        ) from error
    except Exception as error:  # the Hub's client and its HTTP library each raise their own
        raise HubError(
            f"{repo_id} cannot be downloaded from the Hub ({type(error).__name__}): check the connection and the "
            "token, or give a directory."
        ) from error
