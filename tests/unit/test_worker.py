"""A substation's worker and its process's heartbeat on a real ledger in memory, tick by tick."""

import asyncio
import math

import pytest
from harness.ledger import registration

from services.errors import LedgerUnavailable, Misconfigured
from services.ledger.records import Assignment, Beat
from services.ledger.states import Reason, Status
from services.messages import Hint
from substations.heartbeat import Host, look_every_s
from substations.substation import Substation
from substations.worker import Worker

ME, SOMEBODY = "me #1", "substations-1 (process 7 on here) #abc"
HEARTBEAT_S, LEASE_S = 1, 5
A, B, C, D = (Hint(name, 1) for name in "abcd")


def worker(ledger, connectors=1, bays=0, **changes):
    kept = {"rated_w": 380_000, "limit_w": 304_000, "speed": 60, "ticked_at_s": 0.0}
    substation = Substation(id="north", connectors=connectors, bays=bays, **{**kept, **changes})
    return Worker(substation, ledger.charging)


async def holding(ledger, connectors=1, bays=0):
    """The worker of a substation that holds its lease in epoch 1."""
    await ledger.take(registration(connectors=connectors, bays=bays), holder=ME)
    return worker(ledger, connectors, bays, epoch=1, fence_at_s=math.inf)


def host(one, ledger, **more):
    kind = registration(connectors=one.substation.connectors, bays=one.substation.bays)
    return Host({"north": one}, [kind], ledger.tenancy, holder=ME, lease_s=LEASE_S, heartbeat_s=HEARTBEAT_S, **more)


async def heartbeat(one, ledger, **more):
    await host(one, ledger, **more).beat("north")
    await one.settle()


async def stop(one, request_id):
    """End a session, and wait for what follows from it."""
    one.substation.stop([(request_id, 1)])
    one.tick(one.substation.ticked_at_s)
    await one.settle()


def sessions(one):
    return set(one.substation.sessions)


# --- what is taken in ---------------------------------------------------------------------------------------------


async def test_failure_15_what_finds_neither_connector_nor_bay_is_declined(ledger):
    one = await holding(ledger, connectors=2, bays=1)
    await ledger.assigned("a", "b", "c", "d")

    await one.take_in([A, B, C, D])

    assert (sessions(one), one.substation.in_bays) == ({"a", "b"}, [C])
    last = (await ledger.history("d"))[-1]
    assert (last.status, last.reason) == (Status.ACCEPTED, Reason.DECLINED)


async def test_stale_hints_take_no_place_from_those_behind_them(ledger):
    one = await holding(ledger)
    await ledger.assigned("a", "b", "c")
    await ledger.intake.withdraw("a")
    await ledger.dispatch.give_back([B], "north", Reason.UNROUTABLE)

    await one.take_in([A, B, C])

    assert sessions(one) == {"c"}
    assert "decline" not in ledger.calls


async def test_the_next_free_connector_is_taken_from_a_bay_in_the_ledgers_order(ledger):
    one = await holding(ledger, bays=2)
    await ledger.assigned("a", "b", "c")
    await one.take_in([C, A])
    await one.take_in([B])
    assert (sessions(one), set(one.substation.in_bays)) == ({"a"}, {B, C})

    await stop(one, "a")

    assert (sessions(one), one.substation.in_bays) == ({"b"}, [C])


async def test_a_process_that_leaves_claims_nobody_more(ledger):
    one = await holding(ledger, bays=1)
    await ledger.assigned("a", "b")
    await one.take_in([A, B])
    one.substation.stop([("a", 1)])
    one.tick(1.0)

    one.leave()
    await one.settle()

    assert one.substation.sessions == {}
    assert [await ledger.status(name) for name in "ab"] == [Status.STOPPED, Status.ASSIGNED]


async def test_who_comes_does_not_overtake_who_stands_in_a_bay(ledger):
    one = await holding(ledger, bays=1)
    await ledger.assigned("a", "c")
    await one.take_in([A, C])
    await ledger.assigned("b", priority=9)

    await one.take_in([B])

    assert one.substation.in_bays == [C]
    assert await ledger.status("b") is Status.ACCEPTED


async def test_two_that_are_taken_in_at_once_lose_nobody_from_the_bays(ledger):
    one = await holding(ledger, bays=2)
    await ledger.assigned("a", "b", "c")
    await one.take_in([A])

    await asyncio.gather(one.take_in([B]), one.take_in([C]))

    assert one.substation.in_bays == [B, C]


