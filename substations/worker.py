"""Runs one substation: claims what is sent to it, ticks its sessions, writes their ends."""

import asyncio
from collections.abc import Sequence

from services.clock import monotonic_s
from services.errors import LedgerUnavailable
from services.ledger.charging import Charging
from services.ledger.records import Ending
from services.logs import get_logger
from services.messages import Hint
from substations.substation import Key, Substation
from substations.tick_log import TickLog

log = get_logger(__name__)


class Worker:
    """The adapter between one pure `Substation` and the ledger."""

    def __init__(self, substation: Substation, ledger: Charging, tick_log: TickLog | None = None) -> None:
        self.substation = substation
        self._tick_log = tick_log
        self._ledger = ledger
        self.unanswered: set[Key] = set()
        """Claims whose outcome is unknown: a later one, or a heartbeat sent after them, tells."""
        self._being_written: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def take_in(self, hints: Sequence[Hint]) -> None:
        """Claim what a connector is free for and start it, decline the rest; raises `LedgerUnavailable`."""
        substation = self.substation
        left = [hint for hint in hints if hint.request_id not in substation.sessions]
        while left:
            held = [hint for hint in left if hint in self.unanswered]
            others = [hint for hint in left if hint not in self.unanswered]
            ours = held + others[: max(0, substation.free_connectors)]
            if not ours:
                break
            await self._claim(ours)
            # Stale hints free their connectors again, for those behind them.
            left = [hint for hint in left if hint not in ours]
        if left:
            declined = await self._ledger.decline(left, substation.id)
            log.info("requests_declined", substation=substation.id, requests=len(declined))

    async def _claim(self, hints: Sequence[Hint]) -> None:
        substation = self.substation
        substation.claiming.update(hints)
        self.unanswered.difference_update(hints)
        try:
            claimed = await self._ledger.claim(hints, substation.id, substation.epoch)
        except BaseException:
            self.unanswered.update(hints)  # they may be charging by now: each keeps its connector
            raise
        for one in claimed:
            substation.start(one, monotonic_s())
        substation.claiming.difference_update(hints)
        if claimed:
            log.info("requests_claimed", substation=substation.id, requests=len(claimed))

    def forget_unanswered(self, known_before: set[Key]) -> None:
        """Give back the connectors of claims that a heartbeat sent after them did not show as charging."""
        settled = self.unanswered & known_before
        self.unanswered -= settled
        self.substation.claiming -= settled

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
        """Wait until the ends that are being written are."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _end(self, endings: Sequence[Ending]) -> None:
        try:
            numbers = await self._ledger.end(endings)
        except LedgerUnavailable as error:
            # The sessions keep their connectors, and the next tick tries again.
            log.warning("ends_left_unwritten", substation=self.substation.id, requests=len(endings), cause=str(error))
        else:
            for one in endings:
                is_ours = one.request_id in numbers
                self.substation.finish(one.request_id, monotonic_s(), counts=is_ours)
                if not is_ours:
                    log.warning("end_not_ours", substation=self.substation.id, request_id=one.request_id)
        finally:
            self._being_written.difference_update(one.request_id for one in endings)
