"""A whole stack under a supervisor of the tests' own, which may be told to kill, freeze, stop and start its parts.

Between each service and the broker stands a proxy of that service. Every process carries the run's mark, and a
guardian ends whatever is left should this process die.
"""

import asyncio
import contextlib
import os
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from harness.broker import api
from harness.chaos_schedule import BROKER
from harness.tcp_proxy import TcpProxy

from services.broker import topology
from services.clock import monotonic_s
from services.local import leftovers
from services.local.plan import cache_dir
from services.local.ports import HOST, free_ports
from services.local.process import ProcessSpec
from services.local.rabbitmq import MEMORY_WATERMARK, BrokerPorts, PrivateBroker, prepare_broker
from services.local.rabbitmq_programs import find_rabbitmq
from services.local.stack import PYTHON_MODULE
from services.settings import LocalSettings

RESTART_AFTER_S = 0.3
ENDS_WITHIN_S = 10.0
READY_WITHIN_S = 120.0
HOSTED = {"substations-1": "north,east", "substations-2": "south,west"}
SERVICES = ("gateway-1", "gateway-2", "balancer-1", "balancer-2", *HOSTED)


@dataclass(frozen=True)
class Death:
    """A process that ended: how, and whether somebody had killed it."""

    name: str
    at_s: float
    code: int
    was_killed: bool


@dataclass(eq=False)
class Part:
    """A process that is kept running, unless it was told to leave."""

    spec: ProcessSpec
    marks: dict[str, str]
    deaths: list[Death] = field(default_factory=list)
    _process: asyncio.subprocess.Process | None = None
    _wanted: asyncio.Event = field(default_factory=asyncio.Event)
    _kills: set[int] = field(default_factory=set)
    _keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Keep it running from now on; returns once it is ready."""
        self.come()
        self._keeper = asyncio.create_task(self._keep())
        async with asyncio.timeout(READY_WITHIN_S):
            while not await self.spec.is_ready():
                assert not self._keeper.done(), self._keeper
                await asyncio.sleep(0.1)

    async def _keep(self) -> None:
        while True:
            await self._wanted.wait()
            with self.spec.log.open("ab") as log:
                process = self._process = await asyncio.create_subprocess_exec(
                    *self.spec.argv,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=self.spec.cwd,
                    env=self.spec.environment_in(os.environ) | self.marks,
                    start_new_session=True,
                )
            code = await process.wait()
            self.deaths.append(Death(self.spec.name, monotonic_s(), code, process.pid in self._kills))
            await asyncio.sleep(RESTART_AFTER_S)

    def signal(self, signum: signal.Signals) -> None:
        """Signal it, if it runs."""
        if self._process is not None and self._process.returncode is None:
            if signum is signal.SIGKILL:
                self._kills.add(self._process.pid)
            self._process.send_signal(signum)

    def come(self) -> None:
        """Run again."""
        self._wanted.set()

    async def leave(self, within_s: float = ENDS_WITHIN_S) -> str | None:
        """SIGTERM, and stay away; returns what was wrong with its end."""
        self._wanted.clear()
        process = self._process
        if process is None or process.returncode is not None:
            return None
        began_at_s = monotonic_s()
        self.signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(within_s):
                code = await process.wait()
        except TimeoutError:
            self.signal(signal.SIGKILL)
            await process.wait()
            return f"still there {within_s:g} s after SIGTERM"
        if code in (0, -signal.SIGTERM):  # the latter while it was starting, and had nothing to leave in order
            return None
        return f"exit code {code}, {monotonic_s() - began_at_s:.1f} s after SIGTERM"

    async def stop(self) -> str | None:
        """Leave for good."""
        said = await self.leave(ENDS_WITHIN_S if self.spec.name in SERVICES else 40.0)
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        return said


class ChaosStack:
    """Broker, proxies, two gateways, two balancers, and four substations in two processes."""

    def __init__(
        self, broker: PrivateBroker, parts: dict[str, Part], proxies: dict[str, TcpProxy], gateways: list[str]
    ) -> None:
        self._broker = broker
        self.parts = parts
        self.proxies = proxies
        self.gateways = gateways
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
        """Raise or clear the broker's memory alarm; one that is down has none, and comes back without."""
        node = self.parts[BROKER].spec
        watermark = ["0.00001"] if on else ["absolute", MEMORY_WATERMARK]
        process = await asyncio.create_subprocess_exec(
            Path(node.argv[0]).with_name("rabbitmqctl"),
            "set_vm_memory_high_watermark",
            *watermark,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            cwd=node.cwd,
            env=node.environment_in(os.environ) | self.parts[BROKER].marks,
        )
        await process.wait()

    async def missing_at_the_broker(self) -> set[str]:
        """Connections without a channel, and consumers, that the broker does not have and a whole stack would have."""
        expected = {f"{name} {use}" for name in SERVICES for use in ("publish", "consume")}
        expected |= {f"consumer {name}" for name in SERVICES if name.startswith("balancer")}
        expected |= {f"consumer {name} {one}" for name, hosted in HOSTED.items() for one in hosted.split(",")}
        try:
            connections = await asyncio.to_thread(api, self._broker, "GET", "connections")
            consumers = await asyncio.to_thread(api, self._broker, "GET", "consumers")
        except OSError:
            return expected
        found = {one["client_properties"].get("connection_name") for one in connections if one.get("channels")}
        return expected - found - {f"consumer {one['consumer_tag']}" for one in consumers}

    async def stop(self) -> dict[str, str]:
        """End the services, then the broker; returns what was wrong with whose end."""
        said = dict(zip(SERVICES, await asyncio.gather(*(self.parts[one].stop() for one in SERVICES)), strict=True))
        for name in (BROKER, "epmd"):
            await self.parts[name].stop()
        return {name: words for name, words in said.items() if words is not None}


