"""Runs one substation: claims what is sent to it, ticks its sessions, writes their ends."""

import asyncio
from collections.abc import Sequence

from services.clock import monotonic_s
from services.errors import LedgerUnavailable
from services.ledger.charging import Charging
from services.ledger.records import Ending
from services.logs import get_logger
from services.messages import Hint
from substations.substation import Substation

log = get_logger(__name__)


class Worker:
    """The adapter between one pure `Substation` and the ledger."""

    def __init__(self, substation: Substation, ledger: Charging) -> None:
        self.substation = substation
        self._ledger = ledger
        self._ending: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def take_in(self, hints: Sequence[Hint]) -> None:
        """Claim what a connector is free for and start it, decline the rest; raises `LedgerUnavailable`."""
        substation = self.substation
        new = [hint for hint in hints if hint.request_id not in substation.sessions]
        free = max(0, substation.free_connectors)
        ours, rest = new[:free], new[free:]
        substation.claiming += len(ours)
        try:
            claimed = await self._ledger.claim(ours, substation.id, substation.epoch)
            for one in claimed:
                substation.start(one)
        finally:
            substation.claiming -= len(ours)
        if claimed:
            log.info("requests_claimed", substation=substation.id, requests=len(claimed))
        if rest:
            declined = await self._ledger.decline(rest, substation.id)
            log.info("requests_declined", substation=substation.id, requests=len(declined))

    async def tick_for_ever(self, tick_s: float) -> None:
        """Step the simulation until cancelled."""
        loop = asyncio.get_running_loop()
        next_at = loop.time()
        while True:
            endings = [one for one in self.substation.tick(monotonic_s()) if one.request_id not in self._ending]
            if endings:
                self._ending.update(one.request_id for one in endings)
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
                number = numbers.get(one.request_id)
                self.substation.finish(one.request_id, number, monotonic_s())
                if number is None:
                    log.warning("end_not_ours", substation=self.substation.id, request_id=one.request_id)
        finally:
            self._ending.difference_update(one.request_id for one in endings)
