"""Runs one substation: claims what is sent to it, fills its bays, ticks its sessions, writes their ends."""

import asyncio
from collections.abc import Sequence

from services.clock import monotonic_s
from services.errors import LedgerUnavailable
from services.ledger.charging import Charging
from services.ledger.records import Ending
from services.logs import get_logger
from services.messages import Hint
from substations.substation import Substation
from substations.tick_log import TickLog

log = get_logger(__name__)


class Worker:
    """The adapter between one pure `Substation` and the ledger."""

    def __init__(self, substation: Substation, ledger: Charging, tick_log: TickLog | None = None) -> None:
        self.substation = substation
        self._tick_log = tick_log
        self._ledger = ledger
        self._one_at_a_time = asyncio.Lock()
        self._is_leaving = False
        self._being_written: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def take_in(self, hints: Sequence[Hint]) -> None:
        """Start what a connector is free for, take the next into bays, decline the rest.

        Who stands in a bay is asked for together with the newcomers: the ledger chooses, in the waiting room's order,
        and knows by then who was cancelled. Raises `LedgerUnavailable`: asking again is safe, because the ledger
        counts the connectors itself and tells what an unanswered call has claimed.
        """
        substation = self.substation
        async with self._one_at_a_time:
            asked = [
                hint
                for hint in dict.fromkeys([*substation.in_bays, *hints])
                if hint.request_id not in substation.sessions
            ]
            if not asked:
                return
            # Departures are told as of the answer; counted from the question nobody charges past its own.
            asked_at_s = monotonic_s()
            claims = await self._ledger.claim(asked, substation.id, substation.epoch, substation.free_connectors)
            for one in claims.claimed:
                substation.start(one, asked_at_s)
            if claims.claimed:
                log.info("requests_claimed", substation=substation.id, requests=len(claims.claimed))
            beyond = substation.park(claims.held)
            if beyond:
                declined = await self._ledger.decline(beyond, substation.id)
                log.info("requests_declined", substation=substation.id, requests=len(declined))

    async def serve_bays(self) -> None:
        """Let those in bays take the connectors that are free by now; an absent ledger leaves it to the heartbeat."""
        if self.substation.in_bays and self.substation.free_connectors > 0 and not self._is_leaving:
            try:
                await self.take_in([])
            except LedgerUnavailable as error:
                log.warning("bays_left_waiting", substation=self.substation.id, cause=str(error))

    async def tick_for_ever(self, tick_s: float) -> None:
        """Step the simulation until cancelled."""
        loop = asyncio.get_running_loop()
        next_at = loop.time()
        while True:
            endings = [one for one in self.substation.tick(monotonic_s()) if one.request_id not in self._being_written]
            if self._tick_log is not None:
                self._tick_log.write(self.substation)
            if endings:
                self._being_written.update(one.request_id for one in endings)
                task = asyncio.create_task(self._end(endings))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            next_at = max(next_at + tick_s, loop.time() - tick_s)
            await asyncio.sleep(max(0.0, next_at - loop.time()))

    async def settle(self) -> None:
        """Wait until the ends that are being written are; nobody is claimed any more for a process that leaves."""
        self._is_leaving = True
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _end(self, endings: Sequence[Ending]) -> None:
        try:
            numbers = await self._ledger.end(endings)
        except LedgerUnavailable as error:
            # The sessions keep their connectors, and the next tick tries again.
            log.warning("ends_left_unwritten", substation=self.substation.id, requests=len(endings), cause=str(error))
            return
        finally:
            self._being_written.difference_update(one.request_id for one in endings)
        for one in endings:
            is_ours = one.request_id in numbers
            self.substation.finish(one.request_id, monotonic_s(), counts=is_ours)
            if not is_ours:
                log.warning("end_not_ours", substation=self.substation.id, request_id=one.request_id)
        await self.serve_bays()
