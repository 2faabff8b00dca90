"""Channels whose restoration has a deadline, because the library's own has none."""

import asyncio

from aio_pika import RobustChannel

REOPEN_DEADLINE_S = 5.0


class DeadlineChannel(RobustChannel):
    """aio-pika's channel, which the connection restores after each loss."""

    async def reopen(self) -> None:
        """Open it anew; raises `TimeoutError`.

        When a connection breaks that an alarm had blocked, its channel tries once more on that very connection, waits
        for the alarm to end there, which it never does, and meanwhile holds the lock that the new connection needs.
        """
        async with asyncio.timeout(REOPEN_DEADLINE_S):
            await super().reopen()
