"""A publishing connection that breaks while an alarm blocks it comes back once the alarm is over."""

import asyncio
import contextlib
import os
from pathlib import Path

from harness.tcp_proxy import TcpProxy
from yarl import URL

from services.broker import topology
from services.broker.connection import connected
from services.broker.publisher import Publisher
from services.errors import BrokerUnavailable
from services.local.rabbitmq import MEMORY_WATERMARK
from services.messages import Hint

DEADLINE_S = 60


@contextlib.asynccontextmanager
async def memory_alarm(broker):
    async def watermark(*value: str) -> None:
        node = broker.processes(broker.data)[1]
        process = await asyncio.create_subprocess_exec(
            Path(node.argv[0]).with_name("rabbitmqctl"), "set_vm_memory_high_watermark", *value, cwd=broker.data,
            env={**os.environ, **node.environment}, stdout=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        assert await process.wait() == 0

    await watermark("0.00001")
    try:
        yield
    finally:
        await watermark("absolute", MEMORY_WATERMARK)


async def is_published(publisher):
    try:
        await publisher.publish_hints(topology.REQUESTS, "", [Hint("a", 0)])
    except BrokerUnavailable:
        return False
    return True


async def test_a_connection_that_breaks_while_it_is_blocked_comes_back_when_the_alarm_is_over(vhost):
    with TcpProxy(vhost.broker.ports.amqp) as proxy:
        url = str(URL(vhost.amqp_url("gateway")).with_port(proxy.port))
        async with connected(url, "gateway test", 30) as connection:
            publisher = await Publisher.open(connection, 100)
            async with memory_alarm(vhost.broker):
                assert not await is_published(publisher)
                proxy.cut()
                async with asyncio.timeout(DEADLINE_S):
                    while proxy.accepted < 2:
                        await asyncio.sleep(0.05)
            async with asyncio.timeout(DEADLINE_S):
                while not await is_published(publisher):
                    await asyncio.sleep(0.2)
