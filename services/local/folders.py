"""Where the local stack keeps its data, and the programs that it unpacked."""

import errno
import os
import unicodedata
from pathlib import Path

from services.errors import Misconfigured
from services.settings import LocalSettings

LONGEST_PATH_BYTES = 480
"""SQLite takes 512 for a file, of which some are for the names that it gives to files beside it."""


def data_folder(settings: LocalSettings) -> Path:
    """The data folder by its whole path, without links; raises `Misconfigured` where it can have none."""
    data = _whole("EVENLOAD_DATA_DIR", settings.data_dir)
    try:
        data.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise Misconfigured(
                f"EVENLOAD_DATA_DIR: {data} leads through a loop of symbolic links: name another folder"
            ) from None
    return data.resolve()


def refuse_unusable(data: Path) -> None:
    """Raise `Misconfigured` for a data folder in which no ledger can be."""
    if any(unicodedata.category(sign) == "Cc" for sign in str(data)):
        raise Misconfigured(f"EVENLOAD_DATA_DIR: {data} holds a control character: name a folder without")
    if len(os.fsencode(data)) > LONGEST_PATH_BYTES:
        raise Misconfigured(
            f"EVENLOAD_DATA_DIR: {data} is longer than {LONGEST_PATH_BYTES} bytes: name a folder with a shorter path"
        )


def cache_dir(settings: LocalSettings) -> Path:
    """Where unpacked packages are kept: for all checkouts of a user, or in the data folder of one without a home."""
    if settings.cache_dir:
        return _whole("EVENLOAD_CACHE_DIR", settings.cache_dir)
    home_cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111 (no home: no error)
    # XDG's own rule: a path that is not whole counts as absent.
    return home_cache / "evenload" if home_cache.is_absolute() else data_folder(settings) / "cache"


def _whole(variable: str, path: Path) -> Path:
    try:
        return path.absolute()
    except OSError:
        raise Misconfigured(
            f"{variable}: {path} is not a whole path, and the working folder is gone: "
            "change to a folder that is there, or name a whole path"
        ) from None
