"""A request that comes back from its substations again and again, without being charged: its wait has an end."""

import pytest
from harness.ledger import SOON_MS, asked, registration

from services.ledger.records import Assignment
from services.ledger.states import RETURNS_MAX, Reason, Status
from services.messages import Hint

PASSED_MS = 300_000
"""So much of the wait is over at each return."""


async def unclaimed(ledger, attempt):
    assert await ledger.sweeping.take_back([Hint("r", attempt)]) == {"r"}


async def lost(ledger, _attempt):
    await ledger.take(registration())
    assert [one.request_id for one in await ledger.sweeping.lose(await ledger.sweeping.leases())] == ["r"]


@pytest.mark.parametrize(
    ("comes_back", "reason"), [(unclaimed, Reason.UNCLAIMED), (lost, Reason.SUBSTATION_LOST)], ids=["unclaimed", "lost"]
)
async def test_who_comes_back_waits_anew_ten_times_and_then_to_the_end_of_its_wait(
    ledger, path, execute, comes_back, reason
):
    await ledger.accepted("r")
    waits_anew = []
    for attempt in range(1, RETURNS_MAX + 4):
        execute("UPDATE request SET wait_until_ms = wait_until_ms - ?", [PASSED_MS])
        before_ms = (await ledger.intake.request("r")).wait_until_ms
        assert await ledger.dispatch.assign([Assignment("r", attempt - 1, "north")]) == {"r"}
        await comes_back(ledger, attempt)

        [(status, why, changed_at_ms)] = asked(path, "SELECT status, reason, changed_at_ms FROM request")
        assert (status, why) == (Status.ACCEPTED, reason)
        after_ms = (await ledger.intake.request("r")).wait_until_ms
        assert after_ms in {before_ms, changed_at_ms + SOON_MS}
        waits_anew.append(after_ms != before_ms)
        if not waits_anew[-1]:
            execute("UPDATE request SET wait_until_ms = wait_until_ms + ?", [PASSED_MS])  # time for the next round

    assert waits_anew == [True] * RETURNS_MAX + [False] * 3
    execute("UPDATE request SET wait_until_ms = changed_at_ms - 1")
    assert await ledger.sweeping.expire() == ["r"]


async def test_a_session_that_was_lost_waits_anew_however_often_its_request_came_back(ledger, path, execute):
    """It was charged meanwhile: for it counts how often it was interrupted."""
    await ledger.accepted("r")
    for attempt in range(1, RETURNS_MAX + 2):
        assert await ledger.dispatch.assign([Assignment("r", attempt - 1, "north")]) == {"r"}
        await unclaimed(ledger, attempt)
    epochs = await ledger.take(registration())
    assert await ledger.dispatch.assign([Assignment("r", RETURNS_MAX + 1, "north")]) == {"r"}
    assert len(await ledger.claim([Hint("r", RETURNS_MAX + 2)], "north", epochs["north"])) == 1
    execute("UPDATE request SET wait_until_ms = wait_until_ms - ?", [PASSED_MS])

    await ledger.sweeping.lose(await ledger.sweeping.leases())

    [(status, wait_left_ms)] = asked(path, "SELECT status, wait_until_ms - changed_at_ms FROM request")
    assert (status, wait_left_ms) == (Status.ACCEPTED, SOON_MS)
