"""A rush of equal requests: send it, follow it, show how it was distributed. Speaks HTTP only."""

import asyncio
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Self

import aiohttp
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table
from yarl import URL

ENDED = frozenset({"completed", "stopped", "cancelled", "expired", "failed"})
FIRST_CLAIMS = 20
SHOWN = frozenset({"substation", "sessions", "power_kw", "limit_kw", "utilisation"})
EVEN_COUNT = 2
"""Requests that a substation's share may differ from the mean and still be called even."""
EVEN_UTILISATION = 0.05
POLL_S = 0.5
POLLS_AT_ONCE = 16
PLAIN_EVERY_S = 2.0
LOAD_TABLE_SETTLED_S = 2.0
"""The table is told each second; after twice that it contains what was claimed before."""


PLAIN_WIDTH = 110


class GatewayUnusable(Exception):
    """The gateway does not answer, or answers what cannot be right; the text tells the cure."""


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


FIRST_RUSH = partial(RushPlan, 120, 10, 6, 11, "ended", 900)
"""By its gateway's address: 120 equal requests of 6 kWh and 11 kW over 10 s."""


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
    older_sessions: int = 0

    @property
    def claimed(self) -> int:
        """How many have reached a connector, or ended without."""
        return sum(one.claimed_at is not None or one.status in ENDED for one in self.requests)

    @property
    def ended(self) -> int:
        """How many are in a terminal state."""
        return sum(one.status in ENDED for one in self.requests)


def run(plan: RushPlan) -> int:
    """Send and follow a rush; returns 0 where every request was accepted and reached `plan.until`."""
    checked_url(plan.url)
    return asyncio.run(_run(plan, make_console()))


async def first_rush(console: Console, url: str) -> None:
    """The rush that a stack begins with, shown on the stack's own console; what goes wrong is told, not raised."""
    try:
        await _run(FIRST_RUSH(url), console)
    except GatewayUnusable as error:
        console.print(f"the first rush ended early: {error}", markup=False)
    except OSError:
        return  # nobody reads the console any more


def make_console() -> Console:
    """A console for people; where its output goes to a file, lines are long enough for the table."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)


async def _run(plan: RushPlan, console: Console) -> int:
    rush = Rush(plan)
    started = time.monotonic()
    async with aiohttp.ClientSession(plan.url, timeout=aiohttp.ClientTimeout(total=15)) as http:
        rush.older_sessions = sum(one["sessions"] for one in await _substations(http))
        with _Bar(console, plan) as bar:
            sending = asyncio.create_task(_send(http, rush, bar))
            try:
                await _follow(http, rush, sending, "claimed", started, bar)
            finally:
                sending.cancel()
        await asyncio.sleep(LOAD_TABLE_SETTLED_S)
        try:
            substations = await _substations(http)
        except GatewayUnusable as error:
            console.print(f"no load table: {error}")
            substations = []
        _show(console, rush, substations)
        if plan.until == "ended":
            await _follow(http, rush, sending, "ended", started, None)
            took_s = time.monotonic() - started
            console.print(f"{rush.ended} of {plan.requests} have ended, {took_s:.0f} s after the rush began")
            return 0 if rush.ended == plan.requests else 1
    return 0 if rush.claimed == plan.requests else 1


async def _send(http: aiohttp.ClientSession, rush: Rush, bar: "_Bar") -> None:
    """Open loop: each request leaves at its own time, however slow the answers are."""
    plan = rush.plan
    tag = uuid.uuid4().hex[:6]
    started = time.monotonic()
    async with asyncio.TaskGroup() as sending:
        for number in range(plan.requests):
            await asyncio.sleep(max(0.0, started + number * plan.over_s / plan.requests - time.monotonic()))
            sending.create_task(_send_one(http, rush, f"EV-{tag}-{number + 1}", bar))


async def _send_one(http: aiohttp.ClientSession, rush: Rush, vehicle_id: str, bar: "_Bar") -> None:
    body = {"vehicle_id": vehicle_id, "energy_kwh": rush.plan.energy_kwh, "max_power_kw": rush.plan.power_kw}
    try:
        async with http.post("/charge-requests", json=body) as response:
            answer = await response.json(content_type=None)
            if response.status == 202 and isinstance(answer, dict):
                rush.requests.append(Request(answer["request_id"]))
            else:
                detail = answer.get("detail", "") if isinstance(answer, dict) else ""
                rush.refused[f"{response.status}: {detail}"] += 1
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        rush.refused[str(error) or type(error).__name__] += 1
    bar.show(rush)


async def _follow(
    http: aiohttp.ClientSession,
    rush: Rush,
    sending: asyncio.Task[None],
    goal: Literal["claimed", "ended"],
    started: float,
    bar: "_Bar | None",
) -> None:
    """Ask for each request until it reached the goal, all did, or the time is up."""
    at_once = asyncio.Semaphore(POLLS_AT_ONCE)

    async def ask(request: Request) -> None:
        async with at_once:
            try:
                async with http.get(f"/charge-requests/{request.request_id}") as response:
                    if response.status == 200:
                        request.take(await response.json())
            except (aiohttp.ClientError, TimeoutError):
                return  # asked again in the next round

    while time.monotonic() - started < rush.plan.within_s:
        is_sent = sending.done()
        if is_sent and not sending.cancelled():
            sending.result()
        open_ones = [
            one for one in rush.requests if one.status not in ENDED and (goal == "ended" or one.claimed_at is None)
        ]
        await asyncio.gather(*(ask(one) for one in open_ones))
        if bar:
            bar.show(rush)
        reached = rush.claimed if goal == "claimed" else rush.ended
        if is_sent and reached == len(rush.requests):
            return
        await asyncio.sleep(POLL_S)


async def _substations(http: aiohttp.ClientSession) -> list[dict[str, Any]]:
    """The gateway's load table; raises `GatewayUnusable` for whatever is no Evenload gateway."""
    try:
        async with http.get("/substations") as response:
            table = await response.json()
    except (aiohttp.ContentTypeError, ValueError):
        raise GatewayUnusable("what answers is no Evenload gateway: correct --url") from None
    except (aiohttp.ClientError, TimeoutError) as error:
        raise GatewayUnusable(
            f"no gateway answers ({str(error) or type(error).__name__}): run `make run`, or give --url"
        ) from None
    match table:
        case {"items": list(items)} if all(isinstance(one, dict) and one.keys() >= SHOWN for one in items):
            return items
        case _:
            raise GatewayUnusable("what answers is no Evenload gateway: correct --url")


