"""Messages of somebody else whose properties the library cannot read: they break no connection, and are settled."""

import asyncio
import struct

import pytest
from harness.broker_processes import balancer, gateway, until_received
from harness.broker_sessions import eventually
from structlog.testing import capture_logs

from services.broker import topology
from services.broker.events import LOAD_TABLE, publish_event
from services.messages import Hint, encode

TIMESTAMP, TYPE, HEADERS = 0x0040, 0x0020, 0x2000
BASIC = 60


def short(text):
    return bytes([len(text)]) + text


def table(field):
    return struct.pack(">I", len(field)) + field


def nested(depth):
    """A header whose array holds an array, and so on."""
    inner = b""
    for _ in range(depth):
        inner = b"A" + table(inner)
    return table(short(b"k") + inner)


UNREADABLE = {
    "a timestamp in microseconds": (TIMESTAMP, struct.pack(">Q", 1_700_000_000_000_000)),
    "a timestamp in the year 292,277": (TIMESTAMP, struct.pack(">Q", 2**63 - 1)),
    "a type in Latin-1": (TYPE, short(b"caf\xe9")),
    "a header's key in Latin-1": (HEADERS, table(short(b"caf\xe9") + b"I" + bytes(4))),
    "arrays in arrays": (HEADERS, nested(5_000)),
}


async def send_raw(vhost, exchange, routing_key, flags, properties, body):
    """Publish in AMQP's own bytes, because the library writes only what it can read."""
    login = f"\0operator\0{vhost.broker.passwords['operator']}".encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", vhost.broker.ports.amqp)

    def send(kind, channel, payload):
        writer.write(struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce")

    async def receive():
        _, _, size = struct.unpack(">BHI", await reader.readexactly(7))
        return struct.unpack(">HH", (await reader.readexactly(size + 1))[:4])

    writer.write(b"AMQP\0\0\x09\x01")
    assert await receive() == (10, 10)
    send(1, 0, struct.pack(">HH", 10, 11) + table(b"") + short(b"PLAIN") + table(login) + short(b"en_US"))
    assert await receive() == (10, 30)
    send(1, 0, struct.pack(">HHHIH", 10, 31, 10, 131_072, 0))
    send(1, 0, struct.pack(">HH", 10, 40) + short(vhost.name.encode()) + b"\0\0")
    assert await receive() == (10, 41)
    send(1, 1, struct.pack(">HH", 20, 10) + b"\0")
    assert await receive() == (20, 11)
    send(1, 1, struct.pack(">HHH", BASIC, 40, 0) + short(exchange.encode()) + short(routing_key) + b"\0")
    send(2, 1, struct.pack(">HHQH", BASIC, 0, len(body), flags) + properties)
    send(3, 1, body)
    send(1, 1, struct.pack(">HHH", 20, 40, 0) + short(b"") + bytes(4))
    assert await receive() == (20, 41)  # the broker has it
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("what", UNREADABLE)
async def test_a_message_with_properties_that_the_library_cannot_read_is_settled(vhost, what):
    async with balancer(vhost) as chooser:
        link = chooser.session.link
        with capture_logs() as lines:
            await send_raw(vhost, topology.REQUESTS, b"", *UNREADABLE[what], b"no envelope of ours")
            await send_raw(vhost, topology.REQUESTS, b"", *UNREADABLE[what], encode([Hint("readable", 0)]))
            await until_received(chooser, "readable")
            await eventually(lambda: chooser.settled(topology.INTAKE, "quarantined"), "the other among the dead")
        assert chooser.session.link is link
        assert chooser.settled(topology.INTAKE) == 1
        assert [line["event"] for line in lines].count("frame_unreadable") == 2


@pytest.mark.parametrize("what", [*UNREADABLE, "a routing key in Latin-1"])
async def test_an_event_that_the_library_cannot_read_makes_no_gateway_deaf(vhost, what):
    flags, properties = UNREADABLE.get(what, (0, b""))
    async with gateway(vhost) as door, balancer(vhost) as chooser:
        link = door.session.link
        await send_raw(vhost, topology.EVENTS, b"load_table.caf\xe9", flags, properties, b"no event of ours")
        await publish_event(chooser.publisher, LOAD_TABLE, "balancer-1", {})
        await eventually(lambda: door.heard, "the next event")
        assert door.session.link is link
