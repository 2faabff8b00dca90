"""Substations that no message reaches: their requests stay assigned, and others are preferred for a while."""

import asyncio
import json

import pytest
from harness.dispatch_parts import DispatchParts
from harness.in_process import logging_restored
from structlog.testing import capture_logs

from balancer.dispatcher import MESSAGE_GRACE_MS
from balancer.reach import AVOID_FOR_S, TELL_EVERY_S
from services.errors import BrokerUnavailable, Unroutable
from services.ledger.states import Status
from services.logs import configure_logs

NO_QUEUE = Unroutable("no queue takes 'charge.assignments' with key 'north'")


class Clock:
    now_s = 1_000.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock(monkeypatch):
    one = Clock()
    monkeypatch.setattr("balancer.dispatcher.monotonic_s", one)
    return one


@pytest.fixture
async def parts(ledger, clock):
    """Two equal substations of 40 connectors; no message reaches the northern one."""
    one = DispatchParts(ledger, zones={"north": None, "south": None})
    await one.look()
    one.publisher.faults["north"] = NO_QUEUE
    return one


async def submit(parts, *numbers):
    for number in numbers:
        await parts.submit(f"r{number}")


def assigned(parts):
    """How many requests are assigned to each substation."""
    return dict(parts.ledger.rows("SELECT substation, count(*) FROM request WHERE status = 'assigned' GROUP BY 1"))


@pytest.mark.parametrize("fault", [NO_QUEUE, BrokerUnavailable("no confirm")])
async def test_a_request_whose_message_arrives_nowhere_stays_assigned(ledger, fault):
    parts = DispatchParts(ledger)
    await parts.look()
    parts.publisher.faults["north"] = fault

    await parts.submit("a")

    assert ledger.rows("SELECT status, attempt, substation FROM request") == [(Status.ASSIGNED, 1, "north")]
    assert parts.table.is_reserved("a", 1)
    assert parts.unreached("north") == 1


async def test_a_substation_without_a_queue_does_not_get_everybody_for_as_long_as_it_is_the_least_loaded(parts, clock):
    await submit(parts, *range(20))
    assert assigned(parts) == {"north": 1, "south": 19}

    clock.now_s += AVOID_FOR_S
    await submit(parts, *range(20, 30))
    assert assigned(parts) == {"north": 2, "south": 28}
    assert parts.unreached("north") == 2


async def test_a_substation_without_a_queue_takes_those_for_whom_nobody_else_has_a_connector(parts):
    await submit(parts, *range(60))

    assert assigned(parts) == {"north": 20, "south": 40}
    assert parts.ledger.rows("SELECT max(attempt) FROM request") == [(1,)]


async def test_while_no_substation_can_be_reached_all_are_used_evenly(parts):
    parts.publisher.faults["south"] = NO_QUEUE

    await submit(parts, *range(20))

    assert assigned(parts) == {"north": 10, "south": 10}


async def test_what_is_not_reached_is_told_once_a_period_with_the_number_of_requests_and_then_that_it_is_reached(
    parts, clock
):
    told = {"event": "substation_not_reached", "log_level": "warning", "substation": "north", "cause": str(NO_QUEUE)}
    with capture_logs() as lines:
        await submit(parts, *range(60))
        assert lines == [told | {"requests": 1}]

        clock.now_s += TELL_EVERY_S
        await submit(parts, 60, 61)
        assert lines[1:] == [told | {"requests": 20}]

        del parts.publisher.faults["north"]
        await submit(parts, 62, 63)
    assert lines[2:] == [{"event": "substation_reached_again", "log_level": "info", "substation": "north"}]


async def test_each_substation_that_is_not_reached_has_a_line_of_its_own_which_the_log_lets_through(parts, capsys):
    parts.publisher.faults["south"] = BrokerUnavailable("no confirm")
    with logging_restored():
        configure_logs("balancer", "balancer-1", "INFO", "json")
        await parts.submit(*(f"r{number}" for number in range(10)))

    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    told = [(one["event"], one["substation"], one["requests"], one["cause"]) for one in lines]
    assert sorted(told) == [
        ("substation_not_reached", "north", 5, str(NO_QUEUE)),
        ("substation_not_reached", "south", 5, "no confirm"),
    ]


async def test_a_substation_that_is_reached_now_and_then_is_told_once_a_period(parts, clock):
    async def fail_and_recover(number):
        parts.publisher.faults["north"] = NO_QUEUE
        await submit(parts, f"{number}a", f"{number}b")
        del parts.publisher.faults["north"]
        clock.now_s += AVOID_FOR_S
        await submit(parts, f"{number}c", f"{number}d")

    with capture_logs() as lines:
        for number in range(4):
            await fail_and_recover(number)
        assert [one["event"] for one in lines] == ["substation_not_reached", "substation_reached_again"]

        clock.now_s += TELL_EVERY_S
        await fail_and_recover(4)
    assert [one["event"] for one in lines[2:]] == ["substation_not_reached", "substation_reached_again"]
    assert [one["requests"] for one in lines if "requests" in one] == [1, 4]


async def test_a_substation_that_a_message_reaches_again_is_chosen_like_any_other(parts, clock):
    await submit(parts, *range(20))
    del parts.publisher.faults["north"]
    clock.now_s += AVOID_FOR_S

    await submit(parts, *range(20, 40))

    assert assigned(parts) == {"north": 20, "south": 20}


async def test_a_broker_that_does_not_confirm_holds_up_nobody_in_the_waiting_room(ledger):
    parts = DispatchParts(ledger)
    parts.publisher.confirms.clear()
    async with asyncio.timeout(20):
        await ledger.accepted("first")
        await parts.look()
        await ledger.accepted("second")
        ledger.now_ms += MESSAGE_GRACE_MS
        await parts.look()

    assert assigned(parts) == {"north": 2}
    parts.publisher.confirms.set()
    async with asyncio.timeout(20):
        while len(parts.publisher.published) < 2:
            await asyncio.sleep(0)
    assert parts.sent() == ["first", "second"]


async def test_while_the_broker_is_away_no_row_is_left_to_a_message(ledger):
    parts = DispatchParts(ledger)
    await parts.look()
    await ledger.accepted("a")
    await parts.look()
    assert parts.sent() == []

    parts.watcher.is_broker_away = True
    await parts.look()
    assert parts.sent() == ["a"]
