"""Publishes to the Hub: only files on an allow-list, in one commit.

The allow-lists below name every file that may be pushed. All other files of a directory stay there.
"""

import json
import logging
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, DatasetInfo, HfApi, ModelInfo
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

from ..errors import DPCurriculumError, HubError, InputError
from ..privacy.counted_runs import CountedRun
from ..privacy.publishability import check_journal, check_replaces, check_statement
from ..privacy.statement import PrivacyStatement
from ..run_paths import RunPaths
from .cards import budget, check_budget, merge, update
from .model_card import mechanisms_in_words, with_repo_id


logger = logging.getLogger(__name__)
# The allow-lists: regular expressions of paths. The value is the name in the error message if a required file is
# missing, and None for an optional file.
MODEL_FILES = {
    r"README\.md": "README.md",
    r"privacy\.json": "privacy.json",
    r"samples\.png": "samples.png",
    r"central_images\.png": None,
    r"frequency_images\.png": None,
    r"model_index\.json": "model_index.json",
    r"pipeline\.py": None,
    r"scheduler/scheduler_config\.json": "scheduler/scheduler_config.json",
    r"unet/config\.json": "unet/config.json",
    r"unet/diffusion_pytorch_model(-\d{5}-of-\d{5})?\.safetensors": "unet/diffusion_pytorch_model.safetensors",
    r"unet/diffusion_pytorch_model\.safetensors\.index\.json": None,
    r"(vae|vqvae)/config\.json": None,
    r"(vae|vqvae)/diffusion_pytorch_model(-\d{5}-of-\d{5})?\.safetensors(\.index\.json)?": None,
}
DATASET_FILES: dict[str, str | None] = {
    r"README\.md": "README.md",
    r"privacy\.json": "privacy.json",
    r"data/train-\d{5}-of-\d{5}\.parquet": "data/train-*.parquet",
}
# Files that a repository may hold before the first push, because people or the Hub create repositories with them.
INITIAL_FILES = re.compile(r"README\.md|\.gitattributes|LICENSE[^/]*")

# What to do about each HTTP status; None means that there was no answer.
ADVICE = {
    None: "check the connection",
    400: "correct what it says",
    401: "log in with `hf auth login`, or set HF_TOKEN to a valid token",
    402: "make room in the account, or pay for more",
    403: "use a token that may write there, or make room in the account if that is what it says",
    404: "check the name, and that the token may see it",
    409: "wait until the other change to the repository is done",
    412: "look at what somebody else has just changed there",
    413: "make room in the account, or push less",
    429: "wait some minutes, as the Hub asks",
}


def push_model(
    output_dir: str | Path,
    repo_id: str,
    *,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    create_pr: bool = False,
    counted: Sequence[CountedRun] | None = None,
) -> CommitInfo:
    """Push the publishable files of a finished run to a model repository, in one commit.

    The same commit deletes files of an earlier push that are no longer part of the model. Files that others added to
    the repository stay, and so does text that people wrote into README.md, here or on the Hub.

    Args:
        output_dir (`str` or `Path`): The directory that `save_pipeline` wrote.
        repo_id (`str`): `"user/name"`, or a name in the namespace of the token's owner.
        commit_message (`str`, *optional*): One line; the privacy budget by default.
        private (`bool`, *optional*):
            Whether a new repository is private; the namespace's default by default.
        token (`str`, *optional*): The token of `hf auth login` or `HF_TOKEN` by default.
        create_pr (`bool`, *optional*, defaults to False): Open a pull request instead.
        counted (`Sequence[CountedRun]`, *optional*): The runs that this run counts; read from its journal by default.

    Returns:
        `huggingface_hub.CommitInfo`: Address and id of the commit.

    Raises:
        InputError:
            If the run is not finished or not private; if the repository holds files but no privacy.json, because then
            they were not pushed by this library; or if its privacy.json states releases of the same run that are not
            counted here.
        HubError:
            If the push fails, on the Hub or here. The message says what to do; nothing is lost, and the same call tries
            again.
    """
    directory = Path(output_dir)
    files = publishable_files(directory, MODEL_FILES)
    privacy = check_statement(directory / "privacy.json")
    # Read the files before the journal: if training continues, the journal can only count more than these files show.
    contents = {name: path.read_bytes() for name, path in files.items()}
    check_journal(directory, privacy, counted)
    local = files["README.md"].read_text(encoding="utf-8")
    check_budget(local, privacy, str(files["README.md"]))
    last_seen = RunPaths(directory).card_on_hub

    def card(hub_card: str | None, repo_id: str) -> str:
        base = last_seen.read_text(encoding="utf-8") if last_seen.is_file() else None
        merged = merge(with_repo_id(local, repo_id), hub_card, base)
        if merged is None:
            assert hub_card is not None  # otherwise there is nothing to merge
            last_seen.parent.mkdir(mode=0o700, exist_ok=True)
            last_seen.write_text(hub_card, encoding="utf-8")
            raise InputError(
                f"README.md was edited both in {directory} and on the Hub: carry over what you want to keep from the "
                f"Hub's, which is now {last_seen}, and push again."
            )
        return merged

    commit, pushed = _push(
        repo_id,
        "model",
        contents,
        MODEL_FILES,
        privacy,
        card,
        commit_message or f"Diffusion model, {budget(privacy)}-differentially private",
        f"Spent on {mechanisms_in_words(privacy)}.",
        private,
        token,
        create_pr,
        again=f"`dp-curriculum push {directory} {repo_id}`",
    )
    files["README.md"].write_text(pushed, encoding="utf-8")
    if last_seen.parent.is_dir() and not create_pr:
        last_seen.write_text(pushed, encoding="utf-8")
    return commit


