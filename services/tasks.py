"""Coroutines that run side by side and end as one."""

import asyncio
from collections.abc import Coroutine
from typing import Any


async def run_together(*work: Coroutine[Any, Any, None]) -> None:
    """Run coroutines until all have ended, or one fails: then the others are cancelled, and have ended when it is raised.

    `asyncio.gather` would leave the others running, and a `TaskGroup` would hide the error's type in a group.
    """
    tasks = [asyncio.create_task(one) for one in work]
    try:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for one in ended:
            one.result()
    finally:
        for one in tasks:
            one.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
