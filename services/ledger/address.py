"""Reads the ledger's address; whatever could quietly name another ledger than the one that is meant is refused."""

import os
import re
import unicodedata
from pathlib import Path

from services.errors import Misconfigured

SQLITE_SCHEME = "sqlite:///"
POSTGRES_SCHEMES = ("postgresql://", "postgres://")
SETTING = "EVENLOAD_LEDGER_URL"
FORMS = "give sqlite:///path/to/ledger.sqlite or postgresql://user:password@host:port/database"
_SQLITE_FORM = "give sqlite:///path/to/ledger.sqlite (with a fourth slash before an absolute path)"

_UNSUPPORTED = re.compile(r"[?#\"'$\\]|%[0-9A-Fa-f]{2}|^\s|\s$")
"""Options, fragments, quotes, variables, escapes and white space at the edge: other programs read or drop them."""


LONGEST_FILE_BYTES = 504
"""SQLite takes 512, of which eight are for `-journal`, which it adds to the name."""
_NOT_BY_HAND = f"{SETTING} holds a control or an invisible character: write it anew, by hand"


def check_signs(url: str) -> None:
    """Raise `Misconfigured` for an address with signs around it or in it that nobody meant; never repeats it."""
    if url != url.strip():
        raise Misconfigured(f"{SETTING} begins or ends with white space: remove it (a Windows line end counts, too)")
    # The names of files and folders may hold more; those that are to be made are judged below.
    refused = ("Cc",) if url.startswith(SQLITE_SCHEME) else ("Cc", "Cf", "Cs")
    if any(unicodedata.category(sign) in refused for sign in url):
        raise Misconfigured(_NOT_BY_HAND)


def sqlite_path(url: str, *, is_default: bool = False) -> Path | None:
    """The absolute path of a SQLite ledger, its symbolic links not followed; None for the address of a PostgreSQL.

    The address `is_default` where it was made of the data folder: then nobody wrote it, and it holds any name that a
    folder may have. Raises `Misconfigured` with the cause and the cure.
    """
    check_signs(url)
    if url.startswith(POSTGRES_SCHEMES):
        return None
    if not url.startswith(SQLITE_SCHEME):
        scheme, separator, _ = url.partition("://")
        what = repr(scheme) if separator else "its value"  # which may be a secret that went into the wrong place
        raise Misconfigured(f"{SETTING}: {what} is no ledger this version knows: {FORMS}")
    text = url.removeprefix(SQLITE_SCHEME)
    if text.endswith("/") or Path(text).name in ("", ".."):
        raise Misconfigured(f"{SETTING}: {url!r} names no file: {_SQLITE_FORM}")
    path = Path(text)
    try:
        if not is_default:
            _refuse_new_names(url, path)
        return _plain_file(path)
    except OSError as error:
        raise Misconfigured(
            f"{SETTING}: {text} cannot be used ({error.strerror}): name a file where this user may write"
        ) from None


def _refuse_new_names(url: str, path: Path) -> None:
    first = path.parts[path.is_absolute()]
    is_there = path.is_absolute() and Path(path.anchor, first).exists()
    if first.startswith(("~", ":", "file:")) and not is_there:
        raise Misconfigured(f"{SETTING}: {url!r} is no plain path, and nothing expands it: {_SQLITE_FORM}")
    # The name of a file or folder that is there may be anything.
    new = [part.name for part in (path, *path.parents) if not part.exists()]
    if any(unicodedata.category(sign) == "Cf" for name in new for sign in name):
        raise Misconfigured(_NOT_BY_HAND)
    for name in new:
        if found := _UNSUPPORTED.search(name):
            raise Misconfigured(
                f"{SETTING}: {found.group()!r} in {url!r} would become a part of a name, because options, escapes and "
                f"variables are not supported: {_SQLITE_FORM}"
            )


def _plain_file(path: Path) -> Path:
    length = max(len(os.fsencode(name)) for name in (path.absolute(), os.path.realpath(path)))
    if length > LONGEST_FILE_BYTES:
        raise Misconfigured(
            f"{SETTING}: the path of the ledger is longer than {LONGEST_FILE_BYTES} bytes, which SQLite cannot open: "
            "name a file with a shorter path"
        )
    if path.is_dir():
        raise Misconfigured(f"{SETTING}: {path.absolute()} is no usable ledger (it is a folder): name a file in it")
    if path.exists() and not path.is_file():
        raise Misconfigured(
            f"{SETTING}: {path.absolute()} is no usable ledger (it is no ordinary file): name another file"
        )
    return path.absolute()
