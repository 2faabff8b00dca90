"""What a message is like when it is handed to the AMQP library."""

import asyncio

import pytest
from aio_pika import DeliveryMode
from aio_pika.exceptions import DeliveryError
from pamqp.commands import Basic

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
    """Leads to one exchange, whatever its name."""

    is_closed = False

    def __init__(self, exchange):
        self._exchange = exchange

    async def get_exchange(self, _name, **_options):
        return self._exchange

    async def close(self):
        self.is_closed = True


class Session:
    """Opens channels to one exchange."""

    def __init__(self):
        self.exchange = Exchange()
        self.is_blocked = False
        self.channels = 0

    async def channel(self, **_options):
        self.channels += 1
        return Channel(self.exchange)


@pytest.fixture
def session():
    return Session()


async def test_hints_travel_in_persistent_messages_that_must_reach_a_queue(session):
    hints = [Hint(f"r{number}", 1) for number in range(5)]

    await Publisher(session, 2).publish_hints(topology.ASSIGNMENTS, "north", hints)

    sent = session.exchange.sent
    assert [decode(message.body).hints for message, _, _ in sent] == [tuple(hints[:2]), tuple(hints[2:4]), (hints[4],)]
    assert {routing_key for _, routing_key, _ in sent} == {"north"}
    assert {(message.delivery_mode, mandatory) for message, _, mandatory in sent} == {(DeliveryMode.PERSISTENT, True)}


async def test_an_event_may_reach_nobody_and_is_not_kept(session):
    await Publisher(session, 1).publish(topology.EVENTS, "x", b"{}", message_type="x", mandatory=False)

    [(message, _, mandatory)] = session.exchange.sent
    assert (message.delivery_mode, mandatory) == (DeliveryMode.NOT_PERSISTENT, False)


async def test_each_attempt_has_an_id_of_its_own_because_returned_messages_are_told_apart_by_it(session):
    publisher = Publisher(session, 1)
    for _ in range(2):
        await publisher.publish_hints(topology.REQUESTS, "", [Hint("a", 0)])

    assert len({message.message_id for message, _, _ in session.exchange.sent}) == 2


async def test_a_confirm_that_does_not_come_in_time_leaves_the_outcome_unknown(session, monkeypatch):
    monkeypatch.setattr("services.broker.publisher.PUBLISH_DEADLINE_S", 0.01)
    session.exchange.may_confirm.clear()

    with pytest.raises(BrokerUnavailable, match="no answer in time"):
        async with asyncio.timeout(PATIENCE_S):
            await Publisher(session, 1).publish_hints(topology.REQUESTS, "", [Hint("a", 0)])


async def test_of_several_envelopes_one_that_fails_is_told_after_all_were_tried(session):
    session.exchange.fault = ConnectionError("broken")

    with pytest.raises(BrokerUnavailable):
        await Publisher(session, 1).publish_hints(topology.REQUESTS, "", [Hint("a", 0), Hint("b", 0)])

    assert len(session.exchange.sent) == 2


async def test_who_waits_for_a_confirm_hears_at_once_that_the_broker_takes_no_messages(session):
    session.exchange.may_confirm.clear()
    session.is_blocked = True

    with pytest.raises(BrokerUnavailable, match="takes no messages now"):
        await Publisher(session, 1).publish_hints(topology.REQUESTS, "", [Hint("a", 0)])


async def test_a_full_queue_is_an_answer_and_leaves_the_channel_to_others(session, monkeypatch):
    monkeypatch.setattr("services.broker.publisher.PUBLISH_DEADLINE_S", 0.0)  # no channel is too young to be given up
    publisher = Publisher(session, 1)
    session.exchange.fault = DeliveryError(None, Basic.Nack(1))
    for _ in range(2):
        with pytest.raises(BrokerUnavailable) as told:
            await publisher.publish_hints(topology.ASSIGNMENTS, "north", [Hint("a", 0)])
        assert str(told.value) == (
            "publishing to charge.assignments: the broker refuses the message, because a queue is full or fails"
        )

    assert session.channels == 1


async def test_each_exchange_has_a_channel_of_its_own_because_one_that_is_missing_closes_its_channel(session):
    publisher = Publisher(session, 1)
    for exchange in (topology.ASSIGNMENTS, topology.EVENTS, topology.ASSIGNMENTS):
        await publisher.publish_hints(exchange, "", [Hint("a", 0)])

    assert session.channels == 2


async def test_a_channel_on_which_nothing_is_confirmed_any_more_is_replaced(session, monkeypatch):
    monkeypatch.setattr("services.broker.publisher.PUBLISH_DEADLINE_S", 0.01)
    publisher = Publisher(session, 1)
    session.exchange.may_confirm.clear()
    with pytest.raises(BrokerUnavailable):
        await publisher.publish_hints(topology.REQUESTS, "", [Hint("a", 0)])
    session.exchange.may_confirm.set()
    await publisher.publish_hints(topology.REQUESTS, "", [Hint("a", 0)])

    assert session.channels == 2
