"""Takes a substation for a process that was given no id, by what `choice` makes of the leases in the ledger."""

import asyncio
from collections.abc import Callable

from services.clock import monotonic_s
from services.errors import LedgerUnavailable
from services.ledger.records import Registration
from services.ledger.tenancy import Tenancy
from services.logs import get_logger
from substations.choice import Choice, Chooser

log = get_logger(__name__)


class Search:
    """One process's search for a substation; `registration` tells how one of that id would be registered."""

    def __init__(
        self, ledger: Tenancy, chooser: Chooser, registration: Callable[[str], Registration], holder: str
    ) -> None:
        self._ledger = ledger
        self._chooser = chooser
        self._registration = registration
        self._holder = holder
        self._awaited: str | None = None

    async def until_taken(self, look_every_s: float) -> str:
        """Look until there is one; its id. A `Host` of the same holder finds the lease to be its own, and renews it."""
        while True:
            try:
                taken = await self.look()
            except LedgerUnavailable as error:
                log.warning("search_paused", cause=str(error))
                taken = None
            if taken is not None:
                return taken
            await asyncio.sleep(look_every_s)

    async def look(self) -> str | None:
        """Take what is free now; its id, None where another look is needed. Raises `LedgerUnavailable`."""
        while True:
            leases = {one.substation: one for one in await self._ledger.leases()}
            choice = self._chooser.choose(list(leases.values()), monotonic_s())
            for one in leases.values():
                if one.holder == self._holder and not one.is_released:
                    return await self._taken(one.substation, "the answer to its taking was lost")
            if not choice.standing.is_free:
                self._tell(choice)
                if choice.heir_of:
                    await self._ledger.wait_for(choice.heir_of, self._holder)
                return None
            registration = self._registration(choice.substation)
            if await self._ledger.take([registration], leases, self._holder):
                return await self._taken(choice.substation, choice.standing)
            # Somebody was faster; the next look shows it, and what else there is.

    async def _taken(self, substation: str, reason: str) -> str:
        """Tell of it, and be heir of no other any more; where that fails, the others are only given up later."""
        log.info("substation_chosen", substation=substation, reason=reason)
        try:
            await self._ledger.stop_waiting(self._holder)
        except LedgerUnavailable as error:
            log.warning("heir_left_noted", cause=str(error))
        return substation

    def _tell(self, choice: Choice) -> None:
        if choice.substation != self._awaited:
            self._awaited = choice.substation
            log.info("substation_awaited", substation=choice.substation, reason=choice.standing)
