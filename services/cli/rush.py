"""A rush of equal requests: send it and follow it, over HTTP only."""

import asyncio
import contextlib
import uuid
from functools import partial
from typing import Any, Literal

from rich.console import Console

from services.cli.client import ENDED, Gateway, GatewayUnusable, RequestRefused, connected
from services.cli.following import Patience
from services.cli.output import make_console, print_json
from services.cli.rush_report import Request, Rush, RushBar, RushPlan, show, summary
from services.clock import monotonic_s
from services.errors import EvenloadError

POLL_S = 0.5
POLLS_AT_ONCE = 16
TRIES = 6
TRY_AGAIN_AFTER_S = 1.0
"""Before the second try; before each further one twice as long, which together is long enough for a restart."""
LOAD_TABLE_SETTLED_S = 2.0
"""The table is told each second; after twice that it contains what was claimed before."""


FIRST_RUSH = partial(RushPlan, 120, 10, 6, 11, "ended", 900)
"""By its gateway's address: 120 equal requests of 6 kWh and 11 kW over 10 s."""


def run(plan: RushPlan, *, as_json: bool = False) -> int:
    """Send and follow a rush; returns 0 where every request was accepted and reached `plan.until`.

    `as_json` writes one object in the end, and the progress to standard error.
    """
    rush = Rush(plan)
    return asyncio.run(_run(rush, make_console(stderr=as_json), as_json=as_json))


async def first_rush(console: Console, url: str) -> None:
    """The rush that a stack begins with, shown on the stack's own console; what goes wrong is told, not raised."""
    try:
        await _run(Rush(FIRST_RUSH(url)), console)
    except EvenloadError as error:
        console.print(f"the first rush ended early: {error}", markup=False)
    except OSError:
        return  # nobody reads the console any more


async def _run(rush: Rush, console: Console, *, as_json: bool = False) -> int:
    plan = rush.plan
    started_s = monotonic_s()
    async with connected(plan.url) as gateway:
        rush.older_sessions = sum(one["sessions"] for one in (await gateway.load_table())["items"])
        with RushBar(console, plan) as bar:
            sending = asyncio.create_task(_send(gateway, rush, bar))
            try:
                await _follow(gateway, rush, sending, "claimed", started_s, bar)
            finally:
                sending.cancel()
        await asyncio.sleep(LOAD_TABLE_SETTLED_S)
        substations = await _substations(gateway, console)
        if not as_json:
            show(console, rush, substations)
        if plan.until == "ended":
            await _follow(gateway, rush, sending, "ended", started_s, None)
            took_s = monotonic_s() - started_s
            console.print(f"{rush.ended} of {plan.requests} have ended, {took_s:.0f} s after the rush began")
    if as_json:
        print_json(summary(rush, substations))
    return 0 if (rush.ended if plan.until == "ended" else rush.claimed) == plan.requests else 1


async def _substations(gateway: Gateway, console: Console) -> list[dict[str, Any]]:
    """The lines of the load table; none, and a word why, where the gateway does not tell them."""
    patience = Patience()
    try:
        while True:
            table = await patience.hear(gateway.load_table())
            if table is not None:
                return list(table["items"])
            await asyncio.sleep(POLL_S)
    except EvenloadError as error:
        console.print(f"no load table: {error}", markup=False)
        return []


async def _send(gateway: Gateway, rush: Rush, bar: RushBar) -> None:
    """Open loop: each request leaves at its own time, however slow the answers are."""
    plan = rush.plan
    tag = uuid.uuid4().hex[:6]
    started_s = monotonic_s()
    async with asyncio.TaskGroup() as sending:
        for number in range(plan.requests):
            await asyncio.sleep(max(0.0, started_s + number * plan.over_s / plan.requests - monotonic_s()))
            sending.create_task(_send_one(gateway, rush, f"EV-{tag}-{number + 1}", bar))


async def _send_one(gateway: Gateway, rush: Rush, vehicle_id: str, bar: RushBar) -> None:
    """Send one request, and again under the same key where no answer or a 5xx comes: it stays one request."""
    body = {"vehicle_id": vehicle_id, "energy_kwh": rush.plan.energy_kwh, "max_power_kw": rush.plan.power_kw}
    for number in range(TRIES):
        try:
            accepted = await gateway.submit(body, vehicle_id)
        except (GatewayUnusable, RequestRefused) as error:
            if isinstance(error, RequestRefused) and error.status < 500:
                rush.refused[f"{error.status}: {error.detail}"] += 1
                break
            if number == TRIES - 1:
                rush.unanswered[str(error)] += 1
            else:
                await asyncio.sleep(TRY_AGAIN_AFTER_S * 2**number)
        else:
            rush.requests.append(Request(accepted["request_id"]))
            break
    bar.show(rush)


async def _follow(
    gateway: Gateway,
    rush: Rush,
    sending: asyncio.Task[None],
    goal: Literal["claimed", "ended"],
    started_s: float,
    bar: RushBar | None,
) -> None:
    """Ask for each request until it reached the goal, all did, or the time is up."""
    at_once = asyncio.Semaphore(POLLS_AT_ONCE)

    async def ask(request: Request) -> None:
        async with at_once:
            with contextlib.suppress(GatewayUnusable, RequestRefused):  # then it is asked again in the next round
                request.take(await gateway.request(request.request_id))

    while monotonic_s() - started_s < rush.plan.within_s:
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
