"""Reads the ledger's address; whatever could quietly name another ledger than the one that is meant is refused."""

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


def check_signs(url: str) -> None:
    """Raise `Misconfigured` for an address with white space around it or control characters in it; never repeats it."""
    if url != url.strip():
        raise Misconfigured(f"{SETTING} begins or ends with white space: remove it (a Windows line end counts, too)")
    if any(unicodedata.category(sign) in ("Cc", "Cf") for sign in url):
        raise Misconfigured(f"{SETTING} holds a control or an invisible character: write it anew, by hand")


def sqlite_path(url: str) -> Path | None:
    """The absolute path of a SQLite ledger, its symbolic links not followed; None for the address of a PostgreSQL.

    Raises `Misconfigured` with the cause and the cure.
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
    if text.lstrip("/").startswith(("~", ":", "file:")):
        raise Misconfigured(f"{SETTING}: {url!r} is no plain path, and nothing expands it: {_SQLITE_FORM}")
    try:
        return _plain_file(url, Path(text))
    except OSError as error:
        raise Misconfigured(
            f"{SETTING}: {text} cannot be used ({error.strerror}): name a file where this user may write"
        ) from None


def _plain_file(url: str, path: Path) -> Path:
    # The name of a folder that is there may be anything.
    for part in (path, *(folder for folder in path.parents if not folder.exists())):
        if found := _UNSUPPORTED.search(part.name):
            raise Misconfigured(
                f"{SETTING}: {found.group()!r} in {url!r} would become a part of a name, because options, escapes and "
                f"variables are not supported: {_SQLITE_FORM}"
            )
    if path.is_dir():
        raise Misconfigured(f"{SETTING}: {path.absolute()} is no usable ledger (it is a folder): name a file in it")
    if path.exists() and not path.is_file():
        raise Misconfigured(
            f"{SETTING}: {path.absolute()} is no usable ledger (it is no ordinary file): name another file"
        )
    return path.absolute()
