"""Topology that somebody takes away while services run: each makes its own anew, and tells what others must make."""

import asyncio
import contextlib

import aio_pika
import pytest
from harness.broker import api
from harness.broker_processes import (
    SUBSTATIONS,
    balancer,
    delete,
    gateway,
    mend,
    permit,
    substations,
    unbind,
    until_received,
    until_routed,
)
from harness.broker_sessions import eventually, meanwhile
from structlog.testing import capture_logs

from services.broker import topology
from services.broker.events import LOAD_TABLE, publish_event
from services.errors import BrokerUnavailable, Unroutable
from services.messages import Hint


@pytest.fixture
def vhost(vhost, monkeypatch):
    """Looked after often: what is told is tested here, not after how many seconds."""
    monkeypatch.setattr("services.broker.upkeep.LOOK_EVERY_S", 0.1)
    monkeypatch.setattr("services.broker.upkeep.RIGHTS_EVERY_S", 0.1)
    monkeypatch.setattr("services.broker.subscription.AGAIN_PAUSE_MAX_S", 0.5)
    return vhost


async def ignore(_message):
    """Take a probe."""


@pytest.mark.parametrize("gone", [("north",), SUBSTATIONS])
@pytest.mark.parametrize("part", ["binding", "queue"])
async def test_a_substation_makes_its_queue_and_its_binding_anew(vhost, part, gone):
    async with balancer(vhost) as chooser, substations(vhost) as host:
        await until_routed(chooser.publisher, *SUBSTATIONS)
        for one in gone:
            queue = topology.substation_queue(one)
            delete(vhost, "queues", queue) if part == "queue" else unbind(vhost, topology.ASSIGNMENTS, queue, one)
        host.received.clear()
        await until_routed(chooser.publisher, *SUBSTATIONS)
        await until_received(host, *(f"for {one}" for one in SUBSTATIONS))
        await host.until_whole()


async def test_the_exchange_of_the_assignments_is_told_by_all_who_need_it_and_bound_again(vhost):
    async with balancer(vhost) as chooser, substations(vhost) as host:
        with capture_logs() as lines:
            delete(vhost, "exchanges", topology.ASSIGNMENTS)
            for one in (chooser, host):
                await one.until_told(f"exchange '{topology.ASSIGNMENTS}' is missing")
            mend(vhost)
            for one in (chooser, host):
                await one.until_whole()
            await until_routed(chooser.publisher, *SUBSTATIONS)
        await until_received(host, *(f"for {one}" for one in SUBSTATIONS))
    told = [line for line in lines if line["event"].startswith("broker_topology")]
    assert [line["event"] for line in told] == ["broker_topology_incomplete"] * 2 + ["broker_topology_whole"] * 2
    assert {(line["cause"], line["cure"], line["missing"]) for line in told[:2]} == {
        (f"exchange '{topology.ASSIGNMENTS}' is missing", topology.MEND, 1)
    }


@pytest.mark.parametrize("exchange", [topology.REQUESTS, topology.EVENTS, topology.DEAD])
async def test_an_exchange_is_told_as_missing_by_those_who_use_it_and_used_again_once_it_is_back(vhost, exchange):
    async with gateway(vhost) as door, balancer(vhost) as chooser:
        delete(vhost, "exchanges", exchange)
        for one, role in ((door, "gateway"), (chooser, "balancer")):
            if exchange in topology.ROLES[role].exchanges:
                await one.until_told(f"exchange '{exchange}' is missing")
        mend(vhost)
        for one in (door, chooser):
            await one.until_whole()
        await door.publisher.publish_hints(topology.REQUESTS, "", [Hint("a", 0)])
        await until_received(chooser, "a")
        while not door.heard:  # the gateway has bound its own queue anew
            await publish_event(chooser.publisher, LOAD_TABLE, "balancer-1", {})
            await asyncio.sleep(0.05)


async def test_the_intake_is_told_as_missing_and_consumed_again_once_it_is_back(vhost):
    async with gateway(vhost) as door, balancer(vhost) as chooser:
        delete(vhost, "queues", topology.INTAKE)
        for one in (door, chooser):
            await one.until_told(f"queue '{topology.INTAKE}' is missing")
        mend(vhost)
        for one in (door, chooser):
            await one.until_whole()
        await door.publisher.publish_hints(topology.REQUESTS, "", [Hint("a", 0)])
        await until_received(chooser, "a")


async def test_the_graveyard_is_told_as_missing(vhost):
    async with balancer(vhost) as chooser, substations(vhost) as host:
        delete(vhost, "queues", topology.GRAVEYARD)
        for one in (chooser, host):
            await one.until_told(f"queue '{topology.GRAVEYARD}' is missing")
            assert one.upkeep.fault() is None  # no request needs it: the process stays ready
        mend(vhost)
        for one in (chooser, host):
            await one.until_whole()


