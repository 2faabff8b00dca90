"""What services do with the broker, run by a test for the length of a block."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine

DEADLINE_S = 60


@contextlib.asynccontextmanager
async def meanwhile(work: Coroutine) -> AsyncIterator[asyncio.Task]:
    """Run `work` beside the block, and end it with the block; what it raised is raised again."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})
    if not task.cancelled():
        task.result()


async def eventually(condition, what: str):
    """The first value of `condition()` that is true."""
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not (value := condition()):
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"waited in vain for {what}") from None
    return value
