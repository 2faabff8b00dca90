"""The doctor's look at the broker: does it answer, has it all that Evenload needs, and does somebody take from it?"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.broker import topology
from services.broker.address import BrokerAddress
from services.broker.calls import words
from services.broker.connection import connected as broker_connected
from services.broker.inquiry import UNTOLD, Away, inquiring
from services.broker.lacks import NODES
from services.broker.session import Session
from services.cli.broker_parts import Rows, Shown, compare, look
from services.cli.checks import Check, Finding, note, ok, problem
from services.cli.console import ALARMS, Console, ConsoleRefused, ConsoleUnusable
from services.cli.console_search import find_console
from services.errors import BrokerUnavailable, Misconfigured
from services.local.running import RunningStack

ANSWERS_WITHIN_S = 5.0
NAMES_SHOWN = 5
MEND_THERE = "run `evenload mend --console {}`"
RIVALS = "close them at the console: what they take, no service of ours gets"
RIVALS_UNNAMED = "close the others' connections: give `--console URL` to have them named"
OURS_END = " consume"
"""How the connections end by name that our services consume over."""
ALARM_CURES = {
    "memory": "let its queues become shorter, or raise vm_memory_high_watermark",
    "disk": "free space on its disk, or lower disk_free_limit",
}


@dataclass(frozen=True, slots=True)
class Seen:
    """What any user of the broker sees by AMQP, which tells neither of bindings and policies nor of a queue's type."""

    absent_exchanges: list[str]
    consumers: Mapping[str, int]
    """How many consumers each queue has that is there, by its name."""
    untold: frozenset[str]
    """The queues that this user may not ask about."""
    away: Mapping[str, str]
    """What the broker says of each queue that exists, and cannot be used now."""


async def check_broker(
    stack: RunningStack | None, amqp_url: str | None, console_url: str, registered: Sequence[str]
) -> list[Check]:
    """Look by AMQP, under the address and the login that the services have, and by the console where one is known.

    `registered` names the substations that somebody runs, by the ledger.
    """
    url = amqp_url or (stack and stack.environment("gateway").get("EVENLOAD_AMQP_URL"))
    has_console = bool(console_url) or (stack is not None and stack.named("rabbitmq") is not None)
    if not url and not has_console:
        return [note("broker", "none is named, and no stack runs that has one")]
    seen = await _by_amqp(url, registered) if url else None
    if has_console:
        checks = await _by_console(console_url, registered, seen if isinstance(seen, Seen) else None)
    else:
        checks = _as_far_as_seen(seen, registered) if isinstance(seen, Seen) else []
    # What is missing explains, too, why the broker refuses a service.
    if any(one.finding is Finding.PROBLEM for one in checks):
        return checks
    if isinstance(seen, Check):
        return [seen, *checks]
    place = _place(url) if url else console_url
    return [ok("broker", f"answers at {place}" + (", and nothing is missing there" if has_console else "")), *checks]


async def _by_amqp(url: str, registered: Sequence[str]) -> Seen | Check:
    """What the services' user sees there, or why it sees nothing."""
    queues = [topology.INTAKE, topology.GRAVEYARD, *map(topology.substation_queue, registered)]
    log = "see the log of rabbitmq"
    try:
        async with contextlib.AsyncExitStack() as stack:
            async with asyncio.timeout(ANSWERS_WITHIN_S):
                session = await stack.enter_async_context(broker_connected(url, "evenload doctor", 0))
            return await _look_around(session, queues)
    except Misconfigured as error:
        cause, _, cure = str(error).rpartition(": ")
        return problem("broker", cause.removeprefix("EVENLOAD_AMQP_URL: "), cure)
    except (BrokerUnavailable, TimeoutError) as error:
        if isinstance(error, TimeoutError) or words(TimeoutError()) in str(error):
            return problem("broker", f"{_place(url)} does not answer within {ANSWERS_WITHIN_S:g} s", log)
        return problem("broker", str(error), log)


