"""A queue's consumer that the library believes alive, and the broker does not know."""

import asyncio
from types import SimpleNamespace

import pytest
from aio_pika.exceptions import ChannelNotFoundEntity
from structlog.testing import capture_logs

from services.broker.subscription import Subscription

PATIENCE_S = 10


class Broker:
    """Counts how often somebody began to consume, and tells as many consumers as it is told to."""

    def __init__(self):
        self.begun = 0
        self.known = 1

    async def make(self, _channel, _name):
        return SimpleNamespace(consume=self.consume, declaration_result=SimpleNamespace(consumer_count=self.known))

    async def consume(self, _take, **_options):
        self.begun += 1
        return "tag"


class Channel:
    def __init__(self, objection=None):
        self.objection = objection
        self.close_callbacks = set()
        self.on_consumer_cancel_callbacks = set()

    async def get_underlay_channel(self):
        return self

    async def set_qos(self, **_options):
        pass

    async def declare_queue(self, _name, *, passive):
        assert passive
        if self.objection is not None:
            raise ChannelNotFoundEntity(self.objection)

    async def close(self):
        pass


class Link:
    def __init__(self):
        self.lost = asyncio.get_running_loop().create_future()
        self.channels = []

    async def channel(self, **_options):
        self.channels.append(Channel())
        return self.channels[-1]


@pytest.fixture
async def world(monkeypatch):
    """A subscription that runs, and has begun to consume."""
    monkeypatch.setattr("services.broker.subscription.AGAIN_PAUSE_S", 0.0)
    monkeypatch.setattr("services.broker.subscription.AGAIN_PAUSE_MAX_S", 0.01)
    session = SimpleNamespace(link=Link(), connected=asyncio.Event(), look_again=asyncio.Event(), subscriptions=[])
    session.connected.set()
    broker = Broker()
    subscription = Subscription(session, broker.make, print, new_name=lambda: "charge.intake", prefetch=1)
    running = asyncio.create_task(subscription.run())
    await until(lambda: broker.begun == 1)
    yield SimpleNamespace(broker=broker, link=session.link, subscription=subscription)
    running.cancel()
    await asyncio.wait({running})


async def until(condition):
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)


async def test_two_looks_in_a_row_that_show_no_consumer_begin_anew(world):
    world.broker.known = 0
    for _ in range(2):
        await world.subscription.look(Channel())

    await until(lambda: world.broker.begun == 2)


async def test_one_look_that_shows_no_consumer_may_have_come_between_two_steps(world):
    for known in (0, 1, 0, 1):
        world.broker.known = known
        await world.subscription.look(Channel())

    assert world.subscription.is_consuming
    assert world.broker.begun == 1


async def test_a_consumer_that_the_broker_cancels_begins_anew(world):
    [channel] = world.link.channels
    for told in channel.on_consumer_cancel_callbacks:
        await told(None)

    await until(lambda: world.broker.begun == 2)


async def test_a_channel_that_the_broker_closes_is_replaced(world):
    [channel] = world.link.channels
    for told in channel.close_callbacks:
        await told(channel, RuntimeError("closed"))

    await until(lambda: world.broker.begun == 2)
    assert len(world.link.channels) == 2


DOWN = "NOT_FOUND - queue 'charge.intake' in vhost 'v' process is stopped by supervisor"


@pytest.mark.parametrize(
    ("objection", "cause"),
    [("NOT_FOUND - no queue 'charge.intake' in vhost 'v'", "somebody deleted the queue"), (DOWN, DOWN)],
    ids=["deleted", "away"],
)
async def test_a_queue_that_a_look_does_not_find_is_consumed_anew_and_the_log_tells_why(world, objection, cause):
    with capture_logs() as lines:
        with pytest.raises(ChannelNotFoundEntity):
            await world.subscription.look(Channel(objection))
        await until(lambda: world.broker.begun == 2)

    assert [line["cause"] for line in lines if line["event"] == "consumption_lost"] == [cause]
