"""Follows what one process witnessed of one tenure, tick by tick; pure, and it holds the sessions under way only.

A tick is judged as a whole. Pieces of a session that follow each other without a gap become one.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from harness.chaos_checker import Finding
from harness.chaos_records import Busy, Holder, Piece, Start


class Site(NamedTuple):
    """What a substation may do at most."""

    limit_w: int
    connectors: int


class Sink(Protocol):
    """Takes what has been read."""

    def add(self, record: NamedTuple) -> None: ...


class Tenure:
    """One writer's lines, in the order in which they were written."""

    def __init__(
        self, holder: Holder, site: Site, speed: float, sink: Sink, found: Callable[[Finding], object]
    ) -> None:
        self._holder = holder
        self._site = site
        self._speed = speed
        self._sink = sink
        self._found = found
        self._sessions: dict[tuple[str, int], Piece] = {}
        self._tick: list[Piece] = []
        self._busy: Busy | None = None

    @property
    def held(self) -> int:
        """How many records are in memory."""
        return len(self._sessions) + len(self._tick)

    def take(self, line: Mapping[str, Any]) -> None:
        """One line of the witness."""
        key = line["request_id"], line["attempt"]
        match line["event"]:
            case "start":
                self._sink.add(Start(*key, self._holder, line["at_s"]))
            case "stop":
                self._put_away(key)
            case "energy":
                piece = Piece(*key, self._holder, line["from_s"], line["to_s"], line["energy_j"])
                if self._tick and self._tick[0].to_s != piece.to_s:
                    self._judge_tick()
                self._tick.append(piece)
                self._join(key, piece)

    def end(self) -> None:
        """Nothing more will come of this writer."""
        self._judge_tick()
        for key in list(self._sessions):
            self._put_away(key)
        if self._busy is not None:
            self._sink.add(self._busy)
            self._busy = None

    def _join(self, key: tuple[str, int], piece: Piece) -> None:
        before = self._sessions.get(key)
        if before is not None and before.to_s == piece.from_s:
            piece = before._replace(to_s=piece.to_s, energy_j=before.energy_j + piece.energy_j)
        else:
            self._put_away(key)
        self._sessions[key] = piece

    def _put_away(self, key: tuple[str, int]) -> None:
        if key in self._sessions:
            self._sink.add(self._sessions.pop(key))

    def _judge_tick(self) -> None:
        """No tick above the limit, and never more sessions than connectors."""
        if not self._tick:
            return
        tick, self._tick = self._tick, []
        from_s, to_s, sessions = min(one.from_s for one in tick), tick[0].to_s, len(tick)
        energy_j = sum(one.energy_j for one in tick)
        # Each session may have kept a fraction from the tick before.
        allowed_j = self._site.limit_w * (to_s - from_s) * self._speed + sessions
        whose, when = self._holder.substation, f"at {to_s:.3f} s by {self._holder}"
        if energy_j > allowed_j + 1:
            self._found(Finding("limit exceeded", whose, f"{energy_j} J of {allowed_j:.0f} J {when}"))
        if sessions > self._site.connectors:
            self._found(Finding("connectors exceeded", whose, f"{sessions} sessions {when}"))
        if self._busy is not None and self._busy.to_s == from_s:
            self._busy = self._busy._replace(to_s=to_s)
            return
        if self._busy is not None:
            self._sink.add(self._busy)
        self._busy = Busy(self._holder, from_s, to_s)
