"""A whole stack under a supervisor of the tests' own, which may be told to kill, freeze, stop and start its parts.

Between each service and the broker stands a proxy of that service. Every process carries the run's mark, and a
guardian ends whatever is left should this process die.
"""

import asyncio
import contextlib
import http.client
import signal
import socket
import sys
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple

import aiohttp
from harness.broker import api
from harness.chaos_ledgers import LedgerReader
from harness.chaos_part import Death, Part
from harness.chaos_schedule import BINDINGS, BROKER, HOSTED, SERVICES
from harness.tcp_proxy import TcpProxy

from services.broker import topology
from services.clock import monotonic_s
from services.local import leftovers
from services.local.folders import cache_dir
from services.local.ports import HOST, free_ports
from services.local.process import ProcessSpec
from services.local.rabbitmq import CONFIGURATION, MEMORY_WATERMARK, BrokerPorts, PrivateBroker, prepare_broker
from services.local.rabbitmq_programs import find_rabbitmq
from services.local.stack import PYTHON_MODULE
from services.settings import LocalSettings

ENDS_WITHIN_S = {BROKER: 40.0, "epmd": 40.0}
SERVICE_ENDS_WITHIN_S = 10.0
ALARM_WITHIN_S = 60.0


class Effect(NamedTuple):
    """What a fault has done."""

    seen: str
    """What shows that something was broken; empty where nothing does."""
    fault: str | None = None
    """What a service did wrong meanwhile."""


class ChaosStack:
    """Broker, proxies, two gateways, two balancers, and four substations in two processes."""

    def __init__(self, data: Path, ledger: LedgerReader, broker: PrivateBroker, marks: dict[str, str]) -> None:
        self.data = data
        self.ledger = ledger
        self.broker = broker
        self.marks = marks
        """What every process of the run carries in its environment."""
        self.parts: dict[str, Part] = {}
        self.proxies: dict[str, TcpProxy] = {}
        self.gateways: list[str] = []
        """Their addresses."""

    @property
    def deaths(self) -> list[Death]:
        return sorted((one for part in self.parts.values() for one in part.deaths), key=lambda one: one.at_s)

    async def heal(self) -> None:
        """Let everything run again, and everything flow."""
        for part in self.parts.values():
            part.signal(signal.SIGCONT)
            part.come()
        for proxy in self.proxies.values():
            await asyncio.to_thread(proxy.heal)

    async def alarm(self, *, on: bool) -> None:
        """Raise or clear the broker's memory alarm, also of one that is starting. Raises `OSError` if it cannot."""
        node = self.parts[BROKER].spec
        watermark = ["0.00001"] if on else ["absolute", MEMORY_WATERMARK]
        give_up_at_s = monotonic_s() + ALARM_WITHIN_S
        while True:
            process = await asyncio.create_subprocess_exec(
                Path(node.argv[0]).with_name("rabbitmqctl"),
                "set_vm_memory_high_watermark",
                *watermark,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                cwd=node.cwd,
                env=self.parts[BROKER].environment,
            )
            said, _ = await process.communicate()
            if process.returncode == 0:
                return
            if monotonic_s() > give_up_at_s:
                raise OSError(f"rabbitmqctl ended with {process.returncode}: {said.decode(errors='replace').strip()}")

    def connection_to(self, name: str) -> AbstractContextManager[object]:
        """A connection to a gateway while the block runs; none where `name` is no gateway."""
        port = self.parts[name].spec.environment.get("EVENLOAD_GATEWAY_PORT")
        return contextlib.nullcontext() if port is None else socket.create_connection((HOST, int(port)))

    async def not_ready(self) -> set[str]:
        """Services whose `/readyz` is not 200."""
        are_ready = await asyncio.gather(*(self.parts[one].spec.is_ready() for one in SERVICES))
        return {name for name, is_ready in zip(SERVICES, are_ready, strict=True) if not is_ready}

    async def missing_at_the_broker(self) -> set[str]:
        """Connections without a channel, consumers, exchanges and bindings that a whole stack would have there."""
        expected = {f"{name} {use}" for name in SERVICES for use in ("publish", "consume")}
        expected |= {f"consumer {name}" for name in SERVICES if name.startswith("balancer")}
        expected |= {f"consumer {name} {one}" for name, hosted in HOSTED.items() for one in hosted.split(",")}
        expected |= {*topology.EXCHANGES, *BINDINGS}
        try:
            connections, consumers, exchanges, bindings = [
                await asyncio.to_thread(api, self.broker, "GET", kind)
                for kind in ("connections", "consumers", f"exchanges/{topology.VHOST}", f"bindings/{topology.VHOST}")
            ]
        except (OSError, http.client.HTTPException, ValueError):  # half an answer is none
            return expected
        return expected - named_at_the_broker(connections, consumers, exchanges, bindings)

    async def stop(self) -> dict[str, str]:
        """End the services, then the broker; returns what was wrong with whose end."""
        said = dict(zip(SERVICES, await asyncio.gather(*(self.parts[one].stop() for one in SERVICES)), strict=True))
        for name in (BROKER, "epmd"):
            await self.parts[name].stop()
        return {name: words for name, words in said.items() if words is not None}


