"""Signs in a value that nobody meant: what an editor left, what nobody sees, and in a path what only a shell reads."""

import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from services.text_files import BYTE_ORDER_MARK

_QUOTES = "\"'`\u2018\u2019\u201c\u201d"
_ALWAYS = re.compile(rf"~|[{_QUOTES}]")
_IN_NEW_NAMES = re.compile(rf"^\$[\w{{(]|\\|^[{_QUOTES}]|[{_QUOTES}]$|^[A-Za-z][\w+.-]*:$")
"""A part that begins with a variable, backslashes, quotes around a part, and `C:` or `file:` before the rest."""
_CURE = "write the path in full, without ~, quotes, variables and backslashes"


def refuse_stray_signs(value: str, *, is_password: bool) -> None:
    """Raise `ValueError` for what an editor left, and for white space around a value unless it is a password."""
    if value.startswith(BYTE_ORDER_MARK):
        raise ValueError(
            "it begins with a byte order mark: remove that, and save a file of variables as UTF-8 without one"
        )
    if "\r" in value or "\n" in value:
        raise ValueError(
            "it holds the end of a line: remove it, and save a file of variables with the line ends of Unix (LF)"
        )
    if value != value.strip() and not is_password:
        raise ValueError("it begins or ends with white space: remove that")
    if any(unicodedata.category(sign) == "Cc" for sign in value):
        raise ValueError("it holds a control character: remove that")


def refuse_undecodable(value: str) -> None:
    """Raise `ValueError` for bytes that are no text; only the name of a file may hold such."""
    if any(unicodedata.category(sign) == "Cs" for sign in value):
        raise ValueError("it holds bytes that are not UTF-8: write it anew in UTF-8")


def refuse_lookalike(value: str) -> None:
    """Raise `ValueError` for a value that only looks like another: in quotes, or with a character that nobody sees."""
    if len(value) > 1 and value[0] == value[-1] and value[0] in _QUOTES:
        raise ValueError("it stands in quotes, which only a shell takes away: remove them")
    for sign in value:
        if unicodedata.category(sign) == "Cf":
            name = unicodedata.name(sign, "without a name")
            raise ValueError(f"it holds an invisible character (U+{ord(sign):04X} {name}): write it anew, by hand")


def path_fault(text: str) -> str | None:
    """Why a path would quietly name another file or folder than the one that is meant, with the cure; else None.

    A file or folder that is there may have any name. Only at the beginning, `~` and quotes are refused also then: an
    earlier start may have made the folder that was not meant.
    """
    found = _ALWAYS.match(text) or next(filter(None, map(_IN_NEW_NAMES.search, _new_names(text))), None)
    return found and f"no shell reads it, so {found.group()!r} would become a part of a name: {_CURE}"


def _new_names(text: str) -> Iterator[str]:
    path = Path(text)
    for part in (path, *path.parents):
        if os.path.lexists(part):  # `Path.exists` raises for a part that is too long or that nobody may look into
            return
        yield part.name
