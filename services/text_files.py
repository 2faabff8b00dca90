"""Reads text files that people write, with whatever editor they have."""

import io
from typing import Protocol

BYTE_ORDER_MARK = "\ufeff"
_UTF_8_MARK = b"\xef\xbb\xbf"
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
HEAD_BYTES = 4
"""What tells how a text is encoded."""


class ReadableFile(Protocol):
    """A path, or a file that comes along in a package."""

    def read_bytes(self) -> bytes:
        """All that it holds."""


def read_text(path: ReadableFile) -> str:
    """The text of a file in UTF-8, without a byte order mark, and with the line ends of Unix.

    Raises `OSError`, and `ValueError` with the cause and the cure for another encoding.
    """
    data = path.read_bytes()
    if _is_utf_16(data):
        raise ValueError("is UTF-16, as programs on Windows may write it: save it as UTF-8")
    try:
        return io.StringIO(data.decode("utf-8-sig"), newline=None).read()
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8: save it as UTF-8") from None


def mark_fault(head: bytes) -> str | None:
    """Why a program that reads plain ASCII cannot read a file that begins like this, with the cure; else None."""
    if _is_utf_16(head):
        return "is UTF-16, as programs on Windows may write it: save it as plain text in ASCII or UTF-8"
    if head.startswith(_UTF_8_MARK):
        return "begins with a byte order mark: save it without one"
    return None


def _is_utf_16(data: bytes) -> bool:
    """A mark tells it; without one, every other byte of an ASCII text is zero."""
    return data.startswith(_UTF_16_MARKS) or b"\0" in data[:HEAD_BYTES]
