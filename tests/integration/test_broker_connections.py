"""A broker connection under trouble: it comes back, says why it does not, and never becomes two."""

import asyncio
import uuid
from contextlib import asynccontextmanager

import pytest
from harness.broker import api
from harness.broker_sessions import DEADLINE_S, eventually, meanwhile
from harness.tcp_proxy import TcpProxy
from structlog.testing import capture_logs

from services.broker import session, topology
from services.broker.connection import connected
from services.broker.events import LOAD_TABLE, listen_for_ever, publish_event
from services.broker.publisher import Publisher
from services.broker.session import FAULTY_AFTER_S, FIRST_PAUSE_MAX_S, LONGEST_PAUSE_S, SHORTEST_PAUSE_S, pause_s
from services.errors import BrokerUnavailable, Misconfigured
from services.messages import Hint


@pytest.fixture
def proxy(broker):
    with TcpProxy(broker.ports.amqp) as one:
        yield one


@asynccontextmanager
async def through(proxy, vhost, role, name=None, startup_timeout_s=30.0, **replaced):
    url = vhost.amqp_url(role).replace(f":{vhost.broker.ports.amqp}/", f":{proxy.port}/")
    for right, wrong in replaced.items():
        url = url.replace(right, wrong)
    async with connected(url, name or uuid.uuid4().hex, startup_timeout_s) as connection:
        yield connection


async def publish(publisher):
    await publisher.publish_hints(topology.REQUESTS, "", [Hint("a", 0)])


async def published_again(publisher):
    while True:
        try:
            return await publish(publisher)
        except BrokerUnavailable:
            await asyncio.sleep(0.1)


def connections_named(broker, *names):
    """How many connections of these names the console shows; its list lags by its statistics' interval."""
    shown = [one.get("client_properties", {}).get("connection_name") for one in api(broker, "GET", "connections")]
    return [shown.count(name) for name in names]


def test_failure_22_pauses_are_drawn_anew_and_grow_with_the_outage():
    at_first = {pause_s(0.0) for _ in range(500)}
    later = {pause_s(60.0) for _ in range(500)}

    assert len(at_first) > 490
    assert SHORTEST_PAUSE_S <= min(at_first) < max(at_first) <= FIRST_PAUSE_MAX_S
    assert min(later) >= SHORTEST_PAUSE_S
    assert FIRST_PAUSE_MAX_S < max(later) <= LONGEST_PAUSE_S


async def test_failure_22_each_attempt_waits_for_a_pause_of_its_own(proxy, vhost, monkeypatch):
    drawn = []

    def short_pause_s(away_s):
        drawn.append(away_s)
        return 0.01 + len(drawn) / 100_000

    monkeypatch.setattr(session, "pause_s", short_pause_s)
    slept = []
    sleep = asyncio.sleep

    async def noted_sleep(delay_s, *more):
        slept.append(delay_s)
        await sleep(delay_s, *more)

    async with through(proxy, vhost, "gateway") as connection:
        publisher = Publisher(connection, 100)
        monkeypatch.setattr(asyncio, "sleep", noted_sleep)
        proxy.refuse()
        proxy.cut()
        await eventually(lambda: len([one for one in slept if 0.01 < one < 0.05]) > 20, "twenty attempts")
        proxy.heal()
        async with asyncio.timeout(DEADLINE_S):
            await published_again(publisher)
    pauses = [one for one in slept if 0.01 < one < 0.05]
    assert len(set(pauses)) == len(pauses)
    assert max(drawn) > 0  # it is told how long the outage is


async def test_failure_22_a_connection_that_was_cut_often_is_still_one(proxy, vhost):
    name = uuid.uuid4().hex
    async with through(proxy, vhost, "gateway", name) as connection:
        publisher = Publisher(connection, 100)
        async with asyncio.timeout(DEADLINE_S):
            for _ in range(5):
                proxy.cut()
                await published_again(publisher)
        assert proxy.open_connections == 1
        await eventually(lambda: connections_named(vhost.broker, name) == [1], "one in the console")
    await eventually(lambda: proxy.open_connections == 0, "none once it is closed")


