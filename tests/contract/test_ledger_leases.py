"""Leases in the ledger: who may take, renew and release, and what becomes of the rows of a substation that is lost."""

import asyncio

import pytest
from harness.ledger import (
    HOLDER,
    asked,
    ending,
    let_the_vehicle_leave,
    let_the_wait_pass,
    new_request,
    progress,
    registration,
)

from services.ledger.leases import Lease
from services.ledger.records import Assignment, Beat, Claimed, Swept
from services.ledger.states import INTERRUPTIONS_MAX, Reason, Status
from services.messages import Hint

KWH_J = 3_600_000
OTHER = "another test #2"


async def seen(ledger, substation="north"):
    return next(one for one in await ledger.sweeping.leases() if one.substation == substation)


async def lose(ledger, substation="north"):
    swept = await ledger.sweeping.lose([await seen(ledger, substation)])
    return {one.request_id: (one.status, one.reason) for one in swept}


async def test_a_substation_that_nobody_ever_held_is_taken_once(ledger, rival):
    one = [registration("east")]

    assert await ledger.tenancy.take(one, {}, HOLDER) == {"east": 1}
    assert await rival.tenancy.take(one, {}, OTHER) == {}
    assert await seen(ledger, "east") == Lease("east", 1, 0, HOLDER, is_released=False)


async def test_who_asks_for_some_leases_gets_no_others(ledger):
    await ledger.take(registration(), registration("south"), registration("west"))

    leases = await ledger.tenancy.leases_of(["west", "north", "nowhere"])

    assert sorted(leases, key=lambda one: one.substation) == [await seen(ledger), await seen(ledger, "west")]


@pytest.mark.parametrize(
    "stale",
    [
        {"epoch": 0},
        {"renewals": 1},
        {"holder": OTHER},
        {"holder": None},
        {"is_released": True},
    ],
)
async def test_taking_and_losing_need_the_lease_exactly_as_it_was_seen(ledger, stale):
    await ledger.claimed("r")
    lease = await seen(ledger)
    as_seen = Lease(**{"substation": "north", **{one: getattr(lease, one) for one in FIELDS}, **stale})

    assert await ledger.tenancy.take([registration("north")], {"north": as_seen}, OTHER) == {}
    assert await ledger.sweeping.lose([as_seen]) == []

    assert await seen(ledger) == lease
    assert await ledger.status("r") is Status.CHARGING


FIELDS = ("epoch", "renewals", "holder", "is_released")


async def test_each_beat_renews_and_ends_the_wait_of_an_heir(ledger, rival):
    await rival.tenancy.wait_for(["north"], OTHER)
    assert (await seen(ledger)).heir == OTHER

    assert await ledger.beat() is not None

    assert await seen(ledger) == Lease("north", 1, 1, HOLDER, is_released=False)


@pytest.mark.parametrize("wrong", [{"epoch": 2}, {"epoch": 0}, {"holder": OTHER}, {"at": "nowhere"}])
async def test_a_beat_for_a_lease_that_is_not_ours_changes_nothing(ledger, wrong):
    await ledger.claimed("r")
    told = progress("r", 5, wanted_j=9)

    assert await ledger.beat(told, **wrong) is None

    assert (await seen(ledger)).renewals == 0
    assert (await ledger.intake.request("r")).energy_delivered_j == 0


async def test_an_heir_is_noted_only_where_it_has_to_wait(ledger):
    assert await ledger.tenancy.wait_for(["nowhere"], OTHER) == {}
    await ledger.tenancy.release([Beat("north", 1, HOLDER, (), (), 0)])

    leases = await ledger.tenancy.wait_for(["north", "south"], OTHER)

    assert {one: lease.heir for one, lease in leases.items()} == {"north": None, "south": OTHER}
    assert [one for one, lease in leases.items() if lease.is_free] == ["north"]


