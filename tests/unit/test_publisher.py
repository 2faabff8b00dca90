"""What a message is like when it is handed to the AMQP library."""

import asyncio

import pytest
from aio_pika import DeliveryMode

from services.broker import topology
from services.broker.publisher import Publisher
from services.errors import BrokerUnavailable
from services.messages import Hint, decode

PATIENCE_S = 10


class Exchange:
    """Confirms, or raises what it is told to."""

    def __init__(self):
        self.sent = []
        self.fault = None
        self.may_confirm = asyncio.Event()
        self.may_confirm.set()

    async def publish(self, message, routing_key, *, mandatory):
        self.sent.append((message, routing_key, mandatory))
        await self.may_confirm.wait()
        if self.fault:
            raise self.fault


class Channel:
    """Has one exchange, whatever its name."""

    def __init__(self):
        self.exchange = Exchange()

    async def get_exchange(self, _name, **_options):
        return self.exchange


@pytest.fixture
def channel():
    return Channel()


async def test_hints_travel_in_persistent_messages_that_must_reach_a_queue(channel):
    hints = [Hint(f"r{number}", 1) for number in range(5)]

    await Publisher(channel, 2).publish_hints(topology.ASSIGNMENTS, "north", hints)

    sent = channel.exchange.sent
    assert [decode(message.body).hints for message, _, _ in sent] == [tuple(hints[:2]), tuple(hints[2:4]), (hints[4],)]
    assert {routing_key for _, routing_key, _ in sent} == {"north"}
    assert {(message.delivery_mode, mandatory) for message, _, mandatory in sent} == {(DeliveryMode.PERSISTENT, True)}


async def test_an_event_may_reach_nobody_and_is_not_kept(channel):
    await Publisher(channel, 1).publish(topology.EVENTS, "x", b"{}", message_type="x", mandatory=False)

    [(message, _, mandatory)] = channel.exchange.sent
    assert (message.delivery_mode, mandatory) == (DeliveryMode.NOT_PERSISTENT, False)


async def test_each_attempt_has_an_id_of_its_own_because_returned_messages_are_told_apart_by_it(channel):
    publisher = Publisher(channel, 1)
    for _ in range(2):
        await publisher.publish_hints(topology.REQUESTS, "", [Hint("a", 0)])

    assert len({message.message_id for message, _, _ in channel.exchange.sent}) == 2


async def test_a_confirm_that_does_not_come_in_time_leaves_the_outcome_unknown(channel, monkeypatch):
    monkeypatch.setattr("services.broker.publisher.PUBLISH_DEADLINE_S", 0.01)
    channel.exchange.may_confirm.clear()

    with pytest.raises(BrokerUnavailable, match="no answer in time"):
        async with asyncio.timeout(PATIENCE_S):
            await Publisher(channel, 1).publish_hints(topology.REQUESTS, "", [Hint("a", 0)])


async def test_of_several_envelopes_one_that_fails_is_told_after_all_were_tried(channel):
    channel.exchange.fault = ConnectionError("broken")

    with pytest.raises(BrokerUnavailable):
        await Publisher(channel, 1).publish_hints(topology.REQUESTS, "", [Hint("a", 0), Hint("b", 0)])

    assert len(channel.exchange.sent) == 2