async def test_asking_again_after_a_lost_answer_fills_no_connector_twice(ledger):
    one = await holding(ledger, bays=1)
    await ledger.assigned("a", "b")
    ledger.unanswered = {"claim"}
    with pytest.raises(LedgerUnavailable):
        await one.take_in([A])
    ledger.unanswered = set()

    await one.take_in([B])
    assert (sessions(one), one.substation.in_bays) == (set(), [B])

    await one.take_in([A])
    assert (sessions(one), one.substation.in_bays) == ({"a"}, [B])


async def test_asking_again_after_lost_answers_claims_no_more_than_the_limit_has_floors_for(ledger):
    await ledger.take(registration(connectors=40, bays=20), holder=ME)
    one = worker(ledger, 40, 20, epoch=1, fence_at_s=math.inf, limit_w=6_900, floor_w=1_380)
    names = [f"r{number:02d}" for number in range(20)]
    await ledger.assigned(*names)
    ledger.unanswered = {"claim"}
    for _ in range(2):
        with pytest.raises(LedgerUnavailable):
            await one.take_in([Hint(name, 1) for name in names])
    ledger.unanswered = set()

    await one.take_in([Hint(name, 1) for name in names])

    assert sessions(one) == set(names[:5])
    assert one.substation.in_bays == [Hint(name, 1) for name in names[5:]]
    assert ledger.rows("SELECT count(*) FROM request WHERE status = 'charging'") == [(5,)]


async def test_what_a_tenure_has_claimed_is_nothing_to_the_one_after_it(ledger):
    one = await holding(ledger, bays=1)
    await ledger.assigned("a", "b")
    claim = ledger.hold("claim")
    taking_in = asyncio.create_task(one.take_in([A, B]))
    await claim.ready()

    one.substation.begin(2)
    claim.let_go()
    await taking_in

    assert (sessions(one), one.substation.in_bays) == (set(), [])


async def test_who_was_asked_to_stop_is_not_claimed(ledger):
    """No service leaves such a row; the claim looks all the same."""
    one = await holding(ledger)
    await ledger.assigned("a")
    ledger.execute("UPDATE request SET stop_asked = 1")

    await one.take_in([A])

    assert sessions(one) == set()
    assert Status.CHARGING not in {line.status for line in await ledger.history("a")}


async def test_nothing_is_taken_in_behind_the_fence(ledger):
    one = await holding(ledger)
    one.substation.fence_at_s = -math.inf
    await ledger.assigned("a")

    await one.take_in([A])

    assert (sessions(one), await ledger.status("a")) == (set(), Status.ASSIGNED)


# --- what a beat brings -------------------------------------------------------------------------------------------


async def test_a_heartbeat_tells_what_a_claim_without_an_answer_has_claimed(ledger):
    one = await holding(ledger)
    await ledger.assigned("a")
    ledger.unanswered = {"claim"}
    with pytest.raises(LedgerUnavailable):
        await one.take_in([A])

    await heartbeat(one, ledger)

    assert sessions(one) == {"a"}


async def test_a_heartbeat_brings_what_no_message_brought_and_leaves_the_bays_alone(ledger):
    one = await holding(ledger, bays=2)
    await ledger.assigned("a", "b", "c")
    await one.take_in([A, B])
    await heartbeat(one, ledger)
    assert one.substation.in_bays == [B]  # the message of C may still come

    ledger.now_ms += 2_000
    await heartbeat(one, ledger)

    assert (sessions(one), one.substation.in_bays) == ({"a"}, [B, C])


async def test_a_heartbeat_empties_the_bay_of_who_was_cancelled(ledger):
    one = await holding(ledger, bays=2)
    await ledger.assigned("a", "b", "c")
    await one.take_in([A, B, C])
    await ledger.intake.withdraw("b")

    await host(one, ledger).beat("north")

    assert one.substation.in_bays == [C]


async def test_a_heartbeat_leaves_the_bay_to_who_came_after_it_was_sent(ledger):
    one = await holding(ledger, bays=2)
    await ledger.assigned("a")
    await one.take_in([A])
    answer = ledger.hold("beat")
    beating = asyncio.create_task(host(one, ledger).beat("north"))
    await answer.ready()
    await ledger.assigned("b")
    await one.take_in([B])

    answer.let_go()
    await beating

    assert one.substation.in_bays == [B]


async def test_a_session_whose_request_was_withdrawn_ends_at_the_tick_after_the_next_beat(ledger):
    one = await holding(ledger)
    await ledger.assigned("a")
    await one.take_in([A])
    one.tick(0.0)
    one.tick(1.0)
    assert await ledger.intake.withdraw("a") is Status.CHARGING

    await heartbeat(one, ledger)
    one.tick(1.0)
    await one.settle()

    assert sessions(one) == set()
    last = (await ledger.history("a"))[-1]
    assert (last.status, last.reason) == (Status.STOPPED, Reason.REMOTE)


