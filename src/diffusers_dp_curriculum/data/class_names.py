"""Names of classes, which are published: spelled in one way, of one line and all different."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

from ..errors import InputError


NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]+)?")  # a name that is one

# Categories of Unicode: controls such as a line break, bytes that are no text, separators of lines and paragraphs.
NO_TEXT = {"Cc", "Cs", "Zl", "Zp"}


def one_spelling(name: str) -> str:
    """The name with each accented letter as one character; macOS stores such letters in names of files as two.

    Args:
        name (`str`): A name of a class, of a directory, or in a label.
    """
    return unicodedata.normalize("NFC", name)


def checked_class_names(names: Sequence[str] | None) -> list[str] | None:
    """Check the names of classes.

    Args:
        names (`Sequence[str]`, *optional*): The names, in order.

    Returns:
        `list[str]`, *optional*: The names in [`one_spelling`].

    Raises:
        InputError: If they are no list of texts of one line that are all different.
    """
    if names is None:
        return None
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise InputError(f"`class_names` is {names!r}: give a list of texts, one for each class.")
    spelled = [one_spelling(name) for name in names]
    for name, number in Counter(spelled).items():
        if not name.strip() or NO_TEXT & set(map(unicodedata.category, name)):
            raise InputError(
                f"The name {name!a} of a class is no line of text in UTF-8: rename the class, or its directory."
            )
        if number > 1:
            raise InputError(
                f"The classes {', '.join(spelled)} are not all different, since {name} is there {number} times: give "
                "each a name of its own."
            )
    return spelled
