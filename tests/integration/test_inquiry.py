"""Questions to a real RabbitMQ: what is absent, what is there, and what it refuses to tell are three answers."""

import aio_pika

from services.broker import topology
from services.broker.connection import connected
from services.broker.inquiry import UNTOLD, inquiring


async def nobody(_message):
    raise AssertionError("nothing is published here")


async def test_a_queue_that_the_broker_does_not_tell_of_is_neither_absent_nor_without_consumers(vhost):
    async with (
        await aio_pika.connect(vhost.amqp_url("operator")) as owner,
        connected(vhost.amqp_url("gateway"), "test", 30) as session,
        inquiring(session) as inquiry,
    ):
        channel = await owner.channel()
        own = await channel.declare_queue("own", exclusive=True)
        await own.consume(nobody)
        await (await channel.get_queue(topology.GRAVEYARD)).consume(nobody)

        asked = ["own", "absent", topology.INTAKE, topology.GRAVEYARD]
        assert [await inquiry.consumers(one) for one in asked] == [UNTOLD, None, 0, 1]


async def test_an_exchange_is_absent_only_where_the_broker_says_so(vhost):
    async with connected(vhost.amqp_url("gateway"), "test", 30) as session, inquiring(session) as inquiry:
        assert await inquiry.absence(topology.EVENTS) is None
        assert "no exchange 'absent'" in str(await inquiry.absence("absent"))
