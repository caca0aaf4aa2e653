"""Publishing: which files may leave, and how they get to the Hub, whole and in one commit.

What is pushed is named here, file by file. Whatever else lies in a directory stays there.
"""

import json
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, DatasetInfo, HfApi, ModelInfo
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

from .accounting import LooseEpsilonWarning, Mechanism, recompute_epsilon, understates
from .cards import adopt_metadata, budget, has_own_text, own_text, update
from .errors import InputError
from .journal import read_counted
from .ledger import check_publishable
from .model_card import mechanisms_in_words, with_repo_id


# The allow-lists: paths as regular expressions, with the name that a file goes by if nothing is pushed without it.
MODEL_FILES = {
    r"README\.md": "README.md",
    r"privacy\.json": "privacy.json",
    r"samples\.png": "samples.png",
    r"central_images\.png": None,
    r"model_index\.json": "model_index.json",
    r"pipeline\.py": None,
    r"scheduler/scheduler_config\.json": "scheduler/scheduler_config.json",
    r"unet/config\.json": "unet/config.json",
    r"unet/diffusion_pytorch_model(-\d{5}-of-\d{5})?\.safetensors": "unet/diffusion_pytorch_model.safetensors",
    r"unet/diffusion_pytorch_model\.safetensors\.index\.json": None,
}
DATASET_FILES: dict[str, str | None] = {
    r"README\.md": "README.md",
    r"privacy\.json": "privacy.json",
    r"data/train-\d{5}-of-\d{5}\.parquet": "data/train-*.parquet",
}

