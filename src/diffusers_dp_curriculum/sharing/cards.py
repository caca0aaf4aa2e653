"""Cards that people may edit: generated sections between comments, and everything else left alone.

A generated section stands between `<!-- generated: NAME -->` and `<!-- end: NAME -->`, which no reader of the rendered
card sees. What is outside belongs to whoever wrote it, the metadata at the top included. Taking the two comments away
makes a section one's own; only the privacy statement comes back.
"""

import html
import re
from typing import Any

import yaml
from huggingface_hub import RepoCard

from ..errors import InputError
from ..privacy.accounting import round_up
from ..privacy.statement import PrivacyStatement, scope_in_words


STATEMENT = "statement"
SECTION = re.compile(r"<!-- generated: (?P<name>\w+)\b.*?-->.*?<!-- end: (?P=name) -->", re.DOTALL)
CLAIM = r"This (?:model|data set) is \([^()]*\)-differentially private"
# A statement that has lost one of its comments is no section any more: the other goes, and the old sentence behind it.
SECTION_OR_REST = re.compile(
    rf"{SECTION.pattern}|<!-- (?:generated|end): {STATEMENT}\b.*?-->(?:\s*\*\*{CLAIM}[^\n]*)?", re.DOTALL
)


def privacy_claim(
    privacy: PrivacyStatement, subject: str, data: str, with_label: bool, mechanisms_in_words: str
) -> str:
    """The budget in a sentence that can be quoted on its own, and what it covers.

    Args:
        privacy (`PrivacyStatement`): What privacy.json says.
        subject (`str`): What the sentence is about: "This model".
        data (`str`): Whose record it is about: "its training data".
        with_label (`bool`): Whether a record is an image with its label.
        mechanisms_in_words (`str`): What the budget was spent on.
    """
    if not privacy.private:
        return "\n\n".join([f"**{subject} is NOT private. Do not share it.**", *privacy.remarks])
    record = "one image with its label" if with_label else "one image"
    return (
        f"**{subject} is {budget(privacy)}-differentially private with respect to zeroing out one record ({record}) of "
        f"{data}.** That is zero-out adjacency: the record is replaced by one that contributes nothing to any sum, and "
        "the published number of records is taken as known. The one budget covers everything by which training read "
        f"the data: {mechanisms_in_words}. {scope_in_words(privacy.num_previous_runs)}"
    )


def mechanism_table(privacy: PrivacyStatement) -> str:
    """The mechanisms of a privacy.json as a table in Markdown, with the run of each if there are several.

    Args:
        privacy (`PrivacyStatement`): What privacy.json says.
    """
    several = privacy.num_previous_runs > 0
    rows = [["mechanism", "noise multiplier", "sample rate", "steps", "sensitivity", "run"], ["---"] * 6]
    for number, run in enumerate(privacy.runs):
        which = f"previous run {number}" if number > 0 else "this run"
        for m in run.mechanisms:
            numbers = [f"{m.noise_multiplier:.6g}", f"{m.sample_rate:.6g}", str(m.steps), f"{m.sensitivity:.6g}"]
            rows.append([as_text(m.name), *numbers, which])
    return "\n".join(f"| {' | '.join(row if several else row[:-1])} |" for row in rows)


def budget(privacy: PrivacyStatement) -> str:
    """(epsilon, delta) as the cards write it."""
    return f"({round_up(privacy.epsilon)}, {round_up(privacy.delta)})"


def check_budget(card: str, privacy: PrivacyStatement, where: str) -> None:
    """Refuse a card that does not state the budget of its privacy.json, or that claims another one besides.

    Args:
        card (`str`): The card.
        privacy (`PrivacyStatement`): What privacy.json says.
        where (`str`): Which card it is, in words.

    Raises:
        InputError: If so.
    """
    stated = f"{budget(privacy)}-differentially private"
    if stated not in card:
        raise InputError(
            f'{where} does not state the budget of privacy.json: write "{stated}" into it, and push again.'
        )
    for claim in re.findall(CLAIM, card):
        if stated not in claim:
            raise InputError(
                f'{where} also says "{claim}", where privacy.json says {budget(privacy)}: correct it, and push again.'
            )


def as_text(name: str) -> str:
    """A name that is read as it is on a card, whatever signs of Markdown or HTML it holds."""
    return re.sub(r"([\\`*|])", r"\\\1", html.escape(" ".join(name.split()), quote=False))


def update(card: str, fresh: str) -> str:
    """A card that may have been edited, with its generated sections and metadata replaced by those of `fresh`.

    Metadata that `fresh` does not have stay, and so do tags.

    Args:
        card (`str`): The card as it is.
        fresh (`str`): The same kind of card, newly rendered.
    """
    sections = {match["name"]: match[0] for match in SECTION.finditer(fresh)}
    text = SECTION_OR_REST.sub(lambda match: sections.get(match["name"], ""), _text(card))
    present = {match["name"] for match in SECTION.finditer(text)}
    if STATEMENT not in present:
        # A card that is not one of ours yet gets all of it, one whose owner has taken the sentence out gets that back.
        missing = sections.get(STATEMENT, "") if present else _text(fresh)
        text = f"{missing.strip()}\n\n{text.strip()}"
    return _compose({**_metadata(card), **_metadata(fresh)}, text, card, fresh)


def merge(local: str, hub: str | None, base: str | None) -> str | None:
    """The card to push: what people wrote, wherever they did; None if they did in both places.

    Args:
        local (`str`): The directory's card, whose generated sections are the ones that count.
        hub (`str`, *optional*): The repository's card.
        base (`str`, *optional*): The repository's card when it was last seen from here.
    """
    if hub is None or hub == base or _own_text(hub) == _own_text(local):
        return local
    if not _has_own_text(hub):
        return _adopt_metadata(local, hub)
    if not _has_own_text(local) or (base is not None and _own_text(base) == _own_text(local)):
        return update(hub, local)
    return None


def _own_text(card: str) -> str:
    """What people wrote: the metadata and the text outside the generated sections."""
    return SECTION.sub("", card).strip()


def _has_own_text(card: str) -> bool:
    """Whether a person wrote any text into the card."""
    return bool(SECTION.sub("", _text(card)).strip())


def _adopt_metadata(card: str, other: str) -> str:
    """`card` with the metadata of `other` besides its own, which win."""
    return _compose({**_metadata(other), **_metadata(card)}, _text(card), card, other)


def _metadata(card: str) -> dict[str, Any]:
    return RepoCard(card, ignore_metadata_errors=True).data.to_dict()


def _text(card: str) -> str:
    return RepoCard(card, ignore_metadata_errors=True).text.strip()


def _compose(metadata: dict[str, Any], text: str, *cards: str) -> str:
    tags = dict.fromkeys(tag for card in cards for tag in _metadata(card).get("tags", []))
    header = yaml.safe_dump({**metadata, **({"tags": list(tags)} if tags else {})}, sort_keys=False, allow_unicode=True)
    return f"---\n{header.strip()}\n---\n\n{text.strip()}\n"