async def test_an_heir_that_stops_waiting_is_noted_nowhere_and_no_other_heir_is_touched(ledger):
    await ledger.take(registration("east"), registration("west"))
    for heir, wanted in ((OTHER, ["north", "east"]), ("a third #3", ["west"])):
        await ledger.tenancy.wait_for(wanted, heir)
    before = await ledger.tenancy.leases()

    await ledger.tenancy.stop_waiting(OTHER)

    after = await ledger.tenancy.leases()
    assert {one.substation: one.heir for one in after if one.heir} == {"west": "a third #3"}
    assert not any(one.has_moved_since(earlier) for one, earlier in zip(after, before, strict=True))


async def test_a_grant_is_taken_with_the_claim_and_renewed_by_each_beat(ledger):
    await ledger.assigned("r", energy_requested_j=KWH_J)
    [claim] = (await ledger.charging.claim([Hint("r", 1)], "north", 1, 40, grant_s=60)).claimed
    assert claim.energy_granted_j == 60 * 11_000

    granted = []
    for delivered_j, wanted_j in ((1_000, 700_000), (900, 600_000), (2_000, KWH_J)):
        answer = await ledger.beat(progress("r", delivered_j, wanted_j=wanted_j))
        granted.append((answer.charging[0].energy_delivered_j, answer.charging[0].energy_granted_j))

    assert granted == [(1_000, 700_000), (1_000, 700_000), (2_000, KWH_J)]


async def test_a_first_grant_never_goes_beyond_what_was_asked_for(ledger):
    await ledger.assigned("r", energy_requested_j=5_000)

    [claim] = (await ledger.charging.claim([Hint("r", 1)], "north", 1, 40, grant_s=60)).claimed

    assert claim.energy_granted_j == 5_000


@pytest.mark.parametrize(
    ("delivered_j", "wanted_j", "kept"), [(3_000, 20_000, (5_000, 20_000)), (6_000, 7_000, (6_000, 9_000))]
)
async def test_progress_and_grant_rise_each_by_itself_and_neither_takes_the_other_back(
    ledger, delivered_j, wanted_j, kept
):
    await ledger.claimed("r")
    await ledger.beat(progress("r", 5_000, wanted_j=9_000))

    [row] = (await ledger.beat(progress("r", delivered_j, wanted_j=wanted_j))).charging

    assert (row.energy_delivered_j, row.energy_granted_j) == kept


async def test_an_open_grant_of_a_lost_tenure_counts_as_delivered(ledger):
    await ledger.claimed("r")
    await ledger.beat(progress("r", 1_000, wanted_j=9_000))

    assert await lose(ledger) == {"r": (Status.ACCEPTED, Reason.SUBSTATION_LOST)}

    record = await ledger.intake.request("r")
    assert (record.energy_delivered_j, record.substation) == (9_000, None)
    assert await ledger.dispatch.assign([Assignment("r", 1, "south")]) == {"r"}
    [claim] = (await ledger.charging.claim([Hint("r", 2)], "south", 1, 40, grant_s=1)).claimed
    assert (claim.energy_delivered_j, claim.energy_granted_j) == (9_000, 20_000)


async def test_a_tenure_that_was_released_has_settled_and_interrupts_nobody(ledger, rival):
    await ledger.claimed("r", "never-started")
    await ledger.beat(progress("r", 1_000, wanted_j=9_000), grant_s=1)

    released = await ledger.tenancy.release([Beat("north", 1, HOLDER, (progress("r", 1_500, wanted_j=9_000),), (), 0)])
    assert released == {"north"}
    assert await rival.take(registration("north"), holder=OTHER) == {"north": 2}

    answer = await rival.beat(epoch=2, holder=OTHER)
    assert {one.request_id: (one.energy_delivered_j, one.energy_granted_j) for one in answer.charging} == {
        "r": (1_500, 1_500),
        "never-started": (0, 0),
    }
    for _ in range(2 * INTERRUPTIONS_MAX):
        lease = await seen(rival)
        await rival.tenancy.release([Beat("north", lease.epoch, lease.holder, (), (), 0)])
        await rival.take(registration("north"), holder=OTHER)
    assert await rival.status("r") is Status.CHARGING


