"""Docstrings in Hugging Face's style, as mkdocstrings reads them.

Types lose their backticks, [`name`] becomes a link where the API page has that name, and dataclass fields with a help
text, as `DPCurriculumConfig` has them, become the arguments of their class.
"""

import dataclasses
import importlib
import re

import griffe

from diffusers_dp_curriculum.options import declared_options


EXPORTS = importlib.import_module("diffusers_dp_curriculum")
ARGUMENT = re.compile(r"^( *)(\w+) \((.*)\):", re.MULTILINE)
RETURNED = re.compile(r"^( *)\[?`([\w.]+)`\]?( or `\w+`)?:", re.MULTILINE)
REFERENCE = re.compile(r"\[`~?([\w.]+)`\](?!\()")


class HuggingFaceDocstrings(griffe.Extension):
    """Rewrites the docstrings of the package, once, before any of them is parsed."""

    def on_package(self, *, pkg: griffe.Module, **_) -> None:
        """Called by griffe with the whole package."""
        if pkg.name == EXPORTS.__name__:
            self._rewrite(pkg)

    def _rewrite(self, obj: griffe.Object) -> None:
        if obj.docstring is not None:
            obj.docstring.value = self._rewritten(obj.docstring.value, obj)
        for member in obj.members.values():
            if not member.is_alias:
                self._rewrite(member)

    def _rewritten(self, text: str, obj: griffe.Object) -> str:
        text = ARGUMENT.sub(lambda match: f"{match[1]}{match[2]} ({_plain(match[3])}):", text)
        text = RETURNED.sub(lambda match: match[1] + _plain(match[0].strip()), text)
        if obj.is_class and obj.name in EXPORTS.__all__:
            text += _arguments(getattr(EXPORTS, obj.name))
        owner = obj if obj.is_class else obj.parent
        return REFERENCE.sub(lambda match: _link(match[1], owner), text)


def _plain(annotation: str) -> str:
    """The types alone, without "optional" and the default, which the signature shows."""
    annotation = re.sub(r"\[`~?([\w.]+)`\]", r"\1", annotation)
    return re.sub(r", (\*optional\*.*|defaults to .*)", "", annotation).replace("`", "")


def _arguments(exported: type) -> str:
    """An Args section from the help texts of a dataclass."""
    if not dataclasses.is_dataclass(exported) or "help" not in dataclasses.fields(exported)[0].metadata:
        return ""
    lines = []
    for option in declared_options(exported):
        kind = getattr(option.type, "__name__", option.type)
        lines.append(f"    {option.name} ({kind}, defaults to {option.default!r}): {option.description}")
    return "\n\nArgs:\n" + "\n".join(lines) if lines else ""


def _link(name: str, owner: griffe.Object) -> str:
    """A link to a name that is exported, or a member of one or of the class at hand; else the name alone."""
    first, _, rest = name.partition(".")
    if owner is not None and owner.is_class and owner.name in EXPORTS.__all__ and name in owner.members:
        return f"[`{name}`][{owner.path}.{name}]"
    if first in EXPORTS.__all__ and (not rest or hasattr(getattr(EXPORTS, first), rest)):
        return f"[`{name}`][{EXPORTS.__name__}.{name}]"
    return f"`{name}`"
