"""The doctor's look at this machine and its settings: Python, variables, grid file, RabbitMQ, folders, disk."""

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from services.cli.checks import Check, misconfigured, note, ok, problem, with_cure
from services.errors import Misconfigured
from services.files import is_there, nearest, owner_name
from services.grid import load_grid
from services.local import prometheus_programs
from services.local.folders import cache_dir, data_folder, refuse_unusable
from services.local.packages import can_unpack, copy_dir
from services.local.prometheus_programs import OFF, locate_prometheus
from services.local.rabbitmq import CONFIGURATION, PASSWORDS
from services.local.rabbitmq_programs import CURES, locate_rabbitmq
from services.service_links import CURE as SERVICE_LINKS_CURE
from services.service_links import service_links
from services.settings import LocalSettings

DISK_NEEDED_BYTES = 500 * 1024 * 1024
SETTINGS_WITHIN_S = 30.0
_PROXIES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")
_PROXY_CURE = "for curl and other programs: no_proxy=127.0.0.1,localhost"
_CACHE_CURE = "set EVENLOAD_CACHE_DIR to a folder of your own"
_OPENED = ("lock", "logs", f"rabbitmq/{CONFIGURATION}", f"rabbitmq/{PASSWORDS}")
"""What a start opens in the data folder; another user may have made it there."""
_PLACEHOLDERS = {"EVENLOAD_AMQP_URL": "amqp://127.0.0.1/evenload", "EVENLOAD_LEDGER_URL": "sqlite:///ledger.sqlite"}
# In a process of its own, as `evenload up` would: the chassis does not import services.
_READ_ALL_SETTINGS = """
import importlib, json
from services.errors import Misconfigured
from services.settings import Settings, load_for_service
faults = []
for package in ("gateway", "balancer", "substations"):
    module = importlib.import_module(f"{package}.settings")
    for kind in vars(module).values():
        if isinstance(kind, type) and issubclass(kind, Settings) and kind.__module__ == module.__name__:
            try:
                load_for_service(kind)
            except Misconfigured as error:
                faults += [str(error)]
print(json.dumps(list(dict.fromkeys(faults))))
"""


def check_python() -> Check:
    """Which Python runs this, from which environment, and how it writes the names of files."""
    said = f"Python {platform.python_version()} in {sys.prefix}"
    if sys.getfilesystemencoding() != "utf-8":
        said += f", file names in {sys.getfilesystemencoding()}"
        return note("python", said, "set LC_ALL=C.UTF-8 or PYTHONUTF8=1, or start it as .venv/bin/evenload")
    made_in = Path(sys.prefix) / ".place"  # written by tools/environment
    if made_in.exists() and made_in.read_text("utf-8", "surrogateescape").strip() != str(Path(sys.prefix).parent):
        return note("python", f"{said}, which was moved", "`make run` makes it anew")
    if sys.prefix == sys.base_prefix:
        return note("python", f"{said}, no virtual environment", "`make run` makes one in .venv")
    return ok("python", said)


def check_settings() -> list[Check]:
    """Variables that nobody reads, and values that a service would refuse."""
    environment = {**os.environ} | {name: os.environ.get(name) or value for name, value in _PLACEHOLDERS.items()}
    try:
        done = subprocess.run(  # noqa: S603 (our own text)
            [sys.executable, "-P", "-c", _READ_ALL_SETTINGS],
            env=environment,
            capture_output=True,
            text=True,
            timeout=SETTINGS_WITHIN_S,
            check=True,
        )
        faults = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return [problem("settings", f"the services' settings cannot be read: {error}", "make the environment anew")]
    if faults:
        return [with_cure("settings", Misconfigured(fault)) for fault in faults]
    names = sorted(name for name in os.environ if name.startswith("EVENLOAD_"))
    return [ok("settings", f"set and sound: {', '.join(names)}" if names else "all by default")]


