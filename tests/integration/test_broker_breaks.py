"""A connection that the broker ends again and again, does not take now, or takes at another address only."""

import asyncio
import contextlib
import re
import socket
import uuid

import pytest
from harness.broker import api
from harness.broker_sessions import eventually, meanwhile
from harness.tcp_proxy import TcpProxy
from structlog.testing import capture_logs
from yarl import URL

from services.broker import session
from services.broker.address import BrokerAddress
from services.broker.calls import within
from services.broker.connection import connected, until_connected
from services.broker.session import running
from services.errors import BrokerUnavailable, Misconfigured

LIMIT = "has reached the maximum allowed user limit of"


@contextlib.contextmanager
def user_of_its_own(vhost):
    """A user with all rights, whose limits harm no other test."""
    name = f"u{uuid.uuid4().hex[:8]}"
    api(vhost.broker, "PUT", f"users/{name}", {"password": "its-own", "tags": ""})
    rights = {"configure": ".*", "write": ".*", "read": ".*"}
    try:
        api(vhost.broker, "PUT", f"permissions/{vhost.name}/{name}", rights)
        yield name, str(URL(vhost.amqp_url("gateway")).with_user(name).with_password("its-own"))
    finally:
        api(vhost.broker, "DELETE", f"users/{name}")


async def open_channels_for_ever(one):
    """What a service does with its connection, as far as this limit is concerned."""
    while True:
        with contextlib.suppress(BrokerUnavailable):
            channel = await within(5, "opening", one.channel(publisher_confirms=False))
            await within(5, "closing", channel.close())
        await asyncio.sleep(0.01)


async def test_a_connection_that_breaks_again_and_again_is_told_with_the_brokers_words(vhost, monkeypatch):
    monkeypatch.setattr(session, "FAULTY_AFTER_S", 1.0)
    monkeypatch.setattr(session, "PROBE_EVERY_S", 0.2)
    outages_s = []

    def short_pause_s(away_s):
        outages_s.append(away_s)
        return 0.02

    monkeypatch.setattr(session, "pause_s", short_pause_s)
    with user_of_its_own(vhost) as (user, url), capture_logs() as lines:
        async with (
            connected(url, "gateway-1 consume", 30) as one,
            meanwhile(open_channels_for_ever(one)),
        ):
            api(vhost.broker, "PUT", f"user-limits/{user}/max-channels", {"value": 1})
            one.link.drop("the test drops it")
            told = await eventually(one.fault, "a fault")
            assert told.startswith("broker connection 'gateway-1 consume' broke ")
            await eventually(lambda: LIMIT in (one.fault() or ""), "the broker's words")
            await eventually(lambda: one.link is not None and one.fault(), "told while it is back for a moment, too")
            await eventually(lambda: max(outages_s) >= 1.0, "pauses that grow with the whole outage")

            api(vhost.broker, "DELETE", f"user-limits/{user}/max-channels")
            await eventually(lambda: one.link is not None and one.fault() is None, "well again")
            # Told at once after the first loss, and then once a connection has lasted.
            await eventually(lambda: [line["event"] for line in lines].count("broker_connection_back") == 2, "told")
    lost = [line["cause"] for line in lines if line["event"] == "broker_connection_lost"]
    assert lost[0] == "the test drops it"
    assert all(LIMIT in cause for cause in lost[1:])


async def test_after_an_outage_a_connection_is_well_at_once_though_it_breaks_once_more(vhost, monkeypatch):
    monkeypatch.setattr(session, "FAULTY_AFTER_S", 1.0)
    with TcpProxy(vhost.broker.ports.amqp) as proxy:
        url = str(URL(vhost.amqp_url("gateway")).with_port(proxy.port))
        async with connected(url, "gateway-1 publish", 30) as one:
            for _ in range(2):
                proxy.refuse()
                proxy.cut()
                assert " lost " in await eventually(one.fault, "a fault")
                proxy.heal()
                await one.connected.wait()
                assert one.fault() is None


