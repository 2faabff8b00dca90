"""A connection that breaks again and again is no connection, however often it comes back."""

import asyncio
import contextlib
import uuid

from harness.broker import api
from harness.broker_sessions import eventually, meanwhile
from harness.tcp_proxy import TcpProxy
from structlog.testing import capture_logs
from yarl import URL

from services.broker import session
from services.broker.calls import within
from services.broker.connection import connected
from services.errors import BrokerUnavailable

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
