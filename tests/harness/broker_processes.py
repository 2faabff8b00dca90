"""The broker's half of services of ours, in the tests' own process, and what an operator does to their vhost."""

import asyncio
import contextlib
from dataclasses import dataclass, field

from harness.broker import api
from harness.broker_sessions import DEADLINE_S, eventually, meanwhile
from prometheus_client import CollectorRegistry, Counter, Gauge
from yarl import URL

from services.broker import topology
from services.broker.connection import connected
from services.broker.events import LOAD_TABLE, listen_for_ever
from services.broker.publisher import Publisher
from services.broker.session import Session
from services.broker.settle import Consumer
from services.broker.upkeep import Upkeep
from services.errors import BrokerUnavailable, Unroutable
from services.messages import Hint

SUBSTATIONS = ("north", "east", "south")


@dataclass
class Process:
    """The broker's half of a service of ours, and what it was handed."""

    vhost: object
    session: Session
    publisher: Publisher
    upkeep: Upkeep
    registry: CollectorRegistry
    received: list[Hint] = field(default_factory=list)
    heard: list[dict] = field(default_factory=list)

    async def take(self, hints):
        self.received += hints

    def told(self):
        """What `/readyz` gives as the cause, and the number of missing things that the metric shows."""
        return self.upkeep.fault() or self.upkeep.degradation(), self.registry.get_sample_value(
            "evenload_broker_topology_missing"
        )

    async def until_told(self, *missing, cure=topology.MEND):
        cause = f"the broker's topology is incomplete: {'; '.join(missing)}: {cure}"
        await eventually(lambda: self.told() == (cause, len(missing)), f"{cause}, not {self.told()}")

    async def until_whole(self):
        await eventually(lambda: self.told() == (None, 0), f"all well, not {self.told()}")

    def settled(self, queue, outcome="acked"):
        return self.registry.get_sample_value("settled_total", {"queue": queue, "outcome": outcome}) or 0


@contextlib.asynccontextmanager
async def process(vhost, role, *own_work, port=None, until_whole=True):
    """A process of `role`, with its upkeep, and work that is made from it; `port` leads to the broker, too.

    It works and lacks nothing when the block begins, `until_whole`.
    """
    url = str(URL(vhost.amqp_url(role)).with_port(port or vhost.broker.ports.amqp))
    registry = CollectorRegistry()
    missing = Gauge("evenload_broker_topology_missing", "…", registry=registry)
    settled = Counter("settled", "…", ["queue", "outcome"], registry=registry)
    async with contextlib.AsyncExitStack() as stack:
        session = await stack.enter_async_context(connected(url, f"{role} consume", 30))
        publishing = await stack.enter_async_context(connected(url, f"{role} publish", 30))
        publisher = Publisher(publishing, 100)
        upkeep = Upkeep(session, publisher, topology.ROLES[role], missing)
        one = Process(vhost, session, publisher, upkeep, registry)
        for work in own_work:
            await stack.enter_async_context(meanwhile(work(one, settled)))
        await stack.enter_async_context(meanwhile(upkeep.look_for_ever()))
        if until_whole:
            works = [True] * len(own_work)
            await eventually(lambda: [each.is_consuming for each in session.subscriptions] == works, "all work")
            await one.until_whole()
        yield one


def consuming(queue, bind_to=None):
    def work(one, settled):
        consumer = Consumer(queue, one.take, one.publisher, settled)
        return consumer.consume_for_ever(one.session, prefetch=10, tag=f"test {queue}", bind_to=bind_to)

    return work


def listening(one, _settled):
    return listen_for_ever(one.session, LOAD_TABLE, one.heard.append)


def gateway(vhost):
    return process(vhost, "gateway", listening)


def balancer(vhost, **options):
    return process(vhost, "balancer", consuming(topology.INTAKE), **options)


def substations(vhost, **options):
    queues = [topology.substation_queue(one) for one in SUBSTATIONS]
    return process(vhost, "substation", *(consuming(one, topology.ASSIGNMENTS) for one in queues), **options)


def delete(vhost, kind, name):
    api(vhost.broker, "DELETE", f"{kind}/{vhost.name}/{name}")


def unbind(vhost, exchange, queue, key=""):
    api(vhost.broker, "DELETE", f"bindings/{vhost.name}/e/{exchange}/q/{queue}/{key or '~'}")


def permit(vhost, role, **other):
    """Give a role's user its rights, but for `other`."""
    api(vhost.broker, "PUT", f"permissions/{vhost.name}/{role}", topology.ROLES[role].rights | other)


def mend(vhost):
    """What `evenload mend` loads."""
    api(vhost.broker, "POST", f"definitions/{vhost.name}", topology.topology())


async def until_routed(publisher, *substations):
    async with asyncio.timeout(DEADLINE_S):
        for one in substations:
            while not await is_routed(publisher, one):
                await asyncio.sleep(0.05)


async def is_routed(publisher, substation):
    try:
        await publisher.publish_hints(topology.ASSIGNMENTS, substation, [Hint(f"for {substation}", 1)])
    except (Unroutable, BrokerUnavailable):
        return False
    return True


async def until_received(one, *request_ids):
    await eventually(lambda: set(request_ids) <= {hint.request_id for hint in one.received}, f"{request_ids}")
