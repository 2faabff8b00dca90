"""Publishing, consuming and settling on a real RabbitMQ, as the users that the services are."""

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiormq.exceptions import ChannelAccessRefused
from harness.broker import api
from harness.broker_sessions import eventually, meanwhile
from harness.tcp_proxy import TcpProxy
from prometheus_client import CollectorRegistry, Counter
from structlog.testing import capture_logs
from yarl import URL

from services.broker import topology
from services.broker.connection import connected
from services.broker.events import LOAD_TABLE, listen_for_ever, publish_event
from services.broker.publisher import Publisher
from services.broker.settle import Consumer
from services.errors import BrokerUnavailable, LedgerRefused, LedgerUnavailable, Misconfigured, Unroutable
from services.messages import Hint, encode


@dataclass
class Handler:
    """A service's handler that records batches, and fails as told."""

    batches: list[list[Hint]] = field(default_factory=list)
    faults: list[Exception] = field(default_factory=list)
    poison: str = ""
    poisons: Exception = field(default_factory=lambda: RuntimeError("poisoned"))
    called: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, hints):
        self.batches.append(list(hints))
        self.called.set()
        if self.faults:
            raise self.faults.pop(0)
        if any(hint.request_id == self.poison for hint in hints):
            raise self.poisons

    @property
    def seen(self):
        return [hint for batch in self.batches for hint in batch]


@asynccontextmanager
async def publisher_of(vhost, role, envelope_max=100):
    async with connected(vhost.amqp_url(role), f"{role} test", 30) as connection:
        yield Publisher(connection, envelope_max)


@asynccontextmanager
async def consuming(vhost, role, queue, handler, bind_to=None):
    settled = Counter("settled", "…", ["queue", "outcome"], registry=CollectorRegistry())
    async with (
        connected(vhost.amqp_url(role), f"{role} test", 30) as connection,
        publisher_of(vhost, role) as publisher,
    ):
        consumer = Consumer(queue, handler, publisher, settled)
        task = asyncio.create_task(consumer.consume_for_ever(connection, prefetch=10, tag="test", bind_to=bind_to))
        try:
            yield settled
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def messages_in(vhost, queue):
    """Exact depth, by a passive declare on a plain channel."""
    async with connected(vhost.amqp_url("operator"), "probe", 30) as connection:
        channel = await connection.channel()
        return (await channel.declare_queue(queue, passive=True)).declaration_result.message_count


def outcome(settled, queue, name):
    [family] = settled.labels(queue, name).collect()
    return family.samples[0].value


async def test_hints_published_by_a_gateway_reach_a_balancer_and_are_acked(vhost):
    handler = Handler()
    hints = [Hint(f"r{number}", 0) for number in range(250)]
    async with publisher_of(vhost, "gateway") as publisher:
        await publisher.publish_hints(topology.REQUESTS, "", hints)
    assert await messages_in(vhost, topology.INTAKE) == 3
    async with consuming(vhost, "balancer", topology.INTAKE, handler) as settled:
        await eventually(lambda: outcome(settled, topology.INTAKE, "acked") == 3, "three acks")
    assert sorted(handler.seen) == sorted(hints)
    assert await messages_in(vhost, topology.INTAKE) == 0


async def test_a_broker_that_goes_just_when_consumption_begins_is_waited_for(vhost):
    handler = Handler()
    async with publisher_of(vhost, "gateway") as publisher:
        await publisher.publish_hints(topology.REQUESTS, "", [Hint("a", 0)])
        with TcpProxy(vhost.broker.ports.amqp) as proxy:
            url = str(URL(vhost.amqp_url("balancer")).with_port(proxy.port))
            async with connected(url, "balancer test", 30) as connection:
                proxy.refuse()
                proxy.cut()
                await eventually(lambda: not connection.connected.is_set(), "the loss noticed")
                settled = Counter("settled", "…", ["queue", "outcome"], registry=CollectorRegistry())
                consumer = Consumer(topology.INTAKE, handler, publisher, settled)
                task = asyncio.create_task(consumer.consume_for_ever(connection, prefetch=10, tag="test"))
                proxy.heal()
                await eventually(lambda: outcome(settled, topology.INTAKE, "acked") == 1, "one ack")
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
    assert handler.seen == [Hint("a", 0)]


async def test_deliveries_whose_channel_broke_are_told_in_one_line_for_each_batch(vhost):
    batches = []
    async with publisher_of(vhost, "gateway", envelope_max=1) as publisher:
        await publisher.publish_hints(topology.REQUESTS, "", [Hint(f"r{number}", 0) for number in range(9)])
        async with connected(vhost.amqp_url("balancer"), "balancer test", 30) as connection:
            settled = Counter("settled", "…", ["queue", "outcome"], registry=CollectorRegistry())

            async def lose_connection_once(hints):
                batches.append(hints)
                # The first batch may be a single delivery; meanwhile the others gather.
                if len(batches) == 2:
                    connection.link.drop("a test")
                    await eventually(lambda: connection.link is None, "the loss noticed")

            consumer = Consumer(topology.INTAKE, lose_connection_once, publisher, settled)
            with capture_logs() as said:
                task = asyncio.create_task(consumer.consume_for_ever(connection, prefetch=10, tag="test"))
                await eventually(lambda: outcome(settled, topology.INTAKE, "acked") == 9, "nine acks")
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    told = [(one["queue"], one["deliveries"]) for one in said if one["event"] == "settling_unconfirmed"]
    assert told == [(topology.INTAKE, len(batches[1]))]


