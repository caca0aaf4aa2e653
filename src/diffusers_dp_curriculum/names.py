"""Names that people give of a directory on this machine, or of a repository on the Hub.

This module imports nothing slow, so that a command can refuse a wrong name before it imports what computes. The Hub is
asked once: a download by its client is tried again for half a minute before it fails.
"""

import os
from pathlib import Path

from .errors import HubError, InputError


TIMEOUT_SECONDS = 10


def is_on_hub(name: str, repo_type: str = "model") -> bool:
    """Whether the Hub has a repository of this name; in offline mode it may have one, which may be in the cache.

    Args:
        name (`str`): A name, which need not be one that the Hub allows.
        repo_type (`str`, *optional*, defaults to `"model"`): `"model"` or `"dataset"`.

    Raises:
        HubError: If the Hub is out of reach, or does not answer the question.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled, RepositoryNotFoundError

    try:
        HfApi().repo_info(name, repo_type=repo_type, timeout=TIMEOUT_SECONDS)
    except OfflineModeIsEnabled:
        return True
    except (HFValidationError, RepositoryNotFoundError):
        return False
    except Exception as error:  # the Hub's client and its HTTP library each raise their own
        status = getattr(getattr(error, "response", None), "status_code", None)
        raise HubError(
            f"{name} is no path here, and cannot be looked up on the Hub ({status or type(error).__name__}): check the "
            "name, the connection and the token, or give the path of a local copy."
        ) from error
    return True


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