def push_dataset(
    directory: str | Path,
    repo_id: str,
    *,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """Push a synthetic data set to a data set repository, in one commit.

    Text that people wrote into the card on the Hub stays.

    Args:
        directory (`str` or `Path`): Holds `data/train-*.parquet`, README.md and privacy.json.
        repo_id (`str`): `"user/name"`, or a name in the namespace of the token's owner.
        commit_message (`str`, *optional*): One line; the privacy budget by default.
        private (`bool`, *optional*): Whether a new repository is private; the namespace's default by default.
        token (`str`, *optional*): The token of `hf auth login` or `HF_TOKEN` by default.
        create_pr (`bool`, *optional*, defaults to False): Open a pull request instead.

    Returns:
        `huggingface_hub.CommitInfo`: Address and id of the commit.

    Raises:
        InputError: If the data set or the repository cannot be pushed to, as in [`push_model`].
        HubError: If the push fails; nothing is lost, and the same call tries again.
    """
    directory = Path(directory)
    files = publishable_files(directory, DATASET_FILES)
    privacy = check_statement(directory / "privacy.json")
    local = files["README.md"].read_text(encoding="utf-8")
    check_budget(local, privacy, str(files["README.md"]))

    def card(hub_card: str | None, repo_id: str) -> str:
        addressed = with_repo_id(local, repo_id)
        return addressed if hub_card is None else update(hub_card, addressed)

    commit, _ = _push(
        repo_id,
        "dataset",
        files,
        DATASET_FILES,
        privacy,
        card,
        commit_message or f"Synthetic images from a {budget(privacy)}-differentially private model",
        "",
        private,
        token,
        create_pr,
        again="the same command",
    )
    return commit


def prepare_repo(repo_id: str, repo_type: str, private: bool | None, token: str | None) -> str:
    """Create the repository if needed, and check that it can be pushed to; called before training or sampling starts.

    Args:
        repo_id (`str`): `"user/name"`, or a name in the namespace of the token's owner.
        repo_type (`str`): `"model"` or `"dataset"`.
        private (`bool`, *optional*): Whether a new repository is private.
        token (`str`, *optional*): The token of `hf auth login` or `HF_TOKEN` by default.

    Returns:
        `str`: The repository's full id.

    Raises:
        InputError: If the repository holds files of another origin, or is public although `private` is set.
        HubError: If the Hub is out of reach, or refuses the request.
    """
    with _explain_failure(repo_id, token, again="the same command"):
        return _open_repo(HfApi(token=token), repo_id, repo_type, private).id


def publishable_files(directory: Path, allowed: dict[str, str | None]) -> dict[str, Path]:
    """Find the files of `directory` that are on an allow-list.

    Args:
        directory (`Path`): The directory.
        allowed (`dict[str, str or None]`): An allow-list, such as `MODEL_FILES`.

    Returns:
        `dict[str, Path]`: The files by their path in the repository.

    Raises:
        InputError: If a required file is missing, or a file is a link, which might point to any other file.
    """
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory: give that of a finished run.")
    top = sorted(directory.iterdir())
    found = {}
    for path in [*top, *(path for folder in top if folder.is_dir() for path in sorted(folder.iterdir()))]:
        name = path.relative_to(directory).as_posix()
        if not _is_allowed(name, allowed):
            continue
        if path.is_symlink() or (path.parent != directory and path.parent.is_symlink()) or not path.is_file():
            raise InputError(f"{path} is a link or no file: put the file itself there before it is pushed.")
        found[name] = path
    for pattern, needed in allowed.items():
        if needed is not None and not any(re.fullmatch(pattern, path) for path in found):
            raise InputError(f"{directory} has no {needed} and is not finished: finish it before it is pushed.")
    return found


def _is_allowed(name: str, allowed: dict[str, str | None]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in allowed)


def _push(
    repo_id: str,
    repo_type: str,
    files: Mapping[str, Path | bytes],
    allowed: dict[str, str | None],
    privacy: PrivacyStatement,
    card: Callable[[str | None, str], str],
    commit_message: str,
    commit_description: str,
    private: bool | None,
    token: str | None,
    create_pr: bool,
    again: str,
) -> tuple[CommitInfo, str]:
    """Commit `files`; README.md is the result of `card`, called with the repository's card and id."""
    with _explain_failure(repo_id, token, again):
        api = HfApi(token=token, library_name="diffusers-dp-curriculum")
        head = _open_repo(api, repo_id, repo_type, private)
        published = _read_file(api, head, repo_type, "privacy.json")
        if published is not None:
            check_replaces(privacy, _as_statement(published, head.id), head.id)
        pushed = card(_read_file(api, head, repo_type, "README.md"), head.id)
        check_budget(pushed, privacy, f"README.md of {head.id} on the Hub")  # it may contain text that people wrote
        operations = [
            CommitOperationAdd(name, pushed.encode() if name == "README.md" else content)
            for name, content in files.items()
        ]
        operations += [
            CommitOperationDelete(sibling.rfilename)
            for sibling in head.siblings
            if sibling.rfilename not in files and _is_allowed(sibling.rfilename, allowed)
        ]
        commit = api.create_commit(
            head.id,
            operations,
            commit_message=commit_message,
            commit_description=commit_description,
            repo_type=repo_type,
            parent_commit=head.sha,  # fail instead of overwriting a concurrent commit
            create_pr=create_pr,
        )
        logger.info("Pushed to %s.", commit.commit_url)
        return commit, pushed


def _open_repo(api: HfApi, repo_id: str, repo_type: str, private: bool | None) -> ModelInfo | DatasetInfo:
    """Read the state of a repository, and create it if needed; refuse one with files of another origin."""
    repo_id = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True).repo_id
    head = api.repo_info(repo_id, repo_type=repo_type)
    if private and not head.private:
        raise InputError(f"{repo_id} exists and is public: make it private on the Hub, or choose another name.")
    # Files of another origin may have the same names: `datasets` also writes real images to
    # data/train-00000-of-00001.parquet.
    names = [sibling.rfilename for sibling in head.siblings]
    foreign = [name for name in names if not INITIAL_FILES.fullmatch(name)]
    if foreign and "privacy.json" not in names:
        raise InputError(
            f"{repo_id} holds {foreign[0]} and no privacy.json, as no repository of this library does: choose another "
            "name, or move its files elsewhere before."
        )
    return head


