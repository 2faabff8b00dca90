"""Where in a TOML text something stands; the parser gives no positions, but it can tell which first lines have it."""

import tomllib
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any


def line_of(text: str, path: Sequence[str | int]) -> int | None:
    """The line, counted from 1, on which the statement begins that brings `path` (keys, list indices) in.

    None where the text has no such place, or only somewhere inside a statement of several lines.
    `text` is sound TOML.
    """
    lines = text.replace("\r\n", "\n").split("\n")
    # A statement of several lines does not parse before its last one: what few lines bring, more lines keep.
    began = bisect_left(range(len(lines) + 1), 1, key=lambda count: _has(_first_lines(lines, count)[0], path))
    if began > len(lines):
        return None
    if _first_lines(lines, began)[1] > began and not _has(_first_lines(lines, began - 1)[0], path[:-1]):
        return None
    return began or None


def _first_lines(lines: Sequence[str], count: int) -> tuple[Any, int]:
    """What `count` lines hold, or the fewest after them that end a statement; and how many these are."""
    for enough in range(count, len(lines)):
        try:
            return tomllib.loads("\n".join(lines[:enough])), enough
        except tomllib.TOMLDecodeError:
            continue
    return tomllib.loads("\n".join(lines)), len(lines)


def _has(data: Any, path: Sequence[str | int]) -> bool:
    for part in path:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            return False
    return True