def checked_url(url: str) -> str:
    """The address of a gateway; raises `GatewayUnusable` for what is none."""
    try:
        parsed = URL(url)
        is_sound = parsed.scheme in ("http", "https") and bool(parsed.host) and parsed.path in ("", "/")
    except ValueError:
        is_sound = False
    if not is_sound:
        raise GatewayUnusable(f"--url: an address like http://127.0.0.1:8080 is needed (got {url!r})")
    return url


def _show(console: Console, rush: Rush, substations: list[dict[str, Any]]) -> None:
    by_substation = Counter(one.substation for one in rush.requests if one.claimed_at is not None)
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


def verdict(rush: Rush, counts: list[int], substations: list[dict[str, Any]]) -> list[str]:
    """What the table means, in words: counts are judged only where nothing else was charging."""
    said = [f"{count} refused: {cause}" for cause, count in rush.refused.items()]
    missing = len(rush.requests) - rush.claimed
    if missing:
        said.append(f"{missing} of {len(rush.requests)} had not been claimed within {rush.plan.within_s:g} s")
    if not substations:
        return [*said, "no balancer has told of any substation yet"]
    if not any(counts):
        return said
    if rush.older_sessions:
        shares = [one["utilisation"] for one in substations if one["utilisation"] is not None]
        spread = round(max(shares) - min(shares), 4) if shares else 0.0
        word = "even" if spread <= EVEN_UTILISATION else "uneven"
        return [
            *said,
            f"{rush.older_sessions} older sessions were charging (only this rush's requests are counted), so",
            f"utilisation is judged, not counts: {word}, {min(shares, default=0):.0%} to {max(shares, default=0):.0%}",
        ]
    mean = sum(counts) / len(counts)
    off = max(abs(count - mean) for count in counts)
    word = "even" if off <= EVEN_COUNT else "uneven"
    return [*said, f"{word}: {mean:g} requests a substation on average, none further from it than {off:g}"]


class _Bar:
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
        sent = len(rush.requests) + sum(rush.refused.values())
        if self._progress and self._tasks:
            self._progress.update(self._tasks[0], completed=sent)
            self._progress.update(self._tasks[1], completed=rush.claimed)
            return
        line = f"rush: {sent} of {self._plan.requests} sent, {rush.claimed} claimed"
        is_last = rush.claimed == self._plan.requests
        if line != self._said and (is_last or time.monotonic() - self._said_at >= PLAIN_EVERY_S):
            self._said, self._said_at = line, time.monotonic()
            self._console.print(line)