def check_surroundings(environ: Mapping[str, str]) -> Iterator[Check]:
    """Variables of others that look like ours or change what our neighbours do; nothing is said of a plain one."""
    links = service_links(environ)
    if links:
        said = f"an orchestrator wrote {', '.join(links)} for its services; they are ignored"
        yield note("service links", said, SERVICE_LINKS_CURE)
    proxies = [name for name in _PROXIES if environ.get(name)]
    if proxies:
        yield note("proxy", f"{', '.join(proxies)}: no service and no command sends anything through it", _PROXY_CURE)


def check_grid(settings: LocalSettings) -> Check:
    """The grid file."""
    try:
        grid = load_grid(settings.grid)
    except Misconfigured as error:
        return misconfigured("grid file", str(error), "correct it, or unset EVENLOAD_GRID")
    return ok("grid file", f"{grid.name}: {', '.join(one.id for one in grid.substation)}")


def check_rabbitmq(settings: LocalSettings, amqp_url: str | None) -> Check:
    """Where a broker would come from."""
    if amqp_url:
        return ok("rabbitmq", "the broker of EVENLOAD_AMQP_URL")
    cache = cache_dir(settings)
    found = locate_rabbitmq(cache)
    if found is not None:
        kind = f"a copy in {cache}" if found.server.is_relative_to(cache) else "installed"
        return ok("rabbitmq", f"{kind}: {found.server.parent.parent.name}")
    if fault := _fault_of(cache):
        return misconfigured("rabbitmq", f"no copy can be unpacked: {fault}", _CACHE_CURE)
    if is_there(copy_dir(cache, "rabbitmq")) and can_unpack():
        said = f"the copy in {cache} was moved, or files of it are gone"
        return note("rabbitmq", said, "`make run` fetches and unpacks it anew, once")
    if can_unpack():
        return ok("rabbitmq", "not there yet: `make run` fetches and unpacks a copy, once")
    return misconfigured("rabbitmq", "not installed, and no apt-get to unpack a copy with", CURES)


def check_prometheus(settings: LocalSettings) -> Check:
    """Where Prometheus would come from; the stack goes on without it."""
    if settings.prometheus in OFF:
        return note("prometheus", "none is wanted (EVENLOAD_PROMETHEUS)")
    cache = cache_dir(settings)
    try:
        found = locate_prometheus(settings.prometheus, cache)
    except Misconfigured as error:
        return with_cure("prometheus", error)
    if found is not None:
        return ok("prometheus", f"{found.program}")
    if fault := _fault_of(cache):
        return note("prometheus", f"no copy can be unpacked: {fault}", _CACHE_CURE)
    if can_unpack():
        return ok("prometheus", "not there yet: `make run` fetches and unpacks a copy, once")
    return note("prometheus", "not installed, and no apt-get to unpack a copy with", prometheus_programs.CURES)


def check_folders(settings: LocalSettings) -> Iterator[Check]:
    """The data folder, and the room on its disk."""
    try:
        data = data_folder(settings)
        refuse_unusable(data)
    except Misconfigured as error:
        yield with_cure("data folder", error)
        return
    there = nearest(data)
    opened = [one for one in (data / name for name in _OPENED) if is_there(one)]
    foreign = [_closed(one) for one in opened if not os.access(one, os.R_OK | os.W_OK)]
    if fault := "; ".join(filter(None, [_fault_of(data), *foreign])):
        cure = "give it to this user, or set EVENLOAD_DATA_DIR to a folder of your own"
        yield misconfigured("data folder", fault, cure)
    else:
        yield ok("data folder", f"{data}" if there == data else f"{data}, made at the first start")
    free = shutil.disk_usage(there).free
    said = f"{free / 2**30:.1f} GiB free"
    if free < DISK_NEEDED_BYTES:
        yield problem("disk", said, f"make room for {DISK_NEEDED_BYTES // 2**20} MiB, or set EVENLOAD_DATA_DIR")
    else:
        yield ok("disk", said)


def _fault_of(folder: Path) -> str:
    """Why nothing can be written into a folder, or it cannot be made; empty where it can."""
    there = nearest(folder)
    if not there.is_dir():
        return f"{there} cannot be written (it is no folder)"
    return "" if os.access(there, os.R_OK | os.W_OK | os.X_OK) else _closed(there)


def _closed(path: Path) -> str:
    return f"{path} cannot be written (it belongs to {owner_name(path)})"
