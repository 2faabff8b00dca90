"""Coroutines that end as one."""

import asyncio

import pytest

from services.errors import Misconfigured
from services.tasks import run_together

PATIENCE_S = 20


async def wait_and_note(ended):
    """Wait until cancelled, and take one more turn of the loop to end."""
    try:
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0)
        ended.append("cancelled")


async def fail():
    await asyncio.sleep(0)
    raise Misconfigured("refused: go away")


async def test_the_first_failure_is_raised_as_it_is_once_all_others_have_ended():
    ended = []

    with pytest.raises(Misconfigured, match=r"^refused: go away$"):
        async with asyncio.timeout(PATIENCE_S):
            await run_together(wait_and_note(ended), fail(), wait_and_note(ended))

    assert ended == ["cancelled", "cancelled"]
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_who_is_cancelled_ends_all_before_it_ends_itself():
    ended = []
    running = asyncio.create_task(run_together(wait_and_note(ended), wait_and_note(ended)))
    await asyncio.sleep(0)
    await asyncio.sleep(0)

    running.cancel()
    await asyncio.wait({running}, timeout=PATIENCE_S)

    assert running.cancelled()
    assert ended == ["cancelled", "cancelled"]


async def test_where_none_fails_all_come_to_their_end():
    ended = []

    async def note(number):
        for _ in range(number):
            await asyncio.sleep(0)
        ended.append(number)

    await run_together(note(3), note(1))

    assert ended == [1, 3]