# What to do about an answer of the Hub; None is no answer.
ADVICE = {
    None: "check the connection",
    400: "correct what it says",
    401: "log in with `hf auth login`, or set HF_TOKEN to a valid token",
    402: "make room in the account, or pay for more",
    403: "use a token that may write there, or make room in the account if that is what it says",
    404: "check the name, and that the token may see it",
    409: "wait for whoever else changes the repository",
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
    counted: list[Mechanism] | None = None,
) -> CommitInfo:
    """Push the publishable files of a finished run to a model repository, in one commit.

    Files that an earlier push brought and that are no longer part of the model are deleted in the same commit; files
    that others put into the repository stay. Text that people wrote into README.md stays too, here and on the Hub.

    Args:
        output_dir (`str` or `Path`): The directory that `save_pipeline` wrote.
        repo_id (`str`): `"user/name"`, or a name in the namespace of the token's owner.
        commit_message (`str`, *optional*): One line; the privacy budget by default.
        private (`bool`, *optional*):
            Whether the repository is private if it has to be created, the namespace's default being used by default.
        token (`str`, *optional*): That of `hf auth login` or `HF_TOKEN` by default.
        create_pr (`bool`, *optional*, defaults to False): Open a pull request instead.
        counted (`list[Mechanism]`, *optional*): What the run has released; read from its journal by default.

    Returns:
        `huggingface_hub.CommitInfo`: Address and id of the commit.

    Raises:
        InputError:
            If the run is not finished or not private, or anything keeps the push from succeeding. The sentence says
            what to do; nothing is lost, and the same call pushes again.
    """
    directory = Path(output_dir)
    files = publishable_files(directory, MODEL_FILES)
    privacy = check_statement(directory / "privacy.json")
    # Read before the journal is: whatever a run that goes on may write meanwhile, these are made of what it counts.
    contents = {name: path.read_bytes() for name, path in files.items()}
    _check_journal(directory, privacy, counted)
    local = files["README.md"].read_text(encoding="utf-8")
    if f"{budget(privacy)}-differentially private" not in local:
        raise InputError(
            f"{directory / 'README.md'} does not state the budget {budget(privacy)} of privacy.json: write it back, or "
            "save the pipeline again."
        )
    seen = directory / "private" / "README.hub.md"  # the card on the Hub as it was when it was last seen here

    def card(hub_card: str | None, repo_id: str) -> str:
        base = seen.read_text(encoding="utf-8") if seen.is_file() else None
        merged = _merge_cards(with_repo_id(local, repo_id), hub_card, base)
        if merged is None:
            assert hub_card is not None  # otherwise there is nothing to merge
            seen.parent.mkdir(mode=0o700, exist_ok=True)
            seen.write_text(hub_card, encoding="utf-8")
            raise InputError(
                f"README.md was edited both in {directory} and on the Hub: carry over what you want to keep from the "
                f"Hub's, which is now {seen}, and push again."
            )
        return merged

    commit, pushed = _push(
        repo_id,
        "model",
        contents,
        MODEL_FILES,
        card,
        commit_message or f"Diffusion model, {budget(privacy)}-differentially private",
        f"Spent on {mechanisms_in_words(privacy)}.",
        private,
        token,
        create_pr,
        again=f"`python examples/push_to_hub.py {directory} {repo_id}`",
    )
    files["README.md"].write_text(pushed, encoding="utf-8")
    if seen.parent.is_dir() and not create_pr:
        seen.write_text(pushed, encoding="utf-8")
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
    """Push a synthetic data set to a data set repository, in one commit; see [`push_model`].

    Args:
        directory (`str` or `Path`): Holds `data/train-*.parquet`, README.md and privacy.json.

    The others are those of [`push_model`], as are the errors. Text on the Hub's card stays.
    """
    directory = Path(directory)
    files = publishable_files(directory, DATASET_FILES)
    privacy = check_statement(directory / "privacy.json")
    local = files["README.md"].read_text(encoding="utf-8")

    def card(hub_card: str | None, repo_id: str) -> str:
        addressed = with_repo_id(local, repo_id)
        return addressed if hub_card is None else update(hub_card, addressed)

    commit, _ = _push(
        repo_id,
        "dataset",
        files,
        DATASET_FILES,
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
    """Make sure that there is a repository that the token may write to: before training, lest it fail after.

    Returns:
        `str`: The repository's full id.

    Raises:
        InputError: If not.
    """
    with _explained(repo_id, token, again="the same command"):
        return _create_repo(HfApi(token=token), repo_id, repo_type, private)


def publishable_files(directory: Path, allowed: dict[str, str | None]) -> dict[str, Path]:
    """The files of `directory` that are on an allow-list, by their path in the repository.

    Raises:
        InputError: If one that is needed is missing, or one is a link and so might be any file at all.
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
            raise InputError(f"{directory} has no {needed}, so it is not finished: finish it before it is pushed.")
    return found


def _is_allowed(name: str, allowed: dict[str, str | None]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in allowed)


def check_statement(privacy_json: Path) -> dict[str, Any]:
    """Read a privacy.json, and refuse to publish under it unless it is private and states no less than it amounts to.

    Raises:
        InputError: If it cannot be read, is not private, or understates epsilon.
    """
    try:
        privacy = json.loads(privacy_json.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{privacy_json} cannot be read ({error}): save the pipeline again.") from error
    check_publishable(privacy)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LooseEpsilonWarning)
        epsilon = recompute_epsilon(privacy)
    if understates(privacy, epsilon):
        raise InputError(
            f"{privacy_json} states epsilon {privacy.get('epsilon')}, but its mechanisms amount to {epsilon:.4g}: save "
            "the pipeline again."
        )
    return privacy


def _check_journal(directory: Path, privacy: dict[str, Any], counted: list[Mechanism] | None) -> None:
    """Refuse to publish a statement that leaves out anything that the run has released."""
    path = directory / "private" / "journal.jsonl"
    if counted is None:
        if not path.is_file():
            return  # only the published files are here, and they were checked when they left the run
        counted = read_counted(path)
    stated = _steps(Mechanism(**entry) for entry in privacy["mechanisms"])
    if _steps(counted) - stated:
        raise InputError(
            f"{path} has releases that privacy.json does not count, so the run went on after it was saved: save the "
            "pipeline again before it is pushed."
        )


def _steps(mechanisms: Iterable[Mechanism]) -> Counter[Any]:
    steps: Counter[Any] = Counter()
    for mechanism in mechanisms:
        steps[astuple(replace(mechanism, steps=1))] += mechanism.steps
    return steps


def _merge_cards(local: str, hub: str | None, base: str | None) -> str | None:
    """The card to push: what people wrote, wherever they did; None if they did in both places.

    Args:
        local (`str`): The directory's card, whose generated sections are the ones that count.
        hub (`str`, *optional*): The repository's card.
        base (`str`, *optional*): The repository's card when it was last seen from here.
    """
    if hub is None or hub == base or own_text(hub) == own_text(local):
        return local
    if not has_own_text(hub):
        return adopt_metadata(local, hub)
    if not has_own_text(local) or (base is not None and own_text(base) == own_text(local)):
        return update(hub, local)
    return None


def _push(
    repo_id: str,
    repo_type: str,
    files: Mapping[str, Path | bytes],
    allowed: dict[str, str | None],
    card: Callable[[str | None, str], str],
    commit_message: str,
    commit_description: str,
    private: bool | None,
    token: str | None,
    create_pr: bool,
    again: str,
) -> tuple[CommitInfo, str]:
    """Commit `files`, with README.md replaced by what `card` makes of the repository's and its id."""
    with _explained(repo_id, token, again):
        api = HfApi(token=token, library_name="diffusers-dp-curriculum")
        repo_id = _create_repo(api, repo_id, repo_type, private)
        head = api.repo_info(repo_id, repo_type=repo_type)
        pushed = card(_read_card(api, head, repo_type), repo_id)
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
            repo_id,
            operations,
            commit_message=commit_message,
            commit_description=commit_description,
            repo_type=repo_type,
            parent_commit=head.sha,  # what happens there meanwhile is not overwritten unseen
            create_pr=create_pr,
        )
        return commit, pushed


def _create_repo(api: HfApi, repo_id: str, repo_type: str, private: bool | None) -> str:
    repo_id = api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True).repo_id
    if private and not api.repo_info(repo_id, repo_type=repo_type).private:
        raise InputError(f"{repo_id} exists and is public: make it private on the Hub, or choose another name.")
    return repo_id


def _read_card(api: HfApi, head: ModelInfo | DatasetInfo, repo_type: str) -> str | None:
    if "README.md" not in [sibling.rfilename for sibling in head.siblings]:
        return None
    with tempfile.TemporaryDirectory() as directory:
        path = api.hf_hub_download(head.id, "README.md", repo_type=repo_type, revision=head.sha, local_dir=directory)
        return Path(path).read_text(encoding="utf-8")


@contextmanager
def _explained(repo_id: str, token: str | None, again: str) -> Iterator[None]:
    """Say of whatever goes wrong within what it is, what to do, and that nothing is lost."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the Hub's client, its HTTP library and the file system each raise their own
        problem, advice = _explain(error)
        if token:
            problem = problem.replace(token, "***")
        raise InputError(
            f"The push to {repo_id} did not succeed ({problem}): {advice}; nothing is lost, and {again} pushes again."
        ) from None  # the original may show headers


def _explain(error: BaseException) -> tuple[str, str]:
    """What went wrong, in the Hub's words if it said anything, and what to do about it."""
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
