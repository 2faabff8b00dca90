"""A broker connection that comes back by itself: after a pause drawn anew each time, and telling why it is away."""

import random
from collections.abc import Callable
from typing import Any

from aio_pika import RobustConnection
from yarl import URL

from services.broker.channels import DeadlineChannel
from services.clock import monotonic_s
from services.logs import get_logger

log = get_logger(__name__)

SHORTEST_PAUSE_S = 0.25
FIRST_PAUSE_MAX_S = 1.0
LONGEST_PAUSE_S = 5.0
FAULTY_AFTER_S = 10.0
"""How long a connection may be away before its service is unready; a broker's restart takes about as long."""
TELL_EVERY_S = 30.0

Words = Callable[[BaseException | None], str]


def pause_s(away_s: float) -> float:
    """Wall seconds until the next attempt of one that has been away for `away_s`.

    Drawn anew each time from a range that grows with the outage, so that a herd of services, which all lost the broker
    at one moment, spreads out before it comes back.
    """
    longest = min(LONGEST_PAUSE_S, max(FIRST_PAUSE_MAX_S, away_s / 2))
    return random.uniform(SHORTEST_PAUSE_S, longest)  # noqa: S311 (spreads load, keeps no secret)


class ReconnectingConnection(RobustConnection):
    """aio-pika's connection, which restores channels, queues and consumers; the library's own pause never changes."""

    CHANNEL_CLASS = DeadlineChannel

    def __init__(self, url: URL, **kwargs: Any) -> None:
        self._lost_at_s: float | None = None
        self._told_at_s = 0.0
        self._cause = ""
        self._name = ""
        self._words: Words = str
        super().__init__(url, **kwargs)

    @property
    def reconnect_interval(self) -> float:
        """The pause before the next attempt [wall s]; the library asks before each."""
        return pause_s(0.0 if self._lost_at_s is None else monotonic_s() - self._lost_at_s)

    @reconnect_interval.setter
    def reconnect_interval(self, _fixed: float) -> None:
        """What the library takes from the address does not count."""

    def watch(self, name: str, words: Words) -> None:
        """From now on note and log when it is lost, why it does not come back, and when it does."""
        self._name = name
        self._words = words
        self.close_callbacks.add(self._note_lost)
        self.reconnect_callbacks.add(self._note_back)

    def fault(self) -> str | None:
        """Why it has been away for longer than a restart of the broker takes; None while all is well."""
        if self._lost_at_s is None or (away_s := monotonic_s() - self._lost_at_s) < FAULTY_AFTER_S:
            return None
        return f"broker connection {self._name!r} lost {away_s:.0f} s ago: {self._cause}"

    async def _note_lost(self, _sender: object, error: BaseException | None) -> None:
        # Called for each attempt that fails, too, and for a connection whose channels could not be restored.
        if self.close_called:
            return
        now_s = monotonic_s()
        cause = self._words(error)
        if self._lost_at_s is None:
            self._lost_at_s = self._told_at_s = now_s
            log.warning("broker_connection_lost", connection=self._name, cause=cause)
        elif cause != self._cause or now_s - self._told_at_s >= TELL_EVERY_S:
            self._told_at_s = now_s
            away_s = round(now_s - self._lost_at_s, 1)
            log.warning("broker_still_away", connection=self._name, away_s=away_s, cause=cause)
        self._cause = cause

    async def _note_back(self, _sender: object) -> None:
        if self._lost_at_s is not None:
            log.info("broker_connection_back", connection=self._name, away_s=round(monotonic_s() - self._lost_at_s, 1))
            self._lost_at_s = None
