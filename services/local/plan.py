"""What a local stack is made of, decided before anything starts."""

import errno
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from services.errors import Misconfigured
from services.files import owner_name
from services.grid import Grid, load_grid
from services.ledger.address import SETTING, SQLITE_SCHEME, sqlite_path
from services.local.folders import cache_dir, data_folder, refuse_unusable
from services.local.ports import HOST
from services.local.prometheus_programs import OFF, locate_prometheus
from services.settings import LocalSettings, given


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
    data = data_folder(settings)
    refuse_unusable(data)
    try:
        (data / "logs").mkdir(parents=True, exist_ok=True)
        for folder in (data, data / "logs"):
            if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, f"{folder} belongs to {owner_name(folder)}")
    except OSError as error:
        raise Misconfigured(
            f"EVENLOAD_DATA_DIR: {data} cannot be written ({error.strerror}): name a folder of your own"
        ) from None
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
