"""Coroutines that run side by side and end as one."""

import asyncio
from collections.abc import Coroutine
from typing import Any


async def run_together(*work: Coroutine[Any, Any, None]) -> None:
    """Run coroutines until all have ended, or one fails: its error is raised once the others are cancelled and ended.

    `asyncio.gather` alone would leave the others running, and a `TaskGroup` would hide the error's type in a group.
    """
    tasks = [asyncio.create_task(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    except (Exception, asyncio.CancelledError):
        for one in tasks:
            one.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
