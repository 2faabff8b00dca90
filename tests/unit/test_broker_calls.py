"""Deadlines of broker calls, whatever the library does with a call that is cancelled."""

import asyncio
import contextlib

import pytest

from services.broker.calls import within
from services.errors import BrokerUnavailable, Unroutable

PATIENCE_S = 10


async def until(event):
    await event.wait()


async def test_a_call_that_does_not_end_when_it_is_cancelled_holds_up_nobody():
    may_end, was_cancelled = asyncio.Event(), asyncio.Event()

    async def stubborn():
        with contextlib.suppress(asyncio.CancelledError):
            await may_end.wait()
        was_cancelled.set()
        await may_end.wait()

    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(BrokerUnavailable, match=r"^the probe: no answer in time$"):
            await within(0.01, "the probe", stubborn())
        await was_cancelled.wait()
        may_end.set()


async def test_an_answer_that_came_while_the_process_was_frozen_is_read():
    async def answer():
        for _ in range(20):  # as many steps as the library may need for bytes that lie on the socket
            await asyncio.sleep(0)
        return "answer"

    assert await within(0.0, "asking", answer()) == "answer"


async def test_who_waits_in_vain_is_told_why_before_the_deadline():
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(BrokerUnavailable, match=r"^publishing: there is no room$"):
            await within(600, "publishing", until(asyncio.Event()), lambda: "there is no room")


async def test_a_future_that_the_library_cancelled_is_a_broken_connection():
    async def broken():
        raise asyncio.CancelledError

    with pytest.raises(BrokerUnavailable, match=r"^asking: the connection broke$"):
        await within(PATIENCE_S, "asking", broken())


@pytest.mark.parametrize("error", [Exception(), ValueError("Channel 1 already used"), KeyError("tag")])
async def test_whatever_the_library_raises_is_a_broker_that_cannot_be_had(error):
    async def breaking():
        raise error

    with pytest.raises(BrokerUnavailable, match=r"^settling: "):
        await within(PATIENCE_S, "settling", breaking())


async def test_what_is_hopeless_from_the_start_is_not_begun():
    begun = []

    async def call():
        begun.append(True)

    with pytest.raises(BrokerUnavailable, match=r"^publishing: it takes no messages$"):
        await within(PATIENCE_S, "publishing", call(), lambda: "it takes no messages")
    assert begun == []


async def test_our_own_cancellation_stays_one():
    task = asyncio.create_task(within(600, "asking", until(asyncio.Event())))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_error_of_ours_passes_as_it_is():
    async def returned():
        raise Unroutable("no queue")

    with pytest.raises(Unroutable, match=r"^no queue$"):
        await within(PATIENCE_S, "publishing", returned())