@contextlib.asynccontextmanager
async def running(data: Path, ledger_url: str, settings: Mapping[str, str]) -> AsyncIterator[ChaosStack]:
    """A stack in `data` with `settings` in every service's environment; nothing of it is left afterwards."""
    run = uuid.uuid4().hex
    marks = leftovers.marks(data, run)
    guardian = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.local.guardian", run, stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    logs = data / "logs"
    logs.mkdir(parents=True)
    broker = prepare_broker(
        find_rabbitmq(cache_dir(LocalSettings()), print), data / "broker", BrokerPorts(*free_ports(5))
    )
    parts = {spec.name: Part(spec, marks) for spec in broker.processes(logs)}
    stack = ChaosStack(broker, parts, {}, [])
    with contextlib.ExitStack() as proxies:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as http:
            try:
                for part in list(parts.values()):
                    await part.start()
                ports = free_ports(len(SERVICES) + 2)
                for name, port in zip(SERVICES, ports[2:], strict=True):
                    proxy = stack.proxies[name] = proxies.enter_context(TcpProxy(broker.ports.amqp))
                    role = name.split("-", maxsplit=1)[0]
                    user = role.removesuffix("s")
                    amqp_url = f"amqp://{user}:{broker.passwords[user]}@{HOST}:{proxy.port}/{topology.VHOST}"
                    environment = {
                        **settings,
                        "EVENLOAD_INSTANCE": name,
                        "EVENLOAD_LOG_FORMAT": "json",
                        "EVENLOAD_ADMIN_PORT": str(port),
                        "EVENLOAD_AMQP_URL": amqp_url,
                        "EVENLOAD_LEDGER_URL": ledger_url,
                    }
                    if role == "gateway":
                        environment["EVENLOAD_GATEWAY_PORT"] = str(ports[len(stack.gateways)])
                        stack.gateways.append(f"http://{HOST}:{ports[len(stack.gateways)]}")
                    if name in HOSTED:
                        environment["EVENLOAD_SUBSTATION_IDS"] = HOSTED[name]
                    spec = ProcessSpec(
                        name, (*PYTHON_MODULE, role), environment, logs / f"{name}.log", _readiness(http, port)
                    )
                    parts[name] = Part(spec, marks)
                await asyncio.gather(*(parts[name].start() for name in SERVICES))
                yield stack
            finally:
                await stack.heal()
                for part in reversed(parts.values()):
                    await part.stop()
                guardian.stdin.close()
                await guardian.wait()


def _readiness(http: aiohttp.ClientSession, port: int):
    async def is_ready() -> bool:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with http.get(f"http://{HOST}:{port}/readyz") as response:
                return response.status == 200
        return False

    return is_ready