async def test_who_leaves_in_order_leaves_no_grant_open(ledger, path):
    await ledger.claimed("r", "never-started")
    await ledger.beat(progress("r", 1_000, wanted_j=9_000), grant_s=1)

    await ledger.tenancy.release([Beat("north", 1, HOLDER, (progress("r", 1_500, wanted_j=9_000),), (), 0)])

    granted = asked(path, "SELECT id, energy_delivered_j, energy_granted_j FROM request")
    assert {tuple(row) for row in granted} == {("r", 1_500, 1_500), ("never-started", 0, 0)}


async def test_who_has_left_in_order_claims_and_renews_no_more(ledger):
    await ledger.assigned("r")
    await ledger.tenancy.release([Beat("north", 1, HOLDER, (), (), 0)])

    assert await ledger.claim([Hint("r", 1)], "north", 1) == []
    assert await ledger.beat() is None
    assert await ledger.tenancy.release([Beat("north", 1, HOLDER, (), (), 0)]) == set()


async def test_a_lost_substations_rows_end_or_go_back_in_the_order_of_what_is_true_of_them(ledger, path):
    leaves_ms = (await ledger.intake.accept([new_request("clock")]))[0].accepted_at_ms + 60_000
    await ledger.claimed("has-all", "stop", "goes-on")
    await ledger.claimed("departed", departs_at_ms=leaves_ms)
    await ledger.claimed("stop-and-all")
    await ledger.assigned("in-bay", "on-its-way")
    await ledger.claimed("elsewhere", at="south")
    await ledger.assigned("to-south", to="south")
    for one in ("stop", "stop-and-all"):
        await ledger.intake.withdraw(one)
    let_the_vehicle_leave(path, "departed")
    lines = [progress(one, 100, wanted_j=36_000_000) for one in ("has-all", "stop-and-all")]
    await ledger.beat(*lines, progress("goes-on", 100, wanted_j=200), in_bays=[Hint("in-bay", 1)])

    assert await lose(ledger) == {
        "has-all": (Status.COMPLETED, Reason.ENERGY_LIMIT_REACHED),
        "stop-and-all": (Status.COMPLETED, Reason.ENERGY_LIMIT_REACHED),
        "stop": (Status.STOPPED, Reason.REMOTE),
        "departed": (Status.STOPPED, Reason.EV_DISCONNECTED),
        "goes-on": (Status.ACCEPTED, Reason.SUBSTATION_LOST),
        "in-bay": (Status.ACCEPTED, Reason.SUBSTATION_LOST),
        "on-its-way": (Status.ACCEPTED, Reason.SUBSTATION_LOST),
    }
    assert (await ledger.intake.request("goes-on")).energy_delivered_j == 200
    assert await ledger.status("elsewhere") is Status.CHARGING
    assert await ledger.status("to-south") is Status.ASSIGNED
    assert (await seen(ledger)).holder is None
    assert await lose(ledger, "north") == {}


async def test_who_is_withdrawn_while_it_waits_for_the_rest_of_its_energy_has_stopped(ledger):
    await ledger.claimed("r")
    await ledger.beat(progress("r", 1_000))
    await lose(ledger)

    assert await ledger.intake.withdraw("r") is Status.STOPPED

    record = await ledger.intake.request("r")
    assert (record.energy_delivered_j, record.history[-1].reason) == (1_000, Reason.REMOTE)


async def test_a_grant_to_a_session_that_was_taken_over_never_goes_beyond_what_was_asked_for(ledger):
    await ledger.claimed("long")
    await ledger.claimed("short", energy_requested_j=5_000)
    await ledger.take(registration("north"))

    answer = await ledger.beat(epoch=2, grant_s=60)

    assert {one.request_id: one.energy_granted_j for one in answer.charging} == {"long": 60 * 11_000, "short": 5_000}


async def test_a_session_of_an_epoch_that_is_over_goes_elsewhere_at_once(ledger, execute):
    await ledger.claimed("orphan")
    await ledger.beat(progress("orphan", 1_000, wanted_j=9_000))
    await ledger.claimed("at-home", at="south")
    assert await ledger.sweeping.lose_orphans() == []
    execute("UPDATE substation SET epoch = epoch + 1 WHERE id = 'north'")
    assert (await ledger.beat(epoch=2)).charging == ()

    assert await ledger.sweeping.lose_orphans() == [Swept("orphan", Status.ACCEPTED, Reason.SUBSTATION_LOST)]

    assert (await ledger.intake.request("orphan")).energy_delivered_j == 9_000
    assert await ledger.status("at-home") is Status.CHARGING
    assert await ledger.sweeping.lose_orphans() == []