async def test_a_substation_that_is_drained_sends_back_who_stands_in_its_bays(ledger):
    one = await holding(ledger, bays=1)
    await ledger.assigned("a", "b")
    await one.take_in([A, B])
    assert one.substation.in_bays == [B]

    await ledger.operating.order_status("north", operative=False)
    await heartbeat(one, ledger)

    assert (sessions(one), one.substation.in_bays) == ({"a"}, [])
    last = (await ledger.history("b"))[-1]
    assert (last.status, last.reason) == (Status.ACCEPTED, Reason.DRAINED)


@pytest.mark.parametrize(("limit_w", "is_given_back"), [(0, True), (1_379, True), (1_380, False)])
async def test_a_limit_below_one_floor_sends_back_who_stands_in_a_bay(ledger, limit_w, is_given_back):
    await ledger.take(registration(connectors=1, bays=1), holder=ME)
    one = worker(ledger, 1, 1, epoch=1, fence_at_s=math.inf, floor_w=1_380)
    await ledger.assigned("a", "b")
    await one.take_in([A, B])
    assert one.substation.in_bays == [B]

    await ledger.operating.order_limit("north", limit_w, None)
    await heartbeat(one, ledger)

    assert sessions(one) == {"a"}
    assert one.substation.in_bays == ([] if is_given_back else [B])
    last = (await ledger.history("b"))[-1]
    expected = (Status.ACCEPTED, Reason.DECLINED) if is_given_back else (Status.ASSIGNED, Reason.DISPATCHED)
    assert (last.status, last.reason) == expected


async def test_who_comes_while_the_limit_is_below_one_floor_is_sent_back_and_after_that_charged(ledger):
    await ledger.take(registration(connectors=1, bays=1), holder=ME)
    one = worker(ledger, 1, 1, epoch=1, fence_at_s=math.inf, floor_w=1_380)
    await ledger.operating.order_limit("north", 0, None)
    await heartbeat(one, ledger)
    await ledger.assigned("a")
    await one.take_in([A])
    assert (await ledger.status("a"), one.substation.in_bays) == (Status.ACCEPTED, [])

    await ledger.operating.order_limit("north", None, None)
    one.tick(0.0)
    await heartbeat(one, ledger)
    one.tick(0.0)
    assert await ledger.dispatch.assign([Assignment("a", 1, "north")]) == {"a"}
    await one.take_in([Hint("a", 2)])

    assert sessions(one) == {"a"}


# --- the lease ----------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self, monkeypatch):
        self.now_s = 1_000.0
        monkeypatch.setattr("substations.heartbeat.monotonic_s", lambda: self.now_s)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


async def held_by_nobody_ever(_ledger):
    pass


async def lost_by_somebody(ledger):
    await ledger.take(registration(), holder=SOMEBODY)
    await ledger.sweeping.lose(await ledger.sweeping.leases())


async def released_by_somebody(ledger):
    await ledger.take(registration(), holder=SOMEBODY)
    await ledger.tenancy.release([Beat("north", 1, SOMEBODY, (), (), 0)])


@pytest.mark.parametrize("before", [held_by_nobody_ever, lost_by_somebody, released_by_somebody])
async def test_a_lease_that_nobody_holds_is_taken_at_once_and_stands_still_until_it_is_renewed(ledger, clock, before):
    await before(ledger)
    one = worker(ledger)
    process = host(one, ledger)

    await process.take("north")
    assert one.substation.is_held
    assert one.substation.is_fenced(clock.now_s)
    assert not process.all_held.is_set()

    await process.beat("north")
    assert process.all_held.is_set()
    assert not one.substation.is_fenced(clock.now_s + 4.99)
    assert one.substation.is_fenced(clock.now_s + 5.0)


async def test_a_lease_that_stands_still_is_taken_after_lease_and_margin_and_not_before(ledger, clock):
    await ledger.take(registration(), holder=SOMEBODY)
    one = worker(ledger)
    process = host(one, ledger)
    for _ in range(24):
        await process.take("north")
        assert not one.substation.is_held
        clock.now_s += 0.25
    await process.take("north")

    assert one.substation.epoch == 2


async def test_a_process_whose_like_is_alive_gives_up_and_names_it(ledger, clock):
    await ledger.take(registration(), holder=SOMEBODY)
    process = host(worker(ledger), ledger)
    await process.take("north")
    clock.now_s += 1
    await ledger.beat(holder=SOMEBODY)

    with pytest.raises(Misconfigured, match=r"substations-1 \(process 7 on here\), which is alive"):
        await process.take("north")


