"""The sweep on virtual time, with a ledger whose writes take long; nobody beats any more."""

import asyncio

import pytest
from harness.ledger import registration
from harness.slow_ledger import LOCK_TIMEOUT_S, Hosting, let_sweep

from balancer.sweeper import UNCLAIMED_AFTER_S
from services.ledger.leases import silence_s
from services.ledger.states import Status


def when_accepted(ledger, request_id, lease_s=5.0):
    """Sweep until a request waits again; how long that took [s], None where it never came."""
    let_sweep(ledger, lease_s)
    return ledger.when(lambda: ledger.status(request_id) == Status.ACCEPTED)


@pytest.mark.parametrize(
    ("takes_s", "lease_s"),
    [
        ({"any": 0.05}, 5.0),
        ({"any": 1.05}, 5.0),
        ({"any": 2.4}, 5.0),
        ({"any": 0.4}, 2.0),
        *(({"any": 0.05, slow: LOCK_TIMEOUT_S}, 5.0) for slow in ("lose_orphans", "expire", "lose", "take_back")),
    ],
)
def test_a_dead_substation_is_given_up_however_long_other_writes_take(slow_ledger, takes_s, lease_s):
    async def prepare():
        await slow_ledger.take(registration(), registration("south"))
        await slow_ledger.claimed("a")
        await slow_ledger.assigned("b", to="east")  # where nobody ever was

    asyncio.run(prepare())
    slow_ledger.takes_s = takes_s

    took_s = when_accepted(slow_ledger, "a", lease_s)

    # At most the looks' pace on top, and a round of all writes before the one that gives up, for each of the two.
    assert took_s is not None
    assert silence_s(lease_s) <= took_s <= silence_s(lease_s) + 1 + 2 * (3 * takes_s["any"] + max(takes_s.values()))


def test_a_substation_whose_row_is_locked_keeps_no_other_from_being_given_up(slow_ledger):
    async def prepare():
        await slow_ledger.take(registration(), registration("south"))
        await slow_ledger.claimed("a", at="south")

    asyncio.run(prepare())
    slow_ledger.locked = {"north"}

    took_s = when_accepted(slow_ledger, "a")

    assert took_s is not None
    assert silence_s(5.0) <= took_s <= silence_s(5.0) + 1 + LOCK_TIMEOUT_S


@pytest.mark.parametrize("locked_for_s", [2.0, 4.5, 5.0, 5.5, 6.0, 6.5, 9.0, 30.0])
@pytest.mark.parametrize("offset_s", [0.0, 0.3, 0.7])
def test_who_was_kept_from_renewing_by_a_write_lock_is_not_given_up_but_who_is_dead_is(
    slow_ledger, locked_for_s, offset_s
):
    alive = [Hosting(slow_ledger, one) for one in ("north", "west")]
    dead = Hosting(slow_ledger, "south")
    let_sweep(slow_ledger)
    slow_ledger.let_pass(10 + offset_s)
    asyncio.run(slow_ledger.claimed("a", at="south"))

    slow_ledger.is_write_locked = True
    slow_ledger.let_pass(locked_for_s / 2)
    dead.kill()
    slow_ledger.let_pass(locked_for_s / 2)
    slow_ledger.is_write_locked = False
    slow_ledger.let_pass(2)

    assert {one.substation: one.holder is not None for one in asyncio.run(slow_ledger.sweeping.leases())} == {
        "north": True, "south": True, "west": True
    }  # fmt: skip
    unlocked_at_s = slow_ledger.timeline.now_s - 2
    given_up_at_s = slow_ledger.when(lambda: slow_ledger.status("a") == Status.ACCEPTED)
    assert given_up_at_s is not None
    assert given_up_at_s <= unlocked_at_s + silence_s(5.0) + 1
    slow_ledger.let_pass(10)
    assert [one.workers[name].substation.epoch for one, name in zip(alive, ("north", "west"), strict=True)] == [1, 1]


@pytest.mark.parametrize("locked_for_s", [11.0, 30.0])
@pytest.mark.parametrize("offset_s", [0.0, 0.3, 0.7])
def test_who_could_not_be_claimed_because_of_a_write_lock_is_not_taken_back(slow_ledger, locked_for_s, offset_s):
    Hosting(slow_ledger, "north")
    let_sweep(slow_ledger)
    slow_ledger.let_pass(10 + offset_s)
    asyncio.run(slow_ledger.assigned("a"))

    slow_ledger.is_write_locked = True
    slow_ledger.let_pass(locked_for_s)
    slow_ledger.is_write_locked = False

    assert slow_ledger.when(lambda: slow_ledger.status("a") != Status.ASSIGNED) is not None
    assert slow_ledger.status("a") == Status.CHARGING


@pytest.mark.parametrize("takes_s", [{"any": 2.0}, {"any": 0.05, "expire": 6.0}])
def test_an_assignment_is_taken_back_in_time_however_long_other_writes_take(slow_ledger, takes_s):
    asyncio.run(slow_ledger.assigned("a"))
    slow_ledger.takes_s = takes_s

    took_s = when_accepted(slow_ledger, "a")

    assert took_s is not None
    assert UNCLAIMED_AFTER_S <= took_s <= UNCLAIMED_AFTER_S + 1 + 3 * takes_s["any"] + max(takes_s.values())


@pytest.mark.parametrize("fails", ["lose_orphans", "expire", "lose"])
def test_a_step_that_fails_holds_up_none_of_the_others(slow_ledger, fails):
    async def prepare():
        await slow_ledger.take(registration())
        await slow_ledger.assigned("a", to="east")

    asyncio.run(prepare())
    slow_ledger.refused = {fails}

    took_s = when_accepted(slow_ledger, "a")

    assert took_s is not None
    assert UNCLAIMED_AFTER_S <= took_s <= UNCLAIMED_AFTER_S + 1


@pytest.mark.parametrize("fails", ["read", "take_back"])
def test_a_step_that_failed_is_taken_again(slow_ledger, fails):
    asyncio.run(slow_ledger.assigned("a"))
    slow_ledger.refused = {fails}
    let_sweep(slow_ledger)
    slow_ledger.let_pass(30)
    assert slow_ledger.status("a") == Status.ASSIGNED
    slow_ledger.refused = set()

    assert slow_ledger.when(lambda: slow_ledger.status("a") == Status.ACCEPTED) is not None