async def test_nothing_expires_because_of_a_loss_alone_but_nobody_waits_past_its_departure(ledger, path):
    leaves_ms = (await ledger.intake.accept([new_request("clock")]))[0].accepted_at_ms + 60_000
    await ledger.claimed("long", "brief")
    await ledger.claimed("leaves", departs_at_ms=leaves_ms)
    await ledger.assigned("bay")
    for one in ("long", "bay"):
        let_the_wait_pass(path, one)

    await lose(ledger)

    assert await ledger.sweeping.expire() == []
    assert (await ledger.intake.request("leaves")).wait_until_ms == leaves_ms
    assert (await ledger.intake.request("long")).wait_until_ms > leaves_ms


async def test_a_session_that_loses_its_substation_too_often_has_failed(ledger):
    await ledger.claimed("r")
    for _ in range(INTERRUPTIONS_MAX):
        await ledger.take(registration("north"))
        assert await ledger.status("r") is Status.CHARGING

    await ledger.take(registration("north"))

    assert await ledger.status("r") is Status.FAILED
    assert (await ledger.history("r"))[-1].reason == Reason.INTERRUPTED_TOO_OFTEN


async def test_a_session_whose_substation_the_sweep_gives_up_too_often_has_failed(ledger):
    await ledger.accepted("r")
    for number in range(INTERRUPTIONS_MAX + 1):
        assert await ledger.status("r") is Status.ACCEPTED
        await ledger.dispatch.assign([Assignment("r", number, "north")])
        assert len(await ledger.claim([Hint("r", number + 1)], "north", (await seen(ledger)).epoch)) == 1
        last = await lose(ledger)
        await ledger.take(registration("north"))

    assert last == {"r": (Status.FAILED, Reason.INTERRUPTED_TOO_OFTEN)}


async def test_a_successor_with_fewer_connectors_sends_the_latest_sessions_elsewhere(ledger):
    await ledger.claimed("a")
    await ledger.claimed("b")
    await ledger.claimed("c")

    await ledger.take(registration("north", connectors=2))

    assert [await ledger.status(one) for one in "abc"] == ["charging", "charging", "accepted"]
    assert (await ledger.history("c"))[-1].reason == Reason.DECLINED
    assert [one.request_id for one in (await ledger.beat(epoch=2)).charging] == ["a", "b"]


async def test_an_assignment_that_no_beat_of_this_epoch_names_is_unclaimed_and_can_be_taken_back(ledger):
    await ledger.assigned("named", "unnamed")
    await ledger.beat(in_bays=[Hint("named", 1)])

    assert await ledger.sweeping.unclaimed() == [Hint("unnamed", 1)]
    assert await ledger.sweeping.take_back([Hint("named", 1), Hint("unnamed", 1)]) == {"unnamed"}
    assert (await ledger.history("unnamed"))[-1].reason == Reason.UNCLAIMED

    await ledger.beat()
    assert await ledger.sweeping.unclaimed() == [Hint("named", 1)]
    await ledger.beat(in_bays=[Hint("named", 1)])
    await ledger.take(registration("north"))
    assert await ledger.sweeping.unclaimed() == [Hint("named", 1)]


async def test_taking_back_needs_the_attempt_that_was_seen(ledger):
    await ledger.assigned("r")
    seen_as = await ledger.sweeping.unclaimed()
    await ledger.charging.decline([Hint("r", 1)], "north")
    await ledger.dispatch.assign([Assignment("r", 1, "south")])

    assert await ledger.sweeping.take_back(seen_as) == set()

    record = await ledger.intake.request("r")
    assert (record.status, record.substation, record.attempt) == (Status.ASSIGNED, "south", 2)
    assert await ledger.sweeping.take_back([Hint("r", 2)]) == {"r"}