async def _look_around(session: Session, queues: Sequence[str]) -> Seen:
    async with inquiring(session, ANSWERS_WITHIN_S) as inquiry:
        absent = [one for one in topology.EXCHANGES if await inquiry.absence(one) is not None]
        told = {one: await inquiry.consumers(one) for one in queues}
    consumers = {one: count for one, count in told.items() if isinstance(count, int)}
    away = {one: answer.said for one, answer in told.items() if isinstance(answer, Away)}
    return Seen(absent, consumers, frozenset(one for one in queues if told[one] is UNTOLD), away)


def _place(url: str) -> str:
    address = BrokerAddress(url)
    return f"{address.url.host_subcomponent}:{address.port}"


def _as_far_as_seen(seen: Seen, registered: Sequence[str]) -> list[Check]:
    """What AMQP alone tells, and what it does not tell."""
    mend = MEND_THERE.format("URL")
    faults = [problem("broker", f"exchange {one!r} is missing", mend) for one in seen.absent_exchanges]
    told = {topology.INTAKE, topology.GRAVEYARD} - seen.untold - seen.away.keys()
    faults += [problem("broker", f"queue {one!r} is missing", mend) for one in sorted(told - seen.consumers.keys())]
    faults += _away(seen)
    known = [one for one in registered if topology.substation_queue(one) not in seen.untold | seen.away.keys()]
    faults += _takers(known, seen.consumers, seen.consumers)
    for queue in map(topology.substation_queue, known):
        if (count := seen.consumers.get(queue, 0)) > 1:
            faults.append(problem("broker", f"queue {queue!r} has {count} consumers, not one", RIVALS_UNNAMED))
    cure = "give `--console URL` with EVENLOAD_CONSOLE_USER and EVENLOAD_CONSOLE_PASSWORD"
    return [*faults, note("broker", "bindings, policies, rights and alarms were not looked at", cure)]


async def _by_console(console_url: str, registered: Sequence[str], seen: Seen | None) -> list[Check]:
    """What is wrong, and what could not be looked at; empty where all is well."""
    try:
        console = find_console(console_url)
        shown = await look(console)
        parts = compare(shown, are_users_ours=console.is_own)
        mend = topology.MEND if console.is_own else MEND_THERE.format(console.url)
        checks = [problem("broker", one.fault, one.cure or mend) for one in parts if one.fault]
        if shown.has_vhost:
            consumers = await _consumers(console, shown) if seen is None or seen.untold else seen.consumers
            away = {} if seen is None else seen.away
            checks += [] if seen is None else _away(seen)
            if consumers is not None:
                known = [one for one in registered if topology.substation_queue(one) not in away]
                checks += _takers(known, consumers, _bound(shown, consumers))
            checks += await _rivals(console)
            checks += await _alarmed(console)
    except ConsoleUnusable as error:
        cause, _, cure = str(error).rpartition(": ")
        return [problem("broker", cause, cure)]
    if shown.unseen:
        said = f"user {console.user!r} may not look at {', '.join(shown.unseen)}"
        checks.append(note("broker", said, "set EVENLOAD_CONSOLE_USER to an administrator"))
    return checks


async def _consumers(console: Console, shown: Shown) -> Mapping[str, int] | None:
    """How many consumers each queue has, as the console knew a few seconds ago; None where the user may not see it."""
    rows, queues = await _rows(console, "/api/consumers/{vhost}"), shown.rows["queues"]
    if rows is None or queues is None:
        return None
    counted = Counter(row["queue"]["name"] for row in rows)
    return {row["name"]: counted[row["name"]] for row in queues}


def _bound(shown: Shown, queues: Iterable[str]) -> Iterable[str]:
    """The queues that are bound to the assignments; all, where nobody can tell because the exchange is missing."""
    bindings, exchanges = shown.rows["bindings"], shown.rows["exchanges"]
    if bindings is None or exchanges is None or topology.ASSIGNMENTS not in {row["name"] for row in exchanges}:
        return queues
    return {row["destination"] for row in bindings if row["source"] == topology.ASSIGNMENTS}