def _read_file(api: HfApi, head: ModelInfo | DatasetInfo, repo_type: str, name: str) -> str | None:
    """The text of a file of a repository; None if it has no such file."""
    if name not in [sibling.rfilename for sibling in head.siblings]:
        return None
    with tempfile.TemporaryDirectory() as directory:
        path = api.hf_hub_download(head.id, name, repo_type=repo_type, revision=head.sha, local_dir=directory)
        return Path(path).read_text(encoding="utf-8")


def _as_statement(text: str, repo_id: str) -> PrivacyStatement:
    """Parse a privacy.json from the Hub."""
    try:
        return PrivacyStatement.from_dict(json.loads(text))
    except ValueError as error:
        raise InputError(
            f"privacy.json of {repo_id} on the Hub is not one of this library's ({error}): restore it there, or choose "
            "another name."
        ) from None


@contextmanager
def _explain_failure(repo_id: str, token: str | None, again: str) -> Iterator[None]:
    """Turn any failure into one sentence: what failed, what to do, and that nothing is lost."""
    try:
        yield
    except DPCurriculumError:
        raise
    except Exception as error:  # of many types: from the Hub's client, its HTTP library and the file system
        problem, advice = _problem_and_advice(error)
        if token:
            problem = problem.replace(token, "***")
        raise HubError(
            f"The push to {repo_id} did not succeed ({problem}): {advice}; nothing is lost, and {again} pushes again."
        ) from None  # the original may show HTTP headers


def _problem_and_advice(error: BaseException) -> tuple[str, str]:
    """Describe what went wrong, in the Hub's words if there are any, and what to do about it."""
    if isinstance(error, HFValidationError):
        return _one_line(str(error)), "give a repository as USER/NAME"
    if str(error).startswith("Invalid metadata"):
        return _one_line(str(error)), "correct the lines at the top of README.md"
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set", "unset it"
    while error.__cause__ is not None and getattr(error, "response", None) is None:
        error = error.__cause__
    response = getattr(error, "response", None)
    said = getattr(error, "server_message", None) or str(error).strip() or type(error).__name__
    advice = ADVICE.get(response.status_code if response is not None else None, "wait for the Hub to recover")
    return _one_line(said.splitlines()[0]), advice


def _one_line(text: str) -> str:
    return " ".join(text.split()).rstrip(".:")
