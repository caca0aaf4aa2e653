"""Renders the data set card: README.md of a synthetic data set, with the privacy budget of its model."""

from pathlib import Path

from huggingface_hub import DatasetCard, DatasetCardData

from ..privacy.accounting import round_up
from ..privacy.statement import PrivacyStatement
from .cards import as_text, mechanism_table, privacy_claim, unit_in_words, unit_limits
from .model_card import REPO_ID_TO_COME, mechanisms_in_words


TEMPLATE = Path(__file__).parent / "templates" / "dataset_card_template.md"
TAGS = ["synthetic", "differential-privacy", "dp-sgd", "opacus", "image"]


def make_dataset_card(privacy: PrivacyStatement, num_images: int, counts: dict[str, int] | None) -> DatasetCard:
    """Render the card of a synthetic data set.

    Args:
        privacy (`PrivacyStatement`): The content of the model's privacy.json.
        num_images (`int`): The number of images.
        counts (`dict[str, int]`, *optional*):
            The number of images of each class, in the order of the labels; None without classes.
    """
    task = "unconditional-image-generation" if counts is None else "image-classification"
    return DatasetCard.from_template(
        DatasetCardData(task_categories=[task], tags=TAGS),
        template_path=str(TEMPLATE),
        epsilon=round_up(privacy.epsilon),
        statement=privacy_claim(
            privacy,
            "This data set",
            "the data that its model was trained on",
            counts is not None,
            mechanisms_in_words(privacy),
        ),
        unit_in_words=unit_in_words(privacy.unit, counts is not None),
        unit_limits=unit_limits(privacy.unit),
        privacy=privacy,
        mechanisms=mechanism_table(privacy),
        num_images=num_images,
        counts=None if counts is None else {as_text(name): count for name, count in counts.items()},
        repo_id=REPO_ID_TO_COME,
    )
