"""What a local stack is made of, decided before anything starts."""

import errno
import os
import secrets
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from services.errors import Misconfigured
from services.grid import Grid, load_grid
from services.ledger.address import SETTING, SQLITE_SCHEME, sqlite_path
from services.local.ports import HOST
from services.local.prometheus_programs import OFF, locate_prometheus
from services.settings import LocalSettings, given

LONGEST_PATH_BYTES = 480
"""SQLite takes 512 for a file, of which some are for the names that it gives to files beside it."""


@dataclass(frozen=True)
class Plan:
    """What is started, and under which addresses."""

    settings: LocalSettings
    data: Path
    grid: Grid
    gateway_port: int
    run: str

    @property
    def gateway_url(self) -> str:
        """The HTTP API."""
        return f"http://{HOST}:{self.gateway_port}"

    @property
    def ledger_url(self) -> str:
        """The ledger of all services."""
        return given(SETTING) or default_ledger(self.data)

    @property
    def ledger_path(self) -> Path | None:
        """The ledger's file; None where it is no file."""
        return sqlite_path(self.ledger_url)

    @property
    def logs(self) -> Path:
        """Where each process's output goes."""
        return self.data / "logs"


def make_plan(settings: LocalSettings) -> Plan:
    """Decide, and make the data folder; raises `Misconfigured` for what would be refused later."""
    data = settings.data_dir.resolve()
    refuse_unusable(data)
    try:
        (data / "logs").mkdir(parents=True, exist_ok=True)
        for folder in (data, data / "logs"):
            if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, f"it belongs to {folder.owner()}")
    except OSError as error:
        raise Misconfigured(f"EVENLOAD_DATA_DIR: {data} cannot be written: {error.strerror}") from None
    for name in ("EVENLOAD_GATEWAY_HOST", "EVENLOAD_ADMIN_HOST"):
        if (given(name) or HOST) != HOST:
            raise Misconfigured(
                f"{name}: the local stack serves on {HOST} only: unset it, or start the services yourself"
            )
    sqlite_path(given(SETTING) or default_ledger(data))
    if settings.prometheus not in OFF:
        locate_prometheus(settings.prometheus, cache_dir(settings))
    return Plan(settings, data, load_grid(settings.grid), settings.gateway_port, secrets.token_hex(8))


def default_ledger(data: Path) -> str:
    """The address of the ledger in a data folder."""
    return f"{SQLITE_SCHEME}{data / 'ledger.sqlite'}"


def refuse_unusable(data: Path) -> None:
    """Raise `Misconfigured` for a data folder in which no ledger can be."""
    if any(unicodedata.category(sign) == "Cc" for sign in str(data)):
        raise Misconfigured(f"EVENLOAD_DATA_DIR: {data} holds a control character: name a folder without")
    if len(os.fsencode(data)) > LONGEST_PATH_BYTES:
        raise Misconfigured(
            f"EVENLOAD_DATA_DIR: {data} is longer than {LONGEST_PATH_BYTES} bytes: name a folder with a shorter path"
        )


def cache_dir(settings: LocalSettings) -> Path:
    """Where unpacked packages are kept, for all checkouts of a user."""
    home_cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 (no home: no error)
    return (settings.cache_dir or Path(home_cache) / "evenload").absolute()
