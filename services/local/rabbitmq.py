"""A private RabbitMQ node: own name, cookie, ports, data and epmd; nothing of the system's own broker is touched."""

import asyncio
import contextlib
import json
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from services.broker import topology
from services.local.plain_paths import is_plain, seen_from_inside
from services.local.ports import HOST
from services.local.process import ProcessSpec
from services.local.rabbitmq_programs import RabbitInstallation

MEMORY_WATERMARK = "1GB"
DISK_FREE_LIMIT = "64MB"
CONFIGURATION = "rabbitmq.conf"
PASSWORDS = "passwords.json"
CONSOLE_PORT = "management.tcp.port = "
PROGRAMS = "programs"
INHERITED = frozenset(
    {"LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "LOGNAME", "PATH", "TERM", "TMPDIR", "TZ", "USER"}
)
"""What a node gets of the user's environment: variables like RABBITMQ_NODE_PORT and ERL_FLAGS are for other nodes."""
AMQP_HEADER = b"AMQP\x00\x00\x09\x01"


@dataclass(frozen=True)
class BrokerPorts:
    """The ports of one node."""

    amqp: int
    console: int
    metrics: int
    distribution: int
    epmd: int


@dataclass(frozen=True)
class PrivateBroker:
    """A node that keeps its data and passwords in `data`, across starts on changing ports."""

    installation: RabbitInstallation
    data: Path
    ports: BrokerPorts
    passwords: dict[str, str]
    node: str

    @property
    def console_url(self) -> str:
        """RabbitMQ's management console."""
        return f"http://{HOST}:{self.ports.console}"

    @property
    def metrics_url(self) -> str:
        """RabbitMQ's own Prometheus endpoint."""
        return f"http://{HOST}:{self.ports.metrics}/metrics"

    def amqp_url(self, role: str) -> str:
        """The address for a service of that role."""
        return f"amqp://{role}:{self.passwords[role]}@{HOST}:{self.ports.amqp}/{topology.VHOST}"

    def processes(self, logs: Path) -> tuple[ProcessSpec, ProcessSpec]:
        """Epmd and the node, in the order of their start."""
        installation = self._installation()
        environment = self._environment(installation)
        epmd = ProcessSpec(
            name="epmd",
            # As a child of ours, or the node would start a daemon that outlives it.
            argv=(str(installation.epmd), "-port", str(self.ports.epmd), "-address", HOST),
            environment=environment,
            log=logs / "epmd.log",
            is_ready=lambda: _accepts(self.ports.epmd),
            cwd=self.data,
            inherits=INHERITED,
        )
        node = ProcessSpec(
            name="rabbitmq",
            argv=(str(installation.server),),
            environment=environment,
            log=logs / "rabbitmq.log",
            is_ready=lambda: _speaks_amqp(self.ports.amqp),
            cwd=self.data,  # where Mnesia leaves its dumps, and what `seen_from_inside` names
            inherits=INHERITED,
            ready_within_s=90,
            stops_within_s=8,
        )
        return epmd, node

    def _installation(self) -> RabbitInstallation:
        """The programs where their scripts find one another: behind a link, if the copy's folder has a strange name."""
        copy = self.installation.copy
        if copy is None or is_plain(copy):
            return self.installation
        link = self.data / PROGRAMS
        link.unlink(missing_ok=True)
        link.symlink_to(copy)
        return self.installation.seen_at(seen_from_inside(self.data) / PROGRAMS)

    def _environment(self, installation: RabbitInstallation) -> dict[str, str]:
        data = seen_from_inside(self.data)
        # RabbitMQ 4 does not start on the data of 3.10. So each series has data of its own, and the ledger brings back
        # what was on its way in another.
        series = self.installation.series
        return {
            **installation.environment,
            "HOME": str(data / "home"),
            # The script then becomes the node instead of staying above it as a shell.
            "RUNNING_UNDER_SYSTEMD": "1",
            "NOTIFY_SOCKET": "",
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_CONF_ENV_FILE": str(data / "rabbitmq-env.conf"),
            "RABBITMQ_CONFIG_FILE": str(data / CONFIGURATION),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(data / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(data / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(data / "mnesia" / series),
            "RABBITMQ_LOG_BASE": str(data / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_GENERATED_CONFIG_DIR": str(data / "generated"),
            "RABBITMQ_SCHEMA_DIR": str(data / "schema"),
            "RABBITMQ_FEATURE_FLAGS_FILE": str(data / f"feature_flags-{series}"),
            "RABBITMQ_PID_FILE": str(data / "node.pid"),
            "RABBITMQ_DIST_PORT": str(self.ports.distribution),
            "ERL_EPMD_PORT": str(self.ports.epmd),
            "ERL_EPMD_ADDRESS": HOST,
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        }


def prepare_broker(installation: RabbitInstallation, data: Path, ports: BrokerPorts) -> PrivateBroker:
    """Write the node's configuration into `data`; name, cookie and passwords stay those of its first start."""
    for folder in ("home", "mnesia", "log", "generated", "schema"):
        (data / folder).mkdir(parents=True, exist_ok=True)
    node = _kept(data / "node-name", lambda: f"evenload-{secrets.token_hex(4)}@localhost")
    _kept(data / "home" / ".erlang.cookie", lambda: secrets.token_hex(20).upper(), mode=0o400)
    passwords: dict[str, str] = json.loads(
        _kept(data / PASSWORDS, lambda: json.dumps({role: secrets.token_urlsafe(12) for role in topology.ROLES}))
    )
    _write_private(data / "definitions.json", json.dumps(topology.definitions(passwords), indent=2))
    (data / "rabbitmq-env.conf").write_text("")
    (data / "enabled_plugins").write_text("[rabbitmq_management,rabbitmq_prometheus].\n")
    (data / "advanced.config").write_text("[].\n")
    (data / CONFIGURATION).write_text(
        f"listeners.tcp.1 = {HOST}:{ports.amqp}\n"
        f"management.tcp.ip = {HOST}\n{CONSOLE_PORT}{ports.console}\n"
        f"prometheus.tcp.ip = {HOST}\nprometheus.tcp.port = {ports.metrics}\n"
        "load_definitions = definitions.json\n"  # beside the node's working folder: a path may hold a "#"
        f"vm_memory_high_watermark.absolute = {MEMORY_WATERMARK}\n"
        f"disk_free_limit.absolute = {DISK_FREE_LIMIT}\n"
        "log.console = true\nlog.console.level = warning\n"
    )
    return PrivateBroker(installation, data, ports, passwords, node)


def console_of(data: Path) -> tuple[str, str]:
    """Address and operator's password of the console of the node that keeps its data in `data`; raises `OSError`."""
    passwords = json.loads((data / PASSWORDS).read_text())
    _, _, port = (data / CONFIGURATION).read_text().partition(CONSOLE_PORT)
    return f"http://{HOST}:{port.splitlines()[0]}", passwords["operator"]


def _kept(path: Path, make: Callable[[], str], mode: int = 0o600) -> str:
    if not path.exists():
        _write_private(path, make(), mode)
    return path.read_text().strip()


def _write_private(path: Path, text: str, mode: int = 0o600) -> None:
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        file.write(text)
    part.replace(path)  # whole or not at all


async def _accepts(port: int) -> bool:
    with contextlib.suppress(OSError):
        _, writer = await asyncio.open_connection(HOST, port)
        writer.close()
        return True
    return False


async def _speaks_amqp(port: int) -> bool:
    """Whether the node serves: it answers the protocol header with a method frame."""
    with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
        async with asyncio.timeout(3):
            reader, writer = await asyncio.open_connection(HOST, port)
            try:
                writer.write(AMQP_HEADER)
                return await reader.readexactly(1) == b"\x01"
            finally:
                writer.close()
    return False