async def test_an_envelope_may_be_limited_to_one_hint(vhost):
    async with publisher_of(vhost, "gateway", envelope_max=1) as publisher:
        await publisher.publish_hints(topology.REQUESTS, "", [Hint("a", 0), Hint("b", 0)])
    assert await messages_in(vhost, topology.INTAKE) == 2


async def test_a_substation_declares_and_binds_its_own_queue(vhost):
    handler = Handler()
    queue = topology.substation_queue("north")
    async with publisher_of(vhost, "balancer") as publisher:
        with pytest.raises(Unroutable):
            await publisher.publish_hints(topology.ASSIGNMENTS, "north", [Hint("a", 1)])
        async with consuming(vhost, "substation", queue, handler, topology.ASSIGNMENTS) as settled:
            await eventually(
                lambda: any(one["name"] == queue for one in api(vhost.broker, "GET", f"queues/{vhost.name}")), "a queue"
            )
            while not handler.called.is_set():
                try:
                    await publisher.publish_hints(topology.ASSIGNMENTS, "north", [Hint("a", 1)])
                    await eventually(handler.called.is_set, "a delivery")
                except Unroutable:
                    await asyncio.sleep(0.05)
            await eventually(lambda: outcome(settled, queue, "acked"), "an ack")
    details = await eventually(lambda: "policy" in vhost.queue(queue) and vhost.queue(queue), "its statistics")
    assert details["arguments"] == dict(topology.QUORUM)
    assert details["policy"] == "charge-work"


async def test_an_unreadable_message_is_quarantined_with_its_reason_and_its_neighbours_go_on(vhost):
    handler = Handler()
    async with publisher_of(vhost, "gateway") as publisher:
        await publisher.publish(topology.REQUESTS, "", b"not json", message_type="envelope")
        await publisher.publish(topology.REQUESTS, "", b'{"v":1,"hints":[["good",0],["bad"]]}', message_type="envelope")
    async with consuming(vhost, "balancer", topology.INTAKE, handler) as settled:
        await eventually(lambda: outcome(settled, topology.INTAKE, "acked") == 1, "the readable one's ack")
        await eventually(lambda: outcome(settled, topology.INTAKE, "quarantined") == 1, "the other's")
    assert handler.seen == [Hint("good", 0)]
    assert await messages_in(vhost, topology.GRAVEYARD) == 2
    async with connected(vhost.amqp_url("operator"), "probe", 30) as connection:
        channel = await connection.channel()
        queue = await channel.get_queue(topology.GRAVEYARD)
        faults = [json.loads((await queue.get(no_ack=True)).body)["fault"] for _ in range(2)]
    assert any("JSON" in fault for fault in faults)
    assert any("unreadable hint" in fault for fault in faults)


@pytest.mark.parametrize("poisons", [RuntimeError("poisoned"), LedgerRefused("PostgreSQL: a rule", "23514")])
async def test_a_poisoned_hint_is_found_after_three_deliveries_and_its_neighbours_are_served(vhost, poisons):
    handler = Handler(poison="poison", poisons=poisons)
    async with publisher_of(vhost, "gateway") as publisher:
        await publisher.publish_hints(topology.REQUESTS, "", [Hint("a", 0), Hint("poison", 0), Hint("b", 0)])
    async with consuming(vhost, "balancer", topology.INTAKE, handler) as settled:
        await eventually(lambda: outcome(settled, topology.INTAKE, "acked") == 1, "an ack")
        assert outcome(settled, topology.INTAKE, "requeued") == topology.TAKE_APART_AFTER - 1
    assert [Hint("a", 0)] in handler.batches
    assert [Hint("b", 0)] in handler.batches
    assert await messages_in(vhost, topology.GRAVEYARD) == 1
    assert await messages_in(vhost, topology.INTAKE) == 0


async def test_a_poisoned_hint_ends_among_the_dead_also_where_the_queue_counts_no_deliveries(vhost):
    api(vhost.broker, "DELETE", f"queues/{vhost.name}/{topology.INTAKE}")
    classic = {"durable": True, "arguments": dict(topology.CLASSIC)}
    api(vhost.broker, "PUT", f"queues/{vhost.name}/{topology.INTAKE}", classic)
    api(vhost.broker, "POST", f"bindings/{vhost.name}/e/{topology.REQUESTS}/q/{topology.INTAKE}", {"routing_key": ""})
    handler = Handler(poison="poison", poisons=RuntimeError("poisoned"))
    async with publisher_of(vhost, "gateway") as publisher:
        await publisher.publish_hints(topology.REQUESTS, "", [Hint("a", 0), Hint("poison", 0)])
    async with consuming(vhost, "balancer", topology.INTAKE, handler) as settled:
        await eventually(lambda: outcome(settled, topology.INTAKE, "acked") == 1, "an ack")
        assert outcome(settled, topology.INTAKE, "requeued") == 1
    assert [Hint("a", 0)] in handler.batches
    assert await messages_in(vhost, topology.GRAVEYARD) == 1
    assert await messages_in(vhost, topology.INTAKE) == 0


