"""Looks at the broker's topology that come over a slow way, stay unanswered, or find what is there and of no use."""

import asyncio
import re
from types import SimpleNamespace

import aio_pika
import pytest
from aio_pika.exceptions import ChannelNotFoundEntity
from harness.broker import api
from harness.broker_processes import SUBSTATIONS, balancer, delete, gateway, mend, substations, unbind, until_routed
from harness.broker_sessions import eventually
from harness.tcp_proxy import TcpProxy

from services.broker import topology
from services.broker.connection import connected
from services.broker.events import LOAD_TABLE, listen_for_ever, publish_event
from services.broker.inquiry import Away, Inquiry, inquiring
from services.broker.lacks import NODES, RIVALS
from services.broker.rights import RightLacking
from services.errors import BrokerUnavailable

NORTH = topology.substation_queue("north")
CLASSIC = {"x-queue-type": "classic"}
DOWN = "NOT_FOUND - home node 'rabbit@b' of durable queue 'x' in vhost 'v' is down or inaccessible"


@pytest.fixture
def vhost(vhost, monkeypatch):
    """Looked after often: what is told is tested here, not after how many seconds."""
    for name, value in {
        "upkeep.LOOK_EVERY_S": 0.1,
        "upkeep.RIGHTS_EVERY_S": 0.1,
        "subscription.AGAIN_PAUSE_MAX_S": 0.5,
    }.items():
        monkeypatch.setattr(f"services.broker.{name}", value)
    return vhost


def other_queue(look, name="charge.substation.other"):
    """What upkeep sees of a subscription; `look` is its look."""
    return SimpleNamespace(name=name, look=look, fault=None, rivals=0, is_consuming=True)


async def hang(_channel):
    await asyncio.Event().wait()


async def test_a_look_over_a_slow_way_ends_and_mends_however_many_questions_it_has(vhost, monkeypatch):
    monkeypatch.setattr("services.broker.inquiry.QUESTION_DEADLINE_S", 1.0)
    with TcpProxy(vhost.broker.ports.amqp) as proxy:
        async with balancer(vhost) as chooser, substations(vhost, port=proxy.port) as host:
            proxy.delay(0.04)  # a question takes three ways and back at most, a look some fifteen
            await until_routed(chooser.publisher, *SUBSTATIONS)
            for one in SUBSTATIONS:
                unbind(vhost, topology.ASSIGNMENTS, topology.substation_queue(one), one)
            await until_routed(chooser.publisher, *SUBSTATIONS)
            await host.until_whole()


async def test_a_question_that_nobody_answers_is_told_and_holds_up_no_other(vhost, monkeypatch):
    monkeypatch.setattr("services.broker.inquiry.QUESTION_DEADLINE_S", 0.3)
    async with balancer(vhost) as chooser, substations(vhost) as host:
        host.session.subscriptions.insert(0, other_queue(hang))
        await host.until_told("asking about queue 'charge.substation.other': no answer in time", cure=NODES)
        unbind(vhost, topology.ASSIGNMENTS, NORTH, "north")
        await until_routed(chooser.publisher, "north")
        del host.session.subscriptions[0]
        await host.until_whole()


async def test_a_graveyard_that_gives_no_answer_is_told_and_makes_nobody_unready(vhost, monkeypatch):
    real = Inquiry.consumers

    async def consumers(inquiry, queue):
        if queue == topology.GRAVEYARD:
            raise BrokerUnavailable(f"asking about queue {queue!r}: no answer in time")
        return await real(inquiry, queue)

    monkeypatch.setattr(Inquiry, "consumers", consumers)
    async with balancer(vhost, until_whole=False) as chooser:
        await chooser.until_told("asking about queue 'charge.graveyard': no answer in time", cure=NODES)
        assert chooser.upkeep.fault() is None


async def test_looks_that_never_end_are_told(vhost, monkeypatch):
    monkeypatch.setattr("services.broker.upkeep.UNFINISHED_AFTER_S", 0.2)
    async with substations(vhost) as host:

        async def break_connection(_channel):
            host.session.link.drop("the test drops it")
            await hang(_channel)

        monkeypatch.setattr("services.broker.session.pause_s", lambda _away_s: 0.01)
        monkeypatch.setattr("services.broker.inquiry.QUESTION_DEADLINE_S", 0.2)
        host.session.subscriptions.append(other_queue(break_connection))
        told = await eventually(host.upkeep.fault, "a fault")
        assert re.fullmatch(
            r"the broker's topology could not be looked at for \d+ s \(.+\): see the broker's log", told
        )
        host.session.subscriptions.pop()
        await host.until_whole()