def named_at_the_broker(
    connections: Sequence[dict], consumers: Sequence[dict], exchanges: Sequence[dict], bindings: Sequence[dict]
) -> set[str]:
    """What the management API lists, by name; a connection that has just been opened has no properties there yet."""
    found = {one.get("client_properties", {}).get("connection_name") for one in connections if one.get("channels")}
    found |= {f"consumer {one.get('consumer_tag')}" for one in consumers} | {one.get("name") for one in exchanges}
    return found | {f"{one.get('source')}>{one.get('destination')}" for one in bindings}


@contextlib.asynccontextmanager
async def running(data: Path, ledger: LedgerReader, settings: Mapping[str, str]) -> AsyncIterator[ChaosStack]:
    """A stack in `data` with `settings` in every service's environment; nothing of it is left afterwards."""
    run = uuid.uuid4().hex
    guardian = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.local.guardian", run, stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    logs = data / "logs"
    logs.mkdir(parents=True)
    broker = prepare_broker(
        find_rabbitmq(cache_dir(LocalSettings()), print), data / "broker", BrokerPorts(*free_ports(5))
    )
    with (broker.data / CONFIGURATION).open("a") as configuration:
        configuration.write("collect_statistics_interval = 1000\n")  # how late its API tells of a connection [ms]
    stack = ChaosStack(data, ledger, broker, leftovers.marks(data, run))
    with contextlib.ExitStack() as proxies:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as http:
            try:
                for spec in broker.processes(logs):
                    stack.parts[spec.name] = Part(spec, stack.marks, ENDS_WITHIN_S[spec.name])
                    await stack.parts[spec.name].start()
                for name, port in zip(SERVICES, free_ports(len(SERVICES)), strict=True):
                    stack.proxies[name] = proxies.enter_context(TcpProxy(broker.ports.amqp))
                    environment = _environment(stack, name, port, settings)
                    argv = (*PYTHON_MODULE, _role(name))
                    spec = ProcessSpec(name, argv, environment, logs / f"{name}.log", _readiness(http, port))
                    stack.parts[name] = Part(spec, stack.marks, SERVICE_ENDS_WITHIN_S)
                await asyncio.gather(*(stack.parts[name].start() for name in SERVICES))
                yield stack
            finally:
                await stack.heal()
                for part in reversed(stack.parts.values()):
                    await part.stop()
                guardian.stdin.close()
                await guardian.wait()


def _role(name: str) -> str:
    return name.split("-", maxsplit=1)[0]


def _environment(stack: ChaosStack, name: str, admin_port: int, settings: Mapping[str, str]) -> dict[str, str]:
    """The settings of one service; a gateway's address is added to the stack's."""
    user = _role(name).removesuffix("s")
    login = f"{user}:{stack.broker.passwords[user]}"
    environment = {
        **settings,
        "EVENLOAD_INSTANCE": name,
        "EVENLOAD_LOG_FORMAT": "json",
        "EVENLOAD_ADMIN_PORT": str(admin_port),
        "EVENLOAD_AMQP_URL": f"amqp://{login}@{HOST}:{stack.proxies[name].port}/{topology.VHOST}",
        "EVENLOAD_LEDGER_URL": stack.ledger.url,
    }
    if name in HOSTED:
        environment["EVENLOAD_SUBSTATION_IDS"] = HOSTED[name]
    elif user == "gateway":
        [port] = free_ports(1)
        environment["EVENLOAD_GATEWAY_PORT"] = str(port)
        stack.gateways.append(f"http://{HOST}:{port}")
    return environment


def _readiness(http: aiohttp.ClientSession, port: int):
    async def is_ready() -> bool:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with http.get(f"http://{HOST}:{port}/readyz") as response:
                return response.status == 200
        return False

    return is_ready
