"""Names that people give of a directory on this machine, or of a repository on the Hub.

This module imports nothing slow, so that a command can refuse a wrong name before it imports what computes. The Hub is
asked once: a download by its client is tried again for half a minute before it fails.
"""

import os
from pathlib import Path

from .errors import HubError, InputError
from .files import local_path


TIMEOUT_SECONDS = 10


def is_on_hub(name: str, repo_type: str = "model") -> bool:
    """Whether the Hub has a repository of this name; in offline mode, whether the cache has.

    Args:
        name (`str`): A name, which need not be one that the Hub allows.
        repo_type (`str`, *optional*, defaults to `"model"`): `"model"` or `"dataset"`.

    Raises:
        HubError: If the Hub is out of reach, or does not answer the question.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        HfApi().repo_info(name, repo_type=repo_type, timeout=TIMEOUT_SECONDS)
    except OfflineModeIsEnabled:
        try:
            # No file is asked for: the cache need not have all of them.
            snapshot_download(name, repo_type=repo_type, local_files_only=True, allow_patterns=[])
        except LocalEntryNotFoundError:
            return False
    except (HFValidationError, RepositoryNotFoundError):
        return False
    except Exception as error:  # the Hub's client and its HTTP library each raise their own
        status = getattr(getattr(error, "response", None), "status_code", None)
        raise HubError(
            f"{name} is no path here, and cannot be looked up on the Hub ({status or type(error).__name__}): check the "
            "name, the connection and the token, or give the path of a local copy."
        ) from error
    return True


def check_repo_id(repo_id: str) -> None:
    """Refuse a name that no repository on the Hub can have.

    Args:
        repo_id (`str`): `"user/name"`, or a name in the namespace of the token's owner.

    Raises:
        InputError: If the Hub does not allow the name.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(
            f"{repo_id} cannot be the name of a repository on the Hub: give USER/NAME, of letters, digits and . _ -, "
            "with which it neither begins nor ends."
        ) from error


def check_pipeline_name(name: str) -> None:
    """Refuse a name that is neither a directory nor a repository on the Hub, where a saved pipeline is needed.

    Args:
        name (`str`): Directory or Hub id of a saved pipeline.

    Raises:
        InputError: If there is neither.
        HubError: If the Hub is out of reach.
    """
    if not (Path(name, "model_index.json").is_file() or (not os.path.exists(name) and is_on_hub(name))):
        raise InputError(f"{name} is neither the directory of a saved pipeline nor one on the Hub: check the name.")


def check_config_name(name: str) -> None:
    """Refuse a name that is neither a path nor a repository on the Hub, where the config of a network is needed.

    Args:
        name (`str`): Directory or Hub id of a `UNet2DModel`.

    Raises:
        InputError: If there is neither.
        HubError: If the Hub is out of reach.
    """
    if not os.path.exists(name) and not is_on_hub(name):
        raise no_config(name)


def no_config(name: str) -> InputError:
    """The error for a name under which no config of a network is found."""
    return InputError(
        f"{name} has no config of a UNet2DModel: give a directory or Hub id of one as `model_config_name_or_path`."
    )


def check_start_name(name: str) -> None:
    """Refuse a name that is neither a directory nor a repository on the Hub, where a trained network is needed.

    Args:
        name (`str`): Directory or Hub id of a pipeline or a `UNet2DModel`.

    Raises:
        InputError: If there is neither.
        HubError: If the Hub is out of reach.
    """
    if not _is_directory_or_on_hub(name):
        raise no_start(name)


def _is_directory_or_on_hub(name: str) -> bool:
    path = local_path(name)
    return path.is_dir() or (not os.path.exists(path) and is_on_hub(name))


def no_start(name: str) -> InputError:
    """The error for a name under which no trained network is found."""
    return InputError(
        f"{name} has neither a pipeline of diffusers nor a UNet2DModel: give the directory or Hub id of one as "
        "`pretrained_model_name_or_path`, and log in if it is a private one."
    )


def check_extractor_name(name: str) -> None:
    """Refuse a name that is neither a directory nor a repository on the Hub, where a vision model is needed.

    Args:
        name (`str`): Directory or Hub id of a vision model.

    Raises:
        InputError: If there is neither.
        HubError: If the Hub is out of reach.
    """
    if not _is_directory_or_on_hub(name):
        raise InputError(
            f"{name} is neither the directory of a vision model nor one on the Hub: check `feature_extractor`, and log "
            "in if it is a private one."
        )


def check_autoencoder_name(name: str) -> None:
    """Refuse a name that is neither a directory nor a repository on the Hub, where an autoencoder is needed.

    Args:
        name (`str`): Directory or Hub id of an autoencoder, or of a pipeline that has one.

    Raises:
        InputError: If there is neither.
        HubError: If the Hub is out of reach.
    """
    if not _is_directory_or_on_hub(name):
        raise no_autoencoder(name)


def no_autoencoder(name: str) -> InputError:
    """The error for a name under which no autoencoder is found."""
    return InputError(
        f"{name} has no autoencoder: give the directory or Hub id of an AutoencoderKL, AutoencoderTiny or VQModel, or "
        "of a pipeline with one, as `vae_name_or_path`, and log in if it is a private one."
    )


def public_name(hub_id: str | None) -> str:
    """What is published of where a public network comes from: its id on the Hub, and never a path.

    Args:
        hub_id (`str`, *optional*): The id of its repository on the Hub; None for a directory.
    """
    return "a local checkpoint" if hub_id is None else f"{hub_id} on the Hub"


def check_dataset_name(name: str) -> None:
    """Refuse a name that is neither that of the digits nor of a data set on the Hub.

    Args:
        name (`str`): The name.

    Raises:
        InputError: If there is no such data set.
        HubError: If the Hub is out of reach.
    """
    from huggingface_hub import constants

    if name == "digits":
        return
    if os.path.isdir(name):
        raise InputError(f"{name} is a directory: give it as `train_data_dir`.")
    offline = constants.HF_HUB_OFFLINE  # then it may be in the cache of `datasets`
    if not offline and not is_on_hub(name, "dataset"):
        raise InputError(
            f"There is no data set {name} on the Hub: check the name, and that you are logged in if it is a private "
            "one."
        )


def check_run_name(name: str) -> None:
    """Refuse a name that is neither a path nor a repository on the Hub, where a run is needed.

    Args:
        name (`str`): A file, a directory, or the Hub id of a model or data set.

    Raises:
        InputError: If there is neither.
        HubError: If the Hub is out of reach.
    """
    if not os.path.exists(name) and not is_on_hub(name, "model") and not is_on_hub(name, "dataset"):
        raise no_such_run(name)


def no_such_run(name: str) -> InputError:
    """The error for a name under which no run is found."""
    return InputError(
        f"{name} is no path, and there is no repository with a privacy.json of this name on the Hub: check the name, "
        "and that you are logged in if it is a private one."
    )
