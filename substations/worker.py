"""Runs one substation: claims what is sent to it, fills its bays, ticks its sessions, writes their ends."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

from services.clock import monotonic_s
from services.crash_points import crash_point
from services.errors import LedgerUnavailable
from services.ledger.charging import Charging
from services.ledger.records import Ending
from services.ledger.states import Reason
from services.logs import get_logger
from services.messages import Hint
from substations.substation import Substation
from substations.tick_log import TickLog
from substations.witness import Witness

log = get_logger(__name__)


class Worker:
    """The adapter between one pure `Substation` and the ledger."""

    def __init__(
        self,
        substation: Substation,
        ledger: Charging,
        *,
        tick_log: TickLog | None = None,
        witness: Witness | None = None,
    ) -> None:
        self.substation = substation
        self._tick_log = tick_log
        self._witness = witness
        self._ledger = ledger
        self._one_at_a_time = asyncio.Lock()
        self._is_leaving = False
        self._being_written: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._looking_after: asyncio.Task[None] | None = None

    async def take_in(self, hints: Sequence[Hint]) -> None:
        """Start what a connector is free for, take the next into bays, decline the rest.

        Who stands in a bay is asked for together with the newcomers: the ledger chooses, in the waiting room's order,
        and knows by then who was cancelled. Without a lease nothing is taken in: the rows stay assigned, and a beat
        finds them. Raises `LedgerUnavailable`: asking again is safe, because the ledger
        counts the connectors itself and tells what an unanswered call has claimed.
        """
        substation = self.substation
        async with self._one_at_a_time:
            asked = [
                hint
                for hint in dict.fromkeys([*substation.in_bays, *hints])
                if hint.request_id not in substation.sessions
            ]
            if not asked or self._is_leaving or substation.is_fenced(monotonic_s()):
                return
            # Departures are told as of the answer; counted from the question nobody charges past its own.
            asked_at_s, epoch = monotonic_s(), substation.epoch
            claims = await self._ledger.claim(
                asked,
                substation.id,
                epoch,
                substation.free_connectors,
                usable=substation.usable_connectors,
                in_bays=substation.in_bays,
                grant_s=substation.grant_s,
            )
            crash_point("substation.claimed")
            if substation.epoch != epoch:
                return  # the lease was lost meanwhile, and with it what this tenure claimed
            for one in claims.claimed:
                substation.start(one, asked_at_s)
            if claims.claimed:
                log.info("requests_claimed", substation=substation.id, requests=len(claims.claimed))
                crash_point("substation.started")
            beyond = substation.park(claims.held)
            if beyond:
                reason = Reason.DECLINED if substation.is_operative else Reason.DRAINED
                declined = await self._ledger.decline(beyond, substation.id, reason)
                log.info("requests_declined", substation=substation.id, requests=len(declined), reason=reason)

    async def serve_bays(self) -> None:
        """Let those in bays take the connectors that are free by now; where none is usable, they are sent back.

        An absent ledger leaves it to the heartbeat.
        """
        substation = self.substation
        if not substation.in_bays or self._is_leaving:
            return
        if substation.free_connectors > 0 or substation.usable_connectors == 0:
            try:
                await self.take_in([])
            except LedgerUnavailable as error:
                log.warning("bays_left_waiting", substation=self.substation.id, cause=str(error))

    def look_after(self, overdue: Sequence[Hint]) -> None:
        """Serve bays and the assignments that no message brought, beside the beats, which must not wait for it."""
        forgotten = [hint for hint in overdue if hint not in self.substation.in_bays]
        if self._is_leaving or (self._looking_after is not None and not self._looking_after.done()):
            return
        if forgotten:
            log.info("assignments_adopted", substation=self.substation.id, requests=len(forgotten))
        self._looking_after = self._start(self._adopt(forgotten))

    async def _adopt(self, forgotten: Sequence[Hint]) -> None:
        if not forgotten:
            await self.serve_bays()
            return
        try:
            await self.take_in(forgotten)
        except LedgerUnavailable as error:
            log.warning("assignments_left_waiting", substation=self.substation.id, cause=str(error))

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def tick_for_ever(self, tick_s: float) -> None:
        """Step the simulation until cancelled."""
        loop = asyncio.get_running_loop()
        next_at = loop.time()
        while True:
            self.tick(monotonic_s())
            next_at = max(next_at + tick_s, loop.time() - tick_s)
            await asyncio.sleep(max(0.0, next_at - loop.time()))

    def tick(self, now_s: float) -> None:
        """Step the simulation once; what has ended is written to the ledger beside it, and `settle` waits for that."""
        endings = [one for one in self.substation.tick(now_s) if one.request_id not in self._being_written]
        if self._tick_log is not None and self.substation.is_held:
            self._tick_log.write(self.substation)
        if self._witness is not None:
            self._witness.write(self.substation)
        if endings:
            self._being_written.update(one.request_id for one in endings)
            self._start(self._end(endings))

    def leave(self) -> None:
        """Take in nobody more: the process is leaving."""
        self._is_leaving = True

    async def settle(self) -> None:
        """Wait until what is being written is."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _end(self, endings: Sequence[Ending]) -> None:
        failures = [one for one in await asyncio.gather(*map(self._end_one, endings)) if one is not None]
        if failures:
            cause = str(failures[0])
            log.warning("ends_left_unwritten", substation=self.substation.id, requests=len(failures), cause=cause)
        if len(failures) < len(endings):
            await self.serve_bays()

    async def _end_one(self, ending: Ending) -> LedgerUnavailable | None:
        """Write one end; why it is not known to be written, or None.

        Each end is a call of its own. A session whose end failed or was refused charges still in the ledger: it keeps
        its connector, and the next tick tries again.
        """
        try:
            numbers = await self._ledger.end([ending])
        except LedgerUnavailable as error:
            return error
        finally:
            self._being_written.discard(ending.request_id)
        crash_point("substation.ended")
        is_ours = ending.request_id in numbers
        self.substation.finish(ending, monotonic_s(), counts=is_ours)
        if not is_ours:
            log.warning("end_not_ours", substation=self.substation.id, request_id=ending.request_id)
        return None
