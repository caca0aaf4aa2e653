"""docs/troubleshooting.md quotes messages up to their colon: each must be one that the code can print."""

import ast
import inspect
import re

import pytest
from diffusers.utils import dynamic_modules_utils

from helpers.repository import PACKAGE, read


QUOTES = re.findall(r"^```text\n(.*?)\n```$", read("docs/troubleshooting.md"), re.MULTILINE | re.DOTALL)
LEAST_LETTERS = 10  # without the parts that vary; a shorter text could match any message


def messages(source: str) -> list[str]:
    """The texts in the source of a module, without backticks, and with `...` for what is filled in."""
    texts, nodes = [], list(ast.walk(ast.parse(source)))
    pieces = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in nodes:
        match node:
            case ast.Constant(value=str(text)) if id(node) not in pieces:
                texts.append(text)
            case ast.Constant(value=bytes(text)):
                texts.append(text.decode())
            case ast.JoinedStr(values=parts):
                texts.append("".join(part.value if isinstance(part, ast.Constant) else "..." for part in parts))
    return [plain(text) for text in texts]


def plain(text: str) -> str:
    return " ".join(text.replace("`", "").split())


def is_printed(quote: str, text: str) -> bool:
    """Whether a message matches the quote, as a whole or up to its first colon."""
    for words in (text, text.split(": ")[0]):
        literal = [re.escape(word) for word in words.split("...")]
        if len("".join(words.split("..."))) >= LEAST_LETTERS and re.fullmatch(".+".join(literal), quote):
            return True
    return False


SOURCES = [path.read_text("utf-8") for path in PACKAGE.rglob("*.py")] + [inspect.getsource(dynamic_modules_utils)]
MESSAGES = [message for source in SOURCES for message in messages(source)]


@pytest.mark.parametrize("quote", QUOTES)
def test_the_message_is_one_that_the_code_prints(quote):
    assert any(is_printed(plain(quote), message) for message in MESSAGES)


def test_a_message_that_has_changed_is_noticed():
    assert len(QUOTES) > 10
    source = 'raise InputError(f"{path} holds no run, although `name` is {name}: give another.")'
    (message,) = [text for text in messages(source) if "holds" in text]
    assert is_printed("... holds no run, although name is ...", message)
    assert is_printed("my-model holds no run, although name is x", message)
    for other in (
        "... holds a run, although name is ...",
        "... holds no run",
        "holds no run, although name is ... yet",
    ):
        assert not is_printed(other, message)
    assert not is_printed("anything at all", messages('f"{what} is {that}"')[0])
