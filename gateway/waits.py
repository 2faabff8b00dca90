"""Expected waits for those who ask: one projection serves everybody for a second."""

import asyncio
from collections.abc import Mapping
from dataclasses import replace

from gateway.forecast import expected_waits
from gateway.load_view import LoadView
from services.clock import monotonic_s
from services.errors import LedgerUnavailable
from services.ledger.intake import Intake
from services.ledger.records import Outlook
from services.logs import get_logger

log = get_logger(__name__)

FRESH_S = 1.0
NEWCOMER_FRESH_S = 0.25
"""A request that came after the projection is worth a new one, but not each a new one."""
WAITING_MOST = 2_000
"""Who stands further behind is told nothing: so far ahead nobody knows."""
ENDS_MOST = 200
ENDS_WITHIN_MS = 600_000


class WaitForecast:
    """The newest projection."""

    def __init__(self, ledger: Intake, view: LoadView) -> None:
        self._ledger = ledger
        self._view = view
        self._waits: Mapping[str, float] = {}
        self._made_at_s = -FRESH_S
        self._making = asyncio.Lock()

    async def expected_s(self, request_id: str) -> float | None:
        """Wall seconds until a waiting request charges; None while unknown."""
        async with self._making:
            age_s = monotonic_s() - self._made_at_s
            if age_s > (FRESH_S if request_id in self._waits else NEWCOMER_FRESH_S):
                try:
                    outlook = await self._ledger.outlook(
                        waiting_most=WAITING_MOST, ends_most=ENDS_MOST, ends_within_ms=ENDS_WITHIN_MS
                    )
                except LedgerUnavailable as error:
                    log.warning("waits_left_unknown", cause=str(error))
                    self._waits, self._made_at_s = {}, monotonic_s()  # those who ask next need not wait for it too
                    return None  # what else is known of the request is worth an answer
                self._waits, self._made_at_s, age_s = expected_waits(self._in_service(outlook)), monotonic_s(), 0.0
        wait_s = self._waits.get(request_id)
        return None if wait_s is None else max(0.0, wait_s - age_s)

    def _in_service(self, outlook: Outlook) -> Outlook:
        """Without the connectors of substations that are away: the ledger's registry knows all that ever were."""
        ids = self._view.in_service()
        if ids is None:
            return outlook
        return replace(outlook, places=tuple(place for place in outlook.places if place.substation in ids))