async def test_failure_06_an_attempt_at_a_silent_broker_ends_and_leaves_nothing_behind(proxy, vhost, monkeypatch):
    monkeypatch.setattr("services.broker.link.ATTEMPT_DEADLINE_S", 0.3)
    proxy.stall()
    with pytest.raises(Misconfigured, match="no answer in time"):
        async with through(proxy, vhost, "gateway", startup_timeout_s=1.5):
            pass
    taken = proxy.accepted
    assert taken > 1
    proxy.heal()
    await eventually(lambda: proxy.open_connections == 0, "no attempt goes on behind our back")
    assert proxy.accepted == taken


async def test_the_heartbeat_is_ten_seconds_unless_the_address_says_otherwise(proxy, vhost):
    name = uuid.uuid4().hex
    async with (
        through(proxy, vhost, "gateway", f"{name}-10"),
        through(proxy, vhost, "gateway", f"{name}-7", **{f"/{vhost.name}": f"/{vhost.name}?heartbeat=7"}),
    ):

        def heartbeats_s():
            shown = {one.get("client_properties", {}).get("connection_name"): one.get("timeout")
                     for one in api(vhost.broker, "GET", f"vhosts/{vhost.name}/connections")}  # fmt: skip
            return [shown.get(f"{name}-{heartbeat_s}") for heartbeat_s in (10, 7)]

        await eventually(lambda: heartbeats_s() == [10, 7], "both in the console")


async def test_failure_06_events_are_heard_again_after_a_half_open_connection(proxy, vhost):
    heard = []
    async with (
        connected(vhost.amqp_url("balancer"), "test", 30) as telling,
        through(proxy, vhost, "gateway", **{f"/{vhost.name}": f"/{vhost.name}?heartbeat=1"}) as connection,
        meanwhile(listen_for_ever(connection, LOAD_TABLE, heard.append)),
    ):
        publisher = Publisher(telling, 100)

        async def is_heard(number):
            async with asyncio.timeout(DEADLINE_S):
                while number not in [event["n"] for event in heard]:
                    await publish_event(publisher, LOAD_TABLE, "balancer-1", {"n": number})
                    await asyncio.sleep(0.1)

        await is_heard(1)
        proxy.stall()
        # Our end gives up; the broker's end is still there, and with it the exclusive queue.
        await eventually(lambda: not connection.connected.is_set(), "our end noticed")
        proxy.heal()
        await is_heard(2)


async def test_failure_06_a_silent_connection_is_given_up_long_before_its_heartbeat_would_tell(
    proxy, vhost, monkeypatch
):
    monkeypatch.setattr(session, "PROBE_EVERY_S", 0.1)
    monkeypatch.setattr(session, "PROBE_DEADLINE_S", 0.5)
    an_hour = {f"/{vhost.name}": f"/{vhost.name}?heartbeat=600"}
    with capture_logs() as lines:
        async with through(proxy, vhost, "balancer", **an_hour) as connection:
            proxy.stall()
            await eventually(lambda: not connection.connected.is_set(), "given up")
            proxy.heal()
            await eventually(connection.connected.is_set, "made anew")
            await connection.channel()
    lost = [line["cause"] for line in lines if line["event"] == "broker_connection_lost"]
    assert lost == ["it fell silent (the probe: no answer in time)"]


async def test_a_password_that_became_wrong_is_told_as_the_fault(proxy, vhost, monkeypatch):
    monkeypatch.setattr(session, "FAULTY_AFTER_S", 1.0)
    broker = vhost.broker
    user = f"u{uuid.uuid4().hex[:8]}"
    rights = {"configure": ".*", "write": ".*", "read": ".*"}

    def set_password(password):
        api(broker, "PUT", f"users/{user}", {"password": password, "tags": ""})

    set_password("first")
    try:
        api(broker, "PUT", f"permissions/{vhost.name}/{user}", rights)
        login = {f"gateway:{broker.passwords['gateway']}": f"{user}:first"}
        async with through(proxy, vhost, "gateway", "gateway-1 publish", **login) as connection:
            assert connection.fault() is None
            set_password("second")
            proxy.cut()
            fault = await eventually(connection.fault, "a fault")
            assert "'gateway-1 publish' lost" in fault
            await eventually(lambda: "ACCESS_REFUSED" in connection.fault(), "the cause")
            assert "first" not in connection.fault()
            set_password("first")
            await eventually(lambda: connection.fault() is None, "well again")
    finally:
        api(broker, "DELETE", f"users/{user}")


def test_a_restart_of_the_broker_is_no_fault_yet():
    assert FAULTY_AFTER_S >= 2 * FIRST_PAUSE_MAX_S