async def test_a_full_queue_refuses_what_is_new_and_keeps_what_it_has(vhost):
    [work] = [one for one in topology.POLICIES if one["name"] == "charge-work"]
    small = {**work, "definition": {**work["definition"], "max-length": 2}}
    api(vhost.broker, "PUT", f"policies/{vhost.name}/charge-work", small)

    async def publish_many(publisher):
        for number in range(1_000):  # the broker notices a moment later that its queue is full
            await publisher.publish_hints(topology.REQUESTS, "", [Hint(f"r{number}", 0)])

    async with publisher_of(vhost, "gateway") as publisher:
        with pytest.raises(BrokerUnavailable):
            await publish_many(publisher)
    async with connected(vhost.amqp_url("operator"), "probe", 30) as connection:
        queue = await (await connection.channel()).get_queue(topology.INTAKE)
        assert json.loads((await queue.get(no_ack=True)).body)["hints"] == [["r0", 0]]


async def test_while_the_ledger_is_away_nothing_is_requeued(vhost):
    handler = Handler(faults=[LedgerUnavailable("away"), LedgerUnavailable("still away")])
    async with publisher_of(vhost, "gateway") as publisher:
        await publisher.publish_hints(topology.REQUESTS, "", [Hint("a", 0)])
    async with consuming(vhost, "balancer", topology.INTAKE, handler) as settled:
        await eventually(lambda: outcome(settled, topology.INTAKE, "acked") == 1, "an ack")
        assert outcome(settled, topology.INTAKE, "requeued") == 0
    assert handler.batches == [[Hint("a", 0)]] * 3


async def test_events_reach_who_listens_and_nobody_listening_is_no_error(vhost):
    heard = []
    async with publisher_of(vhost, "balancer") as publisher:
        await publish_event(publisher, LOAD_TABLE, "balancer-1", {"n": 0})
        async with (
            connected(vhost.amqp_url("gateway"), "gateway test", 30) as connection,
            meanwhile(listen_for_ever(connection, LOAD_TABLE, heard.append)),
        ):
            while not heard:
                await publish_event(publisher, LOAD_TABLE, "balancer-1", {"n": 1})
                await asyncio.sleep(0.05)
    assert {event["n"] for event in heard} == {1}


@pytest.mark.parametrize(
    ("role", "exchange"),
    [
        ("gateway", topology.ASSIGNMENTS),
        ("gateway", topology.DEAD),
        ("balancer", topology.REQUESTS),
        ("substation", topology.REQUESTS),
        ("substation", topology.ASSIGNMENTS),
    ],
)
async def test_a_role_may_not_publish_what_is_not_its_own(vhost, role, exchange):
    async with publisher_of(vhost, role) as publisher:
        with pytest.raises(BrokerUnavailable, match=r"(?i)access|refused"):
            await publisher.publish(exchange, "", encode([Hint("a", 0)]), message_type="envelope")


async def ignore(_message):
    pass


@pytest.mark.parametrize(("role", "queue"), [("gateway", topology.INTAKE), ("substation", topology.INTAKE)])
async def test_a_role_may_not_consume_what_is_not_its_own(vhost, role, queue):
    async with connected(vhost.amqp_url(role), f"{role} test", 30) as connection:
        channel = await connection.channel()
        found = await channel.get_queue(queue, ensure=False)
        with pytest.raises(ChannelAccessRefused):
            await found.consume(ignore)


async def test_a_broker_that_is_not_there_is_named_without_its_password(port):
    with pytest.raises(Misconfigured) as refused:
        async with connected(f"amqp://someone:secret@127.0.0.1:{port}/evenload", "test", 0.1):
            pass
    assert f"127.0.0.1:{port}" in str(refused.value)
    assert "EVENLOAD_AMQP_URL" in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_private_node_boots_with_the_whole_topology(broker):
    vhost = topology.VHOST
    queues = {one["name"]: one for one in api(broker, "GET", f"queues/{vhost}")}
    assert {topology.INTAKE, topology.GRAVEYARD} <= queues.keys()
    exchanges = {one["name"]: one["type"] for one in api(broker, "GET", f"exchanges/{vhost}")}
    assert dict(topology.EXCHANGES).items() <= exchanges.items()
    assert {one["name"] for one in api(broker, "GET", "users")} == topology.ROLES.keys()
    policies = {one["name"]: one["definition"] for one in api(broker, "GET", f"policies/{vhost}")}
    assert policies["charge-work"]["delivery-limit"] == topology.DELIVERY_LIMIT