async def test_who_has_lost_a_lease_to_somebody_alive_is_refused_so_that_it_may_start_anew_elsewhere(ledger):
    one = worker(ledger)
    process = host(one, ledger)
    await process.take("north")
    await process.beat("north")
    await ledger.sweeping.lose(await ledger.sweeping.leases())
    await process.beat("north")
    await ledger.take(registration(), holder=SOMEBODY)
    [lease] = await ledger.sweeping.leases()
    await process.take("north")
    assert await ledger.beat(epoch=lease.epoch, holder=SOMEBODY) is not None

    with pytest.raises(Misconfigured, match="is hosted by substations-1"):
        await process.take("north")


async def test_where_one_substation_is_refused_no_other_of_the_process_is_taken_or_beaten_for_any_more(ledger):
    await ledger.take(registration(), holder=SOMEBODY)
    substations = {
        one: Substation(id=one, rated_w=380_000, limit_w=304_000, connectors=1, bays=0, speed=60, ticked_at_s=0.0)
        for one in ("south", "north", "west")
    }
    process = Host(
        {one: Worker(it, ledger.charging) for one, it in substations.items()},
        [registration(one) for one in substations], ledger.tenancy, holder=ME, lease_s=LEASE_S, heartbeat_s=0.001,
    )  # fmt: skip
    beating = asyncio.create_task(process.beat_for_ever())
    async with asyncio.timeout(20):
        while not all(substations[one].is_held for one in ("south", "west")):
            await asyncio.sleep(0)
        while not beating.done():
            await ledger.beat(holder=SOMEBODY)

    with pytest.raises(Misconfigured, match="'north' is hosted by substations-1"):
        await beating

    assert asyncio.all_tasks() == {asyncio.current_task()}
    await process.release()
    assert {one.substation for one in await ledger.sweeping.leases() if one.is_released} == {"south", "west"}


async def test_a_taking_whose_answer_was_lost_is_recognised(ledger, clock):
    one = worker(ledger)
    process = host(one, ledger)
    ledger.unanswered = {"take"}
    with pytest.raises(LedgerUnavailable):
        await process.take("north")

    await process.take("north")
    await process.beat("north")

    assert (one.substation.epoch, process.all_held.is_set()) == (1, True)


async def test_a_process_that_lost_its_lease_drops_everything(ledger, clock):
    one = worker(ledger)
    process = host(one, ledger)
    await process.take("north")
    await ledger.claimed("a")
    await process.beat("north")
    assert sessions(one) == {"a"}
    await ledger.sweeping.lose(await ledger.sweeping.leases())

    await process.beat("north")

    assert (one.substation.is_held, one.substation.sessions) == (False, {})
    assert one.substation.is_fenced(clock.now_s)


async def test_the_fence_counts_from_when_the_beat_was_sent_not_from_its_answer(ledger, clock):
    one = worker(ledger)
    process = host(one, ledger)
    await process.take("north")
    answer = ledger.hold("beat")
    beating = asyncio.create_task(process.beat("north"))
    await answer.ready()
    clock.now_s += 3

    answer.let_go()
    await beating

    assert one.substation.fence_at_s == clock.now_s - 3 + LEASE_S


async def test_the_answer_to_a_beat_of_an_earlier_tenure_renews_nothing(ledger, clock):
    one = worker(ledger)
    process = host(one, ledger)
    await process.take("north")
    answer = ledger.hold("beat")
    beating = asyncio.create_task(process.beat("north"))
    await answer.ready()
    one.substation.begin(2)

    answer.let_go()
    await beating

    assert one.substation.is_held
    assert one.substation.is_fenced(clock.now_s)


async def test_orders_are_told_as_applied_without_waiting_for_the_next_beat(ledger, clock):
    one = worker(ledger)
    process = host(one, ledger)
    await process.take("north")
    await process.beat("north")
    assert process.pause_s("north") == look_every_s(HEARTBEAT_S) < HEARTBEAT_S

    one.substation.tick(clock.now_s)
    await process.beat("north")
    assert process.pause_s("north") == HEARTBEAT_S


async def test_a_beat_brings_an_assignment_at_once_while_no_message_can_come(ledger):
    one = await holding(ledger)
    await ledger.assigned("a")

    await heartbeat(one, ledger)
    assert sessions(one) == set()  # its message may be on the way

    await heartbeat(one, ledger, is_deaf=lambda: True)
    assert sessions(one) == {"a"}