async def test_a_queue_that_is_away_is_told_apart_from_one_that_is_missing(vhost):
    async def look(_channel):
        raise ChannelNotFoundEntity(DOWN)

    async with substations(vhost) as host:
        host.session.subscriptions.append(other_queue(look))
        await host.until_told(f"queue 'charge.substation.other' is away ({DOWN})", cure=NODES)
        assert "mend" not in host.upkeep.fault()


async def test_an_answer_that_a_queues_node_is_down_does_not_count_as_its_absence():
    async def declare_queue(_name, **_options):
        raise ChannelNotFoundEntity(DOWN)

    async def channel(**_options):
        return SimpleNamespace(is_closed=True, declare_queue=declare_queue)

    async with inquiring(SimpleNamespace(link=None, channel=channel)) as inquiry:
        assert await inquiry.consumers(topology.INTAKE) == Away(DOWN)


def permit_topics(vhost, user, write, read):
    rights = {"exchange": topology.EVENTS, "write": write, "read": read}
    api(vhost.broker, "PUT", f"topic-permissions/{vhost.name}/{user}", rights)


async def test_topic_permissions_that_allow_what_we_use_are_enough(vhost):
    permit_topics(vhost, "gateway", "^$", r"^load_table\.")
    permit_topics(vhost, "balancer", r"^load_table\.", "^$")
    async with gateway(vhost) as door, balancer(vhost) as chooser:
        for one in (door, chooser):
            await one.upkeep.require()
        while not door.heard:
            await publish_event(chooser.publisher, LOAD_TABLE, "balancer-1", {})
            await asyncio.sleep(0.05)
        for one in (door, chooser):
            await one.until_whole()


async def test_a_topic_that_a_user_may_not_hear_ends_its_start_with_the_right_and_its_cure(vhost):
    permit_topics(vhost, "gateway", "^$", "^$")
    async with connected(vhost.amqp_url("gateway"), "gateway consume", 30) as one:
        with pytest.raises(RightLacking) as told:
            await listen_for_ever(one, LOAD_TABLE, print)
    assert str(told.value) == (
        "EVENLOAD_AMQP_URL: user 'gateway' lacks the read right on topic 'load_table.#' in exchange 'charge.events' in "
        f"vhost '{vhost.name}': let `rabbitmqctl set_topic_permissions` allow that routing key, or clear the user's "
        "topic permissions"
    )


async def test_a_topic_that_a_user_may_not_publish_under_is_told_until_it_may(vhost):
    permit_topics(vhost, "balancer", "^$", "^$")
    async with balancer(vhost) as chooser:
        with pytest.raises(BrokerUnavailable, match="load_table"):
            await publish_event(chooser.publisher, LOAD_TABLE, "balancer-1", {})
        await chooser.until_told(
            "user 'balancer' lacks the write right on topic 'load_table.balancer-1' in exchange 'charge.events' in "
            f"vhost '{vhost.name}'",
            cure="let `rabbitmqctl set_topic_permissions` allow that routing key, or clear the user's topic "
            "permissions",
        )
        permit_topics(vhost, "balancer", r"^load_table\.", "^$")
        await publish_event(chooser.publisher, LOAD_TABLE, "balancer-1", {})
        await chooser.until_whole()


async def test_somebody_else_who_takes_from_a_substations_queue_is_told_and_makes_nobody_unready(vhost):
    async with substations(vhost) as host, balancer(vhost) as one, balancer(vhost) as another:
        async with await aio_pika.connect(vhost.amqp_url("operator")) as stranger:
            await (await (await stranger.channel()).get_queue(NORTH)).consume(hang)
            cause = f"queue '{NORTH}' has 2 consumers, and only its substation may take from it"
            await host.until_told(cause, cure=RIVALS)
            assert host.upkeep.fault() is None
        await host.until_whole()
        for each in (one, another):
            await each.until_whole()  # several balancers take from the intake


async def test_a_queue_that_somebody_else_takes_from_alone_is_no_lack_of_a_right(vhost):
    delete(vhost, "queues", topology.INTAKE)
    api(vhost.broker, "PUT", f"queues/{vhost.name}/{topology.INTAKE}", {"durable": True, "arguments": CLASSIC})
    mend(vhost)
    async with await aio_pika.connect(vhost.amqp_url("operator")) as stranger:
        await (await (await stranger.channel()).get_queue(topology.INTAKE)).consume(hang, exclusive=True)
        async with balancer(vhost, until_whole=False) as chooser:
            cause = (
                f"queue '{topology.INTAKE}' cannot be consumed (consuming {topology.INTAKE}: ACCESS_REFUSED - queue "
                f"'{topology.INTAKE}' in vhost '{vhost.name}' in exclusive use)"
            )
            await chooser.until_told(cause, cure=RIVALS)
            await stranger.close()
            await chooser.until_whole()
