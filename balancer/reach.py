"""Which substations the messages do not reach, for how long they are avoided, and when that is told. Pure.

A substation whose queue or binding is gone stays the least loaded one, because nothing that is sent to it arrives. It
is therefore chosen last for a while; its heartbeat finds in the ledger what was assigned to it meanwhile.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

AVOID_FOR_S = 5.0
"""How long after a failed publish a substation is chosen last. Then one batch tries it again."""
TELL_EVERY_S = 30.0
"""The least time between two log lines about the same substation."""


@dataclass(slots=True)
class _Known:
    avoided_until_s: float
    is_told: bool = False
    """Whether a log line says that it is not reached, and none since that it is reached again."""
    told_at_s: float | None = None
    """It outlives a publish that succeeds: a fault that comes and goes must not be told each time."""
    untold: int = 0
    """Requests that were left to the ledger since the last log line."""


class Reach:
    """What one balancer knows of its own publishes; a substation that a publish reaches is avoided no longer."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}

    def avoided(self, now_s: float) -> frozenset[str]:
        """The substations that are to be chosen last."""
        return frozenset(one for one, known in self._known.items() if now_s < known.avoided_until_s)

    def note_failed(self, requests: Mapping[str, int], now_s: float) -> dict[str, int]:
        """Note failed publishes: how many requests each was for, by substation.

        Returns what is to be told now: substations of which nothing was told for `TELL_EVERY_S`, and for each how many
        requests were left to the ledger since.
        """
        told: dict[str, int] = {}
        for substation, count in requests.items():
            known = self._known.setdefault(substation, _Known(now_s))
            known.avoided_until_s = now_s + AVOID_FOR_S
            known.untold += count
            if known.told_at_s is None or now_s - known.told_at_s >= TELL_EVERY_S:
                told[substation], known.told_at_s, known.untold = known.untold, now_s, 0
                known.is_told = True
        return told

    def note_reached(self, substations: Iterable[str]) -> list[str]:
        """Note confirmed publishes; returns the substations that were told as not reached, and are now."""
        back = []
        for substation in substations:
            known = self._known.get(substation)
            if known is None:
                continue
            if known.is_told:
                back.append(substation)
            known.avoided_until_s, known.is_told = 0.0, False
        return back
