"""Cards that people may edit: only the generated sections are updated, and all other text is kept.

A generated section stands between the comments `<!-- generated: NAME -->` and `<!-- end: NAME -->`, which are not
visible in the rendered card. All text outside belongs to its author, including the metadata at the top. To take over a
generated section, an author removes its two comments; only the privacy statement is then added again.
"""

import html
import re
from typing import Any

import yaml
from huggingface_hub import RepoCard

from ..errors import InputError
from ..privacy.accounting import round_up
from ..privacy.statement import PrivacyStatement, scope_in_words
from ..units import USER


STATEMENT = "statement"
SECTION = re.compile(r"<!-- generated: (?P<name>\w+)\b.*?-->.*?<!-- end: (?P=name) -->", re.DOTALL)
CLAIM = r"This (?:model|data set) is \([^()]*\)-differentially private"
# A privacy statement with only one of its two comments is no section any more: the remaining comment and the old
# sentence after it are removed.
SECTION_OR_REST = re.compile(
    rf"{SECTION.pattern}|<!-- (?:generated|end): {STATEMENT}\b.*?-->(?:\s*\*\*{CLAIM}[^\n]*)?", re.DOTALL
)


def privacy_claim(
    privacy: PrivacyStatement, subject: str, data: str, with_label: bool, mechanisms_in_words: str
) -> str:
    """State the budget in a sentence that can be quoted on its own, and explain what it covers.

    Args:
        privacy (`PrivacyStatement`): The content of privacy.json.
        subject (`str`): The subject of the sentence, such as "This model".
        data (`str`): The data that is protected, such as "its training data".
        with_label (`bool`): Whether a record is an image with its label.
        mechanisms_in_words (`str`): What the budget was spent on, in words.
    """
    if not privacy.private:
        return "\n\n".join([f"**{subject} is NOT private. Do not share it.**", *privacy.remarks])
    unit = privacy.unit
    whole = ""
    if unit == USER:
        whole = " It covers adding or removing all images of one person, however many they are."
    return (
        f"**{subject} is {budget(privacy)}-differentially private with respect to zeroing out one {unit} "
        f"({unit_in_words(unit, with_label)}) of {data}.**{whole} That is zero-out adjacency: the {unit} is replaced "
        f"by one that contributes nothing to any sum, and the published number of {unit}s is taken as known. The one "
        f"budget covers everything by which training read the data: {mechanisms_in_words}. "
        f"{scope_in_words(privacy.num_previous_runs)}"
    )


def unit_in_words(unit: str, with_label: bool) -> str:
    """Say what a unit of privacy is.

    Args:
        unit (`str`): `"record"` or `"user"`.
        with_label (`bool`): Whether a record is an image with its label.
    """
    if unit == USER:
        return "all images of one person, with their labels" if with_label else "all images of one person"
    return "one image with its label" if with_label else "one image"


def unit_limits(unit: str) -> str:
    """Say what is protected if one person has several records.

    Args:
        unit (`str`): `"record"` or `"user"`.
    """
    if unit == USER:
        return "They are protected together, however many they are. How many images there are is not published."
    return "Several records of one person are protected as several records, not as one person."


def mechanism_table(privacy: PrivacyStatement) -> str:
    """Render the mechanisms as a Markdown table, with a column for the run if there are several runs.

    Args:
        privacy (`PrivacyStatement`): The content of privacy.json.
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
    """Format (epsilon, delta) for the cards, both rounded up."""
    return f"({round_up(privacy.epsilon)}, {round_up(privacy.delta)})"


def check_budget(card: str, privacy: PrivacyStatement, where: str) -> None:
    """Refuse a card that does not state the budget of its privacy.json, or that also claims another budget.

    Args:
        card (`str`): The content of the card.
        privacy (`PrivacyStatement`): The content of privacy.json.
        where (`str`): The name of the card, for the error message.

    Raises:
        InputError: If the card does not state the budget, or claims another one.
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
    """Escape a name so that a card shows it unchanged, even if it contains Markdown or HTML."""
    return re.sub(r"([\\`*|])", r"\\\1", html.escape(" ".join(name.split()), quote=False))


def update(card: str, fresh: str) -> str:
    """Replace the generated sections and metadata of a card, which may have been edited, by those of `fresh`.

    Tags, and metadata that `fresh` does not have, are kept.

    Args:
        card (`str`): The existing card.
        fresh (`str`): The newly rendered card.

    Returns:
        `str`: The updated card.
    """
    sections = {match["name"]: match[0] for match in SECTION.finditer(fresh)}
    text = SECTION_OR_REST.sub(lambda match: sections.get(match["name"], ""), _text(card))
    present = {match["name"] for match in SECTION.finditer(text)}
    if STATEMENT not in present:
        # A card without generated sections gets all of `fresh`; a card without the privacy statement gets that back.
        missing = sections.get(STATEMENT, "") if present else _text(fresh)
        text = f"{missing.strip()}\n\n{text.strip()}"
    return _compose({**_metadata(card), **_metadata(fresh)}, text, card, fresh)


def merge(local: str, hub: str | None, base: str | None) -> str | None:
    """Merge the local card and the card on the Hub, keeping what people wrote in either of them.

    Args:
        local (`str`): The local card, whose generated sections are used.
        hub (`str`, *optional*): The card on the Hub; None if there is none.
        base (`str`, *optional*): The card on the Hub when it was last pushed or read; None if it never was.

    Returns:
        `str`, *optional*: The card to push; None if people edited both cards.
    """
    if hub is None or hub == base or _own_text(hub) == _own_text(local):
        return local
    if not _has_own_text(hub):
        return _adopt_metadata(local, hub)
    if not _has_own_text(local) or (base is not None and _own_text(base) == _own_text(local)):
        return update(hub, local)
    return None


def _own_text(card: str) -> str:
    """The part of a card that people wrote: the metadata and the text outside the generated sections."""
    return SECTION.sub("", card).strip()


def _has_own_text(card: str) -> bool:
    """Whether a person wrote any text into the card."""
    return bool(SECTION.sub("", _text(card)).strip())


def _adopt_metadata(card: str, other: str) -> str:
    """Add the metadata of `other` to `card`, whose own metadata take precedence."""
    return _compose({**_metadata(other), **_metadata(card)}, _text(card), card, other)


def _metadata(card: str) -> dict[str, Any]:
    return RepoCard(card, ignore_metadata_errors=True).data.to_dict()


def _text(card: str) -> str:
    return RepoCard(card, ignore_metadata_errors=True).text.strip()


def _compose(metadata: dict[str, Any], text: str, *cards: str) -> str:
    tags = dict.fromkeys(tag for card in cards for tag in _metadata(card).get("tags", []))
    header = yaml.safe_dump({**metadata, **({"tags": list(tags)} if tags else {})}, sort_keys=False, allow_unicode=True)
    return f"---\n{header.strip()}\n---\n\n{text.strip()}\n"