@pytest.mark.parametrize("whose", ["user", "vhost"])
async def test_a_limit_of_connections_is_named_and_passes(vhost, monkeypatch, whose):
    monkeypatch.setattr(session, "pause_s", lambda _away_s: 0.05)
    with user_of_its_own(vhost) as (user, url):
        limit = f"{whose}-limits/{user if whose == 'user' else vhost.name}/max-connections"
        api(vhost.broker, "PUT", limit, {"value": 0})
        said = "connection limit (0) is reached"
        with pytest.raises(Misconfigured) as told:
            async with connected(url, "balancer-1 consume", 0.1):
                pass
        place = f"amqp://{user}:***@127.0.0.1:{vhost.broker.ports.amqp}/{vhost.name}"
        assert str(told.value).startswith(f"EVENLOAD_AMQP_URL: the broker at {place} answers, and lets nobody in now (")
        assert str(told.value).endswith(f"{said}): raise that limit, or end other connections")

        async with running(BrokerAddress(url), "gateway-1 consume") as one:
            with pytest.raises(BrokerUnavailable, match=re.escape(said)):  # a gateway starts without
                await until_connected(one, 600, unanswered_s=30)
            assert said in one.waiting()
            waiting = asyncio.create_task(until_connected(one, 600))
            api(vhost.broker, "DELETE", limit)
            async with asyncio.timeout(60):
                await waiting


NOBODY_THERE = "127.0.0.3"


@pytest.fixture
def with_addresses(vhost, monkeypatch):
    """The broker's address with a port, and with a host that has the addresses that are given, in that order."""
    real = socket.getaddrinfo

    def with_host_of(addresses, port):
        def found(host, *more, **options):
            names = addresses if host == "broker.example" else [host]
            return [real(one, *more, **options)[0] for one in names]

        monkeypatch.setattr(socket, "getaddrinfo", found)
        return str(URL(vhost.amqp_url("gateway")).with_host("broker.example").with_port(port))

    return with_host_of


@pytest.fixture
def other_address(vhost, with_addresses):
    """A listener that accepts nobody, at the first of two addresses of a host; and the address with that host."""
    with TcpProxy(vhost.broker.ports.amqp) as proxy, socket.socket() as listener:
        listener.bind(("127.0.0.2", proxy.port))
        yield listener, with_addresses(("127.0.0.2", "127.0.0.1"), proxy.port)


async def test_an_address_that_drops_everything_does_not_hide_the_other_one(other_address):
    listener, url = other_address
    listener.listen(0)
    with contextlib.ExitStack() as waiting:
        for _ in range(4):  # until its queue is full: from then on Linux drops who wants to connect
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        async with connected(url, "gateway-1 consume", 0.1) as session_there:
            await session_there.channel()


async def test_an_address_that_takes_connections_and_says_nothing_does_not_hide_the_other_one(
    other_address, monkeypatch
):
    monkeypatch.setattr("services.broker.link.ATTEMPT_DEADLINE_S", 0.5)
    listener, url = other_address
    listener.listen(100)
    async with connected(url, "gateway-1 consume", 60) as session_there:
        await session_there.channel()


async def test_an_address_that_refuses_after_another_was_silent_does_not_hide_a_third_one(
    other_address, with_addresses, monkeypatch
):
    monkeypatch.setattr("services.broker.link.ATTEMPT_DEADLINE_S", 0.5)
    listener, url = other_address
    listener.listen(100)
    url = with_addresses(("127.0.0.2", NOBODY_THERE, "127.0.0.1"), URL(url).port)
    async with connected(url, "gateway-1 consume", 60) as session_there:
        await session_there.channel()


async def test_an_address_that_was_silent_is_tried_again_although_the_next_one_refuses(
    vhost, with_addresses, monkeypatch
):
    monkeypatch.setattr("services.broker.link.ATTEMPT_DEADLINE_S", 0.5)
    with TcpProxy(vhost.broker.ports.amqp) as proxy:
        proxy.stall()
        url = with_addresses(("127.0.0.1", NOBODY_THERE), proxy.port)
        async with running(BrokerAddress(url), "gateway-1 consume") as one:
            await eventually(lambda: NOBODY_THERE in str(one.cause), "the other one was tried")
            proxy.heal()
            await until_connected(one, 60)