async def test_a_gateway_notices_that_the_intake_is_not_bound_though_nobody_sends_a_request(vhost, monkeypatch):
    monkeypatch.setattr("services.broker.upkeep.ROUTE_PROBE_EVERY_S", 0.2)
    async with gateway(vhost) as door, balancer(vhost) as chooser:
        unbind(vhost, topology.REQUESTS, topology.INTAKE)
        await door.until_told(f"queue '{topology.INTAKE}' is not bound to exchange '{topology.REQUESTS}'")
        mend(vhost)
        await door.until_whole()
        await door.publisher.publish_hints(topology.REQUESTS, "", [Hint("a", 0)])
        await eventually(lambda: chooser.settled(topology.INTAKE), "an ack")
    assert chooser.received == [Hint("a", 0)]
    assert chooser.settled(topology.INTAKE) == 1  # the probes were no work
    assert vhost.queue(topology.GRAVEYARD).get("messages", 0) == 0


async def test_a_gateway_notices_that_too_where_it_may_not_ask_how_many_consume(vhost, monkeypatch):
    monkeypatch.setattr("services.broker.upkeep.ROUTE_PROBE_EVERY_S", 0.2)
    async with gateway(vhost) as door, await aio_pika.connect(vhost.amqp_url("operator")) as owner:
        delete(vhost, "queues", topology.INTAKE)
        # Since RabbitMQ 4.3 the gateway has no right to ask; every broker refuses to tell of a queue of somebody else.
        intake = await (await owner.channel()).declare_queue(topology.INTAKE, exclusive=True)
        await intake.bind(topology.REQUESTS, "")
        await intake.consume(ignore, no_ack=True)
        await door.until_whole()
        await intake.unbind(topology.REQUESTS, "")
        await door.until_told(f"queue '{topology.INTAKE}' is not bound to exchange '{topology.REQUESTS}'")


@pytest.mark.parametrize(
    ("role", "right", "lacking"),
    [
        ("gateway", "write", f"the write right on exchange '{topology.REQUESTS}'"),
        ("balancer", "write", f"the write right on exchange '{topology.ASSIGNMENTS}'"),
        ("substation", "configure", "the configure right on queue 'charge.substation.north'"),
    ],
)
async def test_a_right_that_was_taken_away_is_told_and_nobody_gives_up(vhost, role, right, lacking):
    start = {"gateway": gateway, "balancer": balancer, "substation": substations}[role]
    async with start(vhost) as one:
        permit(vhost, role, **{right: "^$"})
        told = f"user '{role}' lacks {lacking} in vhost '{vhost.name}'"
        await eventually(lambda: told in one.upkeep.missing, told)
        permit(vhost, role)
        await one.until_whole()


async def test_a_queue_of_another_kind_is_told_with_the_brokers_words(vhost):
    queue = topology.substation_queue("north")
    async with substations(vhost) as host:
        permit(vhost, "substation", configure="^$", write="^$", read="^$")
        delete(vhost, "queues", queue)
        api(vhost.broker, "PUT", f"queues/{vhost.name}/{queue}", {"durable": True, "arguments": {}})
        permit(vhost, "substation")
        begins = f"queue '{queue}' is not as it should be (PRECONDITION_FAILED"
        await eventually(lambda: [one for one in host.upkeep.missing if one.startswith(begins)], begins)
        delete(vhost, "queues", queue)
        await host.until_whole()


async def test_a_vhost_that_is_deleted_and_made_anew_under_load_is_served_again_each_time(vhost):
    sent = 0
    async with gateway(vhost) as door, balancer(vhost) as chooser, substations(vhost) as host:

        async def load():
            nonlocal sent
            while True:
                with contextlib.suppress(BrokerUnavailable, Unroutable):
                    await door.publisher.publish_hints(topology.REQUESTS, "", [Hint(f"r{sent}", 0)])
                with contextlib.suppress(BrokerUnavailable, Unroutable):
                    await chooser.publisher.publish_hints(topology.ASSIGNMENTS, "north", [Hint(f"r{sent}", 1)])
                sent += 1
                await asyncio.sleep(0)

        async with meanwhile(load()):
            for _ in range(3):
                await eventually(lambda: chooser.received and host.received, "traffic")
                api(vhost.broker, "DELETE", f"vhosts/{vhost.name}")
                api(vhost.broker, "PUT", f"vhosts/{vhost.name}")
                mend(vhost)
                for role in topology.ROLES:
                    permit(vhost, role)
                chooser.received.clear()
                host.received.clear()
            await eventually(lambda: chooser.received and host.received, "traffic after the last time")
        for one in (door, chooser, host):
            await one.until_whole()