def _takers(registered: Sequence[str], consumers: Mapping[str, int], bound: Iterable[str]) -> Iterator[Check]:
    """`consumers` of each queue that is there; `bound` names the queues that are bound to the assignments."""
    if consumers.get(topology.INTAKE) == 0:
        yield problem("broker", f"no balancer takes from queue {topology.INTAKE!r}", "start one, or see its log")
    bound = set(bound)
    without, unbound, idle = [], [], []
    for one in registered:
        queue = topology.substation_queue(one)
        if queue not in consumers:
            without.append(one)
        elif queue not in bound:
            unbound.append(one)
        elif not consumers[queue]:
            idle.append(one)
    cure = "a substation makes its own again within seconds: where it does not, see its log"
    for those, what in (
        (without, "without a queue"),
        (unbound, f"whose queue is not bound to exchange {topology.ASSIGNMENTS!r}"),
        (idle, "that do not take from their queue"),
    ):
        if those:
            yield problem("broker", f"substations {what}: {_names(those)}", cure)


def _away(seen: Seen) -> list[Check]:
    return [problem("broker", f"queue {one!r} is away ({said})", NODES) for one, said in seen.away.items()]


async def _rivals(console: Console) -> list[Check]:
    """Who takes from a queue beside those that may: one substation from its own, balancers from the intake."""
    rows, connections = await _rows(console, "/api/consumers/{vhost}"), await _rows(console, "/api/connections")
    names = {row.get("name"): _connection_name(row) for row in connections or ()}
    takers: dict[str, list[tuple[str, str]]] = {}
    for row in rows or ():
        details = row.get("channel_details") or {}  # an empty list where the console does not know it yet
        connection = details.get("connection_name")
        taker = str(names.get(connection, connection)), str(details.get("user"))
        takers.setdefault(row["queue"]["name"], []).append(taker)
    checks = []
    for queue, those in sorted(takers.items()):
        rivals = [one for one in those if not one[0].endswith(OURS_END)]
        is_substations = queue.startswith(topology.SUBSTATION_PREFIX)
        if len(those) > 1 and (is_substations or (rivals and queue == topology.INTAKE)):
            said = _names(sorted(f"{name} (user {user!r})" for name, user in rivals or those))
            checks.append(problem("broker", f"others take from queue {queue!r}, over connections: {said}", RIVALS))
    return checks


async def _alarmed(console: Console) -> list[Check]:
    """Alarms, during which the broker takes no messages, and the connections that it holds up."""
    try:
        answer = await console.look(ALARMS)
    except ConsoleRefused:
        return [note("broker", f"user {console.user!r} may not look at alarms", "give it the tag `monitoring`")]
    alarms = answer.get("alarms", []) if isinstance(answer, dict) else []
    checks = [
        problem("broker", f"takes no messages: it has a {kind} alarm", ALARM_CURES.get(kind, "see its log"))
        for kind in sorted({str(one.get("resource")) for one in alarms})
    ]
    connections = await _rows(console, "/api/connections") or []
    held = [row for row in connections if row.get("state") in ("blocked", "blocking")]
    names = sorted(_connection_name(row) for row in held if row.get("vhost") == console.vhost)
    if names:
        cure = "it lets them go on when its alarm ends: see above" if checks else "see the log of rabbitmq"
        checks.append(problem("broker", f"holds up these connections: {_names(names)}", cure))
    return checks


async def _rows(console: Console, path: str) -> Rows | None:
    """The rows at a path; None where the user may not see them."""
    try:
        return await console.rows(path) or []
    except ConsoleRefused:
        return None


def _connection_name(row: Mapping[str, Any]) -> str:
    return str(row.get("client_properties", {}).get("connection_name") or row.get("name"))


def _names(names: Sequence[str]) -> str:
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