async def test_an_assignment_to_a_substation_that_is_lost_is_unclaimed(ledger):
    await lose(ledger)
    await ledger.assigned("r")

    assert await ledger.sweeping.unclaimed() == [Hint("r", 1)]


async def test_who_stands_in_a_bay_is_claimed_before_who_comes_however_urgent(ledger):
    await ledger.assigned("stands")
    await ledger.assigned("urgent", priority=9)
    hints = [Hint("urgent", 1), Hint("stands", 1)]

    claims = await ledger.charging.claim(hints, "north", 1, 1, in_bays=[Hint("stands", 1)])

    assert [one.request_id for one in claims.claimed] == ["stands"]


async def test_failure_21_a_clock_that_was_set_back_hides_nobody_who_waits_for_a_message(ledger, execute):
    await ledger.accepted("waits")
    await ledger.assigned("assigned")
    execute("UPDATE request SET changed_at_ms = changed_at_ms + 3600000")

    assert [one.request_id for one in await ledger.dispatch.waiting_first(10, 2_000, [])] == ["waits"]
    assert (await ledger.beat(adopt_after_ms=2_000)).overdue == (Hint("assigned", 1),)


async def test_progress_at_an_earlier_attempt_is_not_that_of_the_present_one(ledger):
    await ledger.claimed("r")
    await lose(ledger)
    await ledger.take(registration("north"))
    await ledger.dispatch.assign([Assignment("r", 1, "north")])
    await ledger.claim([Hint("r", 2)], "north", 3)

    [stale] = (await ledger.beat(progress("r", 5, epoch=3, attempt=1), epoch=3)).charging
    [own] = (await ledger.beat(progress("r", 7, epoch=3, attempt=2), epoch=3)).charging

    assert (stale.energy_delivered_j, own.energy_delivered_j) == (0, 7)


async def test_the_registry_tells_who_has_a_lease(ledger):
    await lose(ledger, "north")
    await ledger.tenancy.release([Beat("south", 1, HOLDER, (), (), 0)])

    assert {one.substation: one.has_lease for one in await ledger.dispatch.registry()} == {
        "north": False,
        "south": False,
    }
    await ledger.take(registration("south"))
    assert [one.substation for one in await ledger.dispatch.registry() if one.has_lease] == ["south"]


async def test_an_old_holder_ends_nothing_that_charges_elsewhere_by_now(ledger):
    [claim] = await ledger.claimed("r")
    assert isinstance(claim, Claimed)
    await lose(ledger)
    await ledger.dispatch.assign([Assignment("r", 1, "south")])
    await ledger.claim([Hint("r", 2)], "south", 1)

    assert await ledger.charging.end([ending("r")]) == {}
    assert await ledger.status("r") is Status.CHARGING


async def test_failure_8_one_request_delivered_to_two_substations_is_charged_at_one(ledger, rival):
    await ledger.assigned("r", to="north")

    answers = await asyncio.gather(
        *(one.claim([Hint("r", 1)], at, 1) for one in (ledger, rival) for at in ("south", "north", "south"))
    )

    assert {claim.substation for answer in answers for claim in answer} == {"north"}
    assert [one.status for one in await ledger.history("r")] == ["accepted", "assigned", "charging"]


async def test_failure_12_with_every_substation_lost_requests_wait_and_expire_at_their_deadline(ledger, path):
    await ledger.claimed("charged", at="north")
    await ledger.assigned("assigned", to="south")
    await ledger.accepted("waits")
    for one in ("north", "south"):
        await lose(ledger, one)
    assert {await ledger.status(one) for one in ("charged", "assigned", "waits")} == {Status.ACCEPTED}
    assert await ledger.sweeping.expire() == []

    for one in ("charged", "assigned", "waits"):
        let_the_wait_pass(path, one)

    assert sorted(await ledger.sweeping.expire()) == ["assigned", "charged", "waits"]
    assert {(await ledger.history(one))[-1].reason for one in ("charged", "assigned", "waits")} == {
        Reason.WAITED_TOO_LONG
    }
