"""The product's balancer as a process on virtual time: it runs `balancer.service.serve` unchanged.

Only the parts that need a socket are replaced: the broker's client and the HTTP session. Each names what it mirrors.
"""

import asyncio
import contextlib
import json
import random
from types import SimpleNamespace

from harness.protocol.clockwork import Process
from harness.protocol.ledger import Connection
from harness.protocol.processes import LEASE_S, SPEED
from prometheus_client import CollectorRegistry, generate_latest

from balancer import service
from balancer.watcher import Watcher
from services.admin import AdminServer
from services.backends import Broker
from services.lifecycle import Life
from services.metrics import ServiceMetrics
from services.settings import CommonSettings
from substations.collector import SubstationCollector

WAY_S = 0.005
"""Mean time of a question or an answer on its way between two processes."""


class BalancerProcess(Process):
    """`python -m balancer` in an area."""

    def __init__(self, area, settings):
        super().__init__(area.timeline, "balancer", area.clock)
        self.onlooker = area.onlooker
        self._area = area
        self._settings = settings
        self._life = None
        self.start(self._serve())

    async def _serve(self):
        """Mirrors `services.lifecycle.run`."""
        registry = CollectorRegistry()
        common = CommonSettings(
            amqp_url="amqp://nobody@127.0.0.1/", ledger_url="sqlite:///nowhere", speed=SPEED, lease_s=LEASE_S
        )
        self._life = Life(self.name, self.name, common, ServiceMetrics(self.name, registry), AdminServer(registry))
        await service.serve(self._life, self._settings)

    def stop(self):
        """As by SIGTERM."""
        self.run(self._life.stopping.set)

    def connect(self, patch):
        """Replace the parts that need a socket by those of the area."""
        area = self._area
        ledger = Connection(self, area.ledger, area.network, area.faults.crash_point)
        broker = Broker(MemoryPublisher(area), area.broker, asyncio.Event())
        broker.usable.set()
        patch.setattr("balancer.service.ledger_opened", lambda _life: contextlib.nullcontext(ledger))
        patch.setattr("balancer.service.broker_opened", lambda _life: contextlib.nullcontext(broker))
        patch.setattr("balancer.service.Consumer", MemoryConsumer)
        patch.setattr("balancer.service.Watcher", SeenWatcher)
        patch.setattr("balancer.service.aiohttp", SimpleNamespace(ClientSession=lambda: area.pages))
        patch.setattr("balancer.scraper.random", random.Random(self._settings.seed))


class SeenWatcher(Watcher):
    """The product's watcher. It shows each table to the onlooker as soon as it is refreshed."""

    async def refresh(self):
        await super().refresh()
        asyncio.get_running_loop().process.onlooker.see_refreshed(self.estimates())


class MemoryPublisher:
    """Mirrors `services.broker.publisher.Publisher`."""

    def __init__(self, area):
        self._broker = area.broker
        self._onlooker = area.onlooker

    async def publish_hints(self, _exchange, substation, hints):
        self._broker.publish(substation, hints)
        await asyncio.sleep(WAY_S)

    async def publish(self, _exchange, _routing_key, body, **_):
        self._onlooker.see_published(json.loads(body)["substations"])


class MemoryConsumer:
    """Mirrors `services.broker.settle.Consumer`: all hints that have come are handled together."""

    def __init__(self, queue, handle, _publisher, _settled):
        self._queue = queue
        self._handle = handle
        self._come = []
        self._arrived = asyncio.Event()
        self._process = asyncio.get_running_loop().process

    def receive(self, _queue, hints):
        self._come += hints
        self._process.run(self._arrived.set)

    async def consume_for_ever(self, broker, **_):
        broker.attach(self._queue, self)
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            come, self._come = self._come, []
            await self._handle(list(dict.fromkeys(come)))


class MetricsPages:
    """Mirrors `aiohttp.ClientSession`: a page is rendered when the question arrives at the substation."""

    def __init__(self, rng):
        self._rng = rng
        self._registries = {}
        self.last_read = None
        """The address of the page that was rendered last."""

    def add(self, address, substation):
        registry = self._registries[f"{address}/metrics"] = CollectorRegistry()
        registry.register(SubstationCollector([substation]))

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        pass

    @contextlib.asynccontextmanager
    async def get(self, url, *, params, **_):
        await self._be_on_the_way()
        page = generate_latest(self._registries[url].restricted_registry([name for _, name in params]))
        self.last_read = url.removesuffix("/metrics")
        await self._be_on_the_way()
        yield _Page(page)

    async def _be_on_the_way(self):
        await asyncio.sleep(self._rng.expovariate(1 / WAY_S))


class _Page:
    """Mirrors `aiohttp.ClientResponse`."""

    status = 200

    def __init__(self, body):
        self._left = body
        self.content = self

    async def read(self, _most):
        read, self._left = self._left, b""
        return read
