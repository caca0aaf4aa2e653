"""Recognizes names of splits, so that images that are held out are not trained on, and do not become a class."""

import re
from collections.abc import Iterable
from pathlib import Path


WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation", "holdout"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
}
ALONE = re.compile(rf"({'|'.join(WORDS)})[-_ ]?(set|data|split|images|imgs)?")


def split_named(name: str) -> str | None:
    """The split for which a name stands by itself: `"train"` for "Training" or "train_set"; None for other names."""
    found = ALONE.fullmatch(name.lower())
    return WORDS[found[1]] if found else None


def splits_in(file_name: str) -> set[str]:
    """The splits that the name of a file mentions, as in "birds-train-00000-of-00001.parquet"."""
    return {WORDS[word] for word in _words(file_name) if word in WORDS}


def splits_of_path(path: Path) -> set[str]:
    """The splits that the name of a file and the names of its directories stand for."""
    return splits_in(path.name) | {split for name in path.parts[:-1] if (split := split_named(name))}


def parts_of_one_whole(names: Iterable[str]) -> list[str]:
    """The names that differ in the word for a split alone, as "seg_train" and "seg_test" do.

    Args:
        names (`Iterable[str]`): The names of directories that lie beside each other.

    Returns:
        `list[str]`: The names of at least two splits, or none.
    """
    groups: dict[tuple[str, ...], dict[str, str]] = {}
    for name in names:
        if split := split_named(name):
            groups.setdefault((), {})[split] = name
        elif len(found := splits_in(name)) == 1:
            rest = tuple(word for word in _words(name) if word not in WORDS)
            groups.setdefault(rest, {})[found.pop()] = name
    return sorted(name for group in groups.values() if len(group) > 1 for name in group.values())


def _words(name: str) -> list[str]:
    """The words of a name, as "train" and "2017" of "train2017", or "train" and "a" of "trainA"."""
    words = re.sub(r"([a-z])(?=[A-Z0-9])", r"\1 ", name)
    return re.split(r"[-_. ]", words.lower())
