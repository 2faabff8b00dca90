"""What a rush is, and how people are shown it: progress, the table, the verdict."""

import re
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

from services.cli.client import ENDED

FIRST_CLAIMS = 20
EVEN_COUNT = 2
"""Requests that a substation's share may differ from the mean and still be called even."""
EVEN_UTILISATION = 0.05
PLAIN_EVERY_S = 2.0


@dataclass(frozen=True)
class RushPlan:
    """What is sent, and how long it is followed."""

    requests: int
    over_s: float
    energy_kwh: float
    power_kw: float
    until: Literal["claimed", "ended"]
    within_s: float
    url: str


@dataclass
class Request:
    """What the gateway last said of one request."""

    request_id: str
    status: str = "accepted"
    substation: str | None = None
    claimed_at: str | None = None

    def take(self, answer: dict[str, Any]) -> None:
        """Take over an answer to `GET /charge-requests/{id}`."""
        self.status, self.substation = answer["status"], answer["substation"]
        claims = [line["at"] for line in answer["history"] if line["status"] == "charging"]
        self.claimed_at = claims[0] if claims else None


@dataclass
class Rush:
    """A rush on its way."""

    plan: RushPlan
    requests: list[Request] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    """How many were refused, by cause."""
    older_sessions: int = 0
    unanswered: Counter[str] = field(default_factory=Counter)
    """How many had no answer, by cause: they may have been accepted, or not."""

    @property
    def claimed(self) -> int:
        """How many have reached a connector, or ended without."""
        return sum(one.claimed_at is not None or one.status in ENDED for one in self.requests)

    @property
    def ended(self) -> int:
        """How many are in a terminal state."""
        return sum(one.status in ENDED for one in self.requests)

    def by_substation(self) -> Counter[str | None]:
        """How many of the claimed requests each substation has, or had."""
        return Counter(one.substation for one in self.requests if one.claimed_at is not None)


def show(console: Console, rush: Rush, substations: list[dict[str, Any]]) -> None:
    """Print how a rush was distributed, and what to think of it; `substations` are lines of the load table."""
    by_substation = rush.by_substation()
    claims = sorted((one.claimed_at, one.substation) for one in rush.requests if one.claimed_at is not None)
    first = Counter(substation for _, substation in claims[:FIRST_CLAIMS])
    table = Table(title=f"{rush.plan.requests} requests of {rush.plan.energy_kwh:g} kWh over {rush.plan.over_s:g} s")
    headings = ("substation", "requests", f"of the first {FIRST_CLAIMS}", "sessions", "power", "demand ÷ limit")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "substation" else "right")
    for one in substations:
        utilisation = one["utilisation"]
        table.add_row(
            one["substation"],
            str(by_substation[one["substation"]]),
            str(first[one["substation"]]),
            str(one["sessions"]),
            f"{one['power_kw']:g} of {one['limit_kw']:g} kW",
            "–" if utilisation is None else f"{utilisation:.0%}",
        )
    console.print(table)
    for text in verdict(rush, [by_substation[one["substation"]] for one in substations], substations):
        console.print(text)


def summary(rush: Rush, substations: list[dict[str, Any]]) -> dict[str, Any]:
    """The same for programs: counts, the verdict in words, and `even`, null where nothing was judged."""
    by_substation = rush.by_substation()
    counts = {one["substation"]: by_substation[one["substation"]] for one in substations}
    said = verdict(rush, list(counts.values()), substations)
    judged = re.search(r"\b(even|uneven)[:,]", said[-1]) if said else None
    return {
        "requests": rush.plan.requests,
        "accepted": len(rush.requests),
        "claimed": rush.claimed,
        "ended": rush.ended,
        "refused": dict(rush.refused),
        "no_answer": dict(rush.unanswered),
        "substations": counts,
        "verdict": said,
        "even": judged[1] == "even" if judged else None,
    }


def verdict(rush: Rush, counts: list[int], substations: list[dict[str, Any]]) -> list[str]:
    """What the table means, in words: counts are judged only where nothing else was charging."""
    said = [f"{count} refused: {cause}" for cause, count in rush.refused.items()]
    said += [f"{count} had no answer, and may be accepted or not: {cause}" for cause, count in rush.unanswered.items()]
    missing = len(rush.requests) - rush.claimed
    if missing:
        said.append(f"{missing} of {len(rush.requests)} had not been claimed within {rush.plan.within_s:g} s")
    if not substations:
        return [*said, "no balancer has told of any substation yet"]
    if not any(counts):
        return said
    if rush.older_sessions:
        why = f"{rush.older_sessions} older sessions were charging (only this rush's requests are counted)"
        return [*said, f"{why}, so", _judged_by_utilisation(substations)]
    if len({one["limit_kw"] for one in substations}) > 1:
        return [*said, "the substations' limits differ, so", _judged_by_utilisation(substations)]
    mean = sum(counts) / len(counts)
    off = max(abs(count - mean) for count in counts)
    word = "even" if off <= EVEN_COUNT else "uneven"
    return [*said, f"{word}: {mean:g} requests a substation on average, none further from it than {off:g}"]


def _judged_by_utilisation(substations: list[dict[str, Any]]) -> str:
    shares = [one["utilisation"] for one in substations if one["utilisation"] is not None]
    if not shares:
        return "utilisation should be judged, not counts, but nobody tells any"
    word = "even" if round(max(shares) - min(shares), 4) <= EVEN_UTILISATION else "uneven"
    return f"utilisation is judged, not counts: {word}, {min(shares):.0%} to {max(shares):.0%}"


class RushBar:
    """Progress: a bar on a terminal, a line every two seconds elsewhere."""

    def __init__(self, console: Console, plan: RushPlan) -> None:
        self._console = console
        self._plan = plan
        self._progress: Progress | None = None
        self._tasks: tuple[TaskID, TaskID] | None = None
        self._said_at = 0.0
        self._said = ""

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description:>8}"), BarColumn(), MofNCompleteColumn(), console=self._console
            )
            self._tasks = (
                self._progress.add_task("sent", total=self._plan.requests),
                self._progress.add_task("claimed", total=self._plan.requests),
            )
            self._progress.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._progress:
            self._progress.stop()

    def show(self, rush: Rush) -> None:
        """Show how far the rush is."""
        sent = len(rush.requests) + rush.refused.total() + rush.unanswered.total()
        if self._progress and self._tasks:
            self._progress.update(self._tasks[0], completed=sent)
            self._progress.update(self._tasks[1], completed=rush.claimed)
            return
        line = f"rush: {sent} of {self._plan.requests} sent, {rush.claimed} claimed"
        is_last = rush.claimed == self._plan.requests
        if line != self._said and (is_last or time.monotonic() - self._said_at >= PLAIN_EVERY_S):
            self._said, self._said_at = line, time.monotonic()
            self._console.print(line)
