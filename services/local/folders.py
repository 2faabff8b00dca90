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
    """The data folder by its absolute path, without links; raises `Misconfigured` where it can have none."""
    data = _absolute("EVENLOAD_DATA_DIR", settings.data_dir)
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
        return _absolute("EVENLOAD_CACHE_DIR", settings.cache_dir)
    given, home = Path(os.environ.get("XDG_CACHE_HOME", "")), Path(os.path.expanduser("~"))  # noqa: PTH111 (raises nothing)
    if given.is_absolute():  # XDG's own rule: a relative path counts as absent
        return given / "evenload"
    # Without a home it stays "~", and in containers the home of an unknown user is the root folder.
    has_home = home.is_absolute() and home != Path("/")
    return home / ".cache/evenload" if has_home else data_folder(settings) / "cache"


def _absolute(variable: str, path: Path) -> Path:
    try:
        return path.absolute()
    except OSError:
        raise Misconfigured(
            f"{variable}: {path} is a relative path, and the working folder is gone: "
            "change to a folder that is there, or name an absolute path"
        ) from None
