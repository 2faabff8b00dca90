"""Holds tick logs against what power sharing promises, from outside: it imports nothing of the product."""

import collections
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Logged(NamedTuple):
    """One session in a tick; W and J."""

    request_id: str
    attempt: int
    power_w: int
    wanted_w: int
    owed_j: int
    paused: bool


class Tick(NamedTuple):
    """What a substation set at `at_s` until its next tick."""

    at_s: float
    limit_w: int
    connectors: int
    floor_w: int
    fenced: bool
    sessions: list[Logged]

    @property
    def power_w(self) -> int:
        return sum(one.power_w for one in self.sessions)


def parsed(text: str) -> list[Tick]:
    """The ticks of a log; a process that was killed may have left half a line at the end, and only there."""
    lines = text.split("\n")
    whole = lines if text.endswith("\n") else lines[:-1]
    return [tick_of(json.loads(line)) for line in filter(None, whole)]


def tick_of(line: Mapping[str, Any]) -> Tick:
    """One line of a log."""
    return Tick(**{**line, "sessions": [Logged(*one) for one in line["sessions"]]})


def logged(folder: Path) -> dict[str, list[Tick]]:
    """All logs of a folder by substation and epoch, whatever segments they are in."""
    found: dict[str, list[Tick]] = collections.defaultdict(list)
    for path in sorted(folder.glob("*.jsonl"), key=lambda one: int(one.stem.rpartition("-")[2])):
        tenure, _pid, _number = path.stem.rsplit("-", 2)
        found[tenure] += parsed(path.read_text(encoding="utf-8"))
    return dict(found)


def breaches(ticks: Iterable[Tick], speed: float) -> list[str]:
    """What is wrong, in words that begin with its kind; empty where every tick keeps what is promised."""
    trace = Trace(speed)
    return [fault for tick in ticks for fault in trace.breaches(tick)]


class Trace:
    """One log, tick by tick; it holds the tick before."""

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._before: Tick | None = None

    def breaches(self, tick: Tick) -> list[str]:
        """What is wrong with the next tick, in itself or after the one before."""
        before, self._before = self._before, tick
        found = [f"{fault} at {tick.at_s}: {tick}" for fault in _faults(tick)]
        if before is None:
            return found
        if tick.at_s < before.at_s:
            found.append(f"clock ran backwards: {before.at_s} → {tick.at_s}")
        owed_j = {one[:2]: one.owed_j for one in tick.sessions}
        for one in before.sessions:
            delivered_j = one.owed_j - owed_j.get(one[:2], one.owed_j)
            allowed_j = one.power_w * (tick.at_s - before.at_s) * self._speed
            if not 0 <= delivered_j <= allowed_j + 1:  # 1 J: a fraction may have been kept from the ticks before
                found.append(f"energy: {delivered_j} J of at most {allowed_j} J at {tick.at_s}: {one}")
        return found


def _faults(tick: Tick) -> list[str]:
    found = []
    if tick.power_w > max(0, tick.limit_w):
        found.append("limit exceeded")
    if len(tick.sessions) > tick.connectors or len({one.request_id for one in tick.sessions}) < len(tick.sessions):
        found.append("connectors exceeded")
    for one in tick.sessions:
        if one.paused:
            if one.power_w != 0:
                found.append("paused with power")
        elif one.power_w < _least_w(tick, one):
            found.append("below the floor")
        if not 0 <= one.power_w <= one.wanted_w:
            found.append("more than wanted")
    if tick.fenced:
        return [*found, "power behind the fence"] if tick.power_w else found
    idle_w = tick.limit_w - tick.power_w
    if idle_w > 0 and any(not one.paused and one.power_w < one.wanted_w for one in tick.sessions):
        found.append("idle power while a session wants more")
    if idle_w > 0 and any(one.paused and _least_w(tick, one) <= idle_w for one in tick.sessions):
        found.append("idle power while a paused session could run")
    return found


def _least_w(tick: Tick, one: Logged) -> int:
    return min(tick.floor_w, one.wanted_w)
