"""A rule of the operator's own forbids changes to one accepted request: no lease, and no other request, suffers."""

import asyncio
import contextlib
import time
from types import SimpleNamespace

import pytest
from harness.ledger import FORBIDDEN, HOLDER, Ledger, asked, changed, opened, progress, registration
from structlog.testing import capture_logs

from services.errors import LedgerRefused
from services.ledger.charging import LedgerCharging
from services.ledger.records import Beat
from services.ledger.states import Reason, Status
from services.ledger.tenancy import LedgerTenancy
from services.messages import Hint
from substations.heartbeat import Host
from substations.substation import Substation
from substations.worker import Worker

PATIENCE_S = 20
IS_FORBIDDEN = f"NEW.vehicle_id = '{FORBIDDEN}'"
MAKES_PROGRESS = f"{IS_FORBIDDEN} AND NEW.energy_delivered_j > OLD.energy_delivered_j"


def host_of(ledger, *substations):
    """A process that hosts these substations, with a lease that no test outlasts."""
    workers = {
        one: Worker(
            Substation(
                id=one, rated_w=380_000, limit_w=304_000, connectors=4, bays=2, speed=60.0, grant_s=600,
                ticked_at_s=time.monotonic(),
            ),
            LedgerCharging(ledger.connection),
        )
        for one in substations
    }  # fmt: skip
    kinds = [registration(one, connectors=4) for one in substations]
    tenancy = LedgerTenancy(ledger.connection)
    return workers, Host(workers, kinds, tenancy, holder="me #1", lease_s=600.0, heartbeat_s=1.0)


async def beat_once(host, workers):
    """Take what is not held, and beat, for each substation."""
    for one in workers:
        await host.take(one)
        await host.beat(one)


async def charging(workers, ledger, at="west"):
    """Have a permitted and a forbidden vehicle charge there."""
    await ledger.assigned("good", to=at)
    await ledger.assigned("bad", to=at, vehicle_id=FORBIDDEN)
    await workers[at].take_in([Hint("good", 1), Hint("bad", 1)])
    assert set(workers[at].substation.sessions) == {"good", "bad"}


def pass_time(substation, seconds):
    """Let so much time pass at once for a substation."""
    substation.ticked_at_s -= seconds
    substation.tick(time.monotonic())


async def claimed(ledger, *request_ids, at="north"):
    """Have requests charge; the one named `bad` is the forbidden vehicle's."""
    for one in request_ids:
        await ledger.claimed(one, at=at, vehicle_id=FORBIDDEN if one == "bad" else f"EV-{one}")


def states(path):
    return dict(asked(path, "SELECT id, status FROM request"))


def refusals(said):
    return [(line["operation"], line["id"]) for line in said if line["event"] == "row_refused"]


# --- a refusal is no loss -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["progress", "renewal", "dropped renewal"])
async def test_a_beat_that_is_refused_loses_no_lease_and_delivers_no_energy_twice(ledger, path, forbid, rule):
    workers, host = host_of(ledger, "west", "east")
    await beat_once(host, workers)
    await charging(workers, ledger)
    west = workers["west"].substation
    if rule == "progress":
        forbid("UPDATE", "request", MAKES_PROGRESS)
    else:
        renews = "NEW.id = 'west' AND NEW.renewals > OLD.renewals AND NEW.epoch = OLD.epoch"
        forbid("UPDATE", "substation", renews, aloud=rule == "renewal")

    with capture_logs() as said:
        for _ in range(4):
            pass_time(west, 2)
            await beat_once(host, workers)

    told = {line["event"] for line in said}
    assert not told & {"lease_lost", "substation_taken", "sessions_adopted"}
    assert ("heartbeat_missed" in told) is (rule != "progress")
    assert (west.epoch, set(west.sessions)) == (1, {"good", "bad"})
    granted = dict(asked(path, "SELECT id, energy_granted_j FROM request"))
    assert west.energy_total_j == sum(one.delivered_j for one in west.sessions.values()) <= sum(granted.values())
    assert all(session.delivered_j <= granted[one] for one, session in west.sessions.items())
    assert workers["east"].substation.renewals_total == 5


async def test_an_epoch_that_was_lost_is_never_begun_again_by_its_holder(ledger, path):
    """Its sessions would begin again at the ledger's figures, below what was delivered since the last beat."""
    workers, host = host_of(ledger, "west")
    await beat_once(host, workers)
    await charging(workers, ledger)
    west = workers["west"].substation
    pass_time(west, 2)
    west.lose()

    await beat_once(host, workers)

    assert west.epoch == 2
    granted = dict(asked(path, "SELECT id, energy_delivered_j FROM request"))
    assert {one: session.delivered_j for one, session in west.sessions.items()} == granted
    assert west.energy_total_j <= sum(granted.values())


async def test_a_lease_that_cannot_be_taken_keeps_no_other_from_being_renewed(ledger, forbid):
    forbid("INSERT", "substation", "NEW.id = 'east'")
    workers, host = host_of(ledger, "west", "east")
    west, east = (workers[one].substation for one in ("west", "east"))
    beating = asyncio.create_task(host.beat_for_ever())

    async with asyncio.timeout(PATIENCE_S):
        while west.renewals_total < 3:
            await asyncio.sleep(0.01)

    beating.cancel()
    await asyncio.gather(beating, return_exceptions=True)
    assert (west.epoch, east.epoch) == (1, 0)


@pytest.mark.parametrize("aloud", [True, False])
async def test_an_end_that_is_refused_keeps_its_connector_beside_one_that_is_written(ledger, path, forbid, aloud):
    workers, host = host_of(ledger, "west")
    await beat_once(host, workers)
    await charging(workers, ledger)
    forbid("UPDATE", "request", f"{IS_FORBIDDEN} AND NEW.status = 'stopped'", aloud=aloud)
    west = workers["west"].substation
    west.stop([("good", 1), ("bad", 1)])

    with capture_logs() as said:
        workers["west"].tick(time.monotonic())
        await workers["west"].settle()

    assert set(west.sessions) == {"bad"}
    assert states(path) == {"good": "stopped", "bad": "charging"}
    assert west.ends_by_reason[Reason.REMOTE] == 1
    events = [(line["event"], line.get("requests")) for line in said]
    assert ("ends_left_unwritten", 1) in events
    assert "end_not_ours" not in {event for event, _ in events}


# --- a refusal is the refused request's alone ---------------------------------------------------------------------


async def test_a_beat_writes_all_progress_but_the_refused(ledger, path, forbid):
    await claimed(ledger, "a", "bad", "b")
    await ledger.assigned("parked", "gone")
    forbid("UPDATE", "request", MAKES_PROGRESS)

    with capture_logs() as said:
        for delivered_j in (1_000, 2_000):
            told = [progress(one, delivered_j, wanted_j=9_000) for one in ("a", "bad", "b")]
            answer = await ledger.beat(*told, in_bays=[Hint("parked", 1)], grant_s=1)

    assert {one.request_id: (one.energy_delivered_j, one.energy_granted_j) for one in answer.charging} == {
        "a": (2_000, 9_000), "bad": (0, 0), "b": (2_000, 9_000)
    }  # fmt: skip
    assert asked(path, "SELECT id, bay_epoch FROM request WHERE status = 'assigned' ORDER BY id") == [
        ("gone", None), ("parked", 1)
    ]  # fmt: skip
    assert refusals(said) == [("beat", "bad")]


async def test_a_bay_that_may_not_be_noted_leaves_the_others_noted(ledger, path, forbid):
    await ledger.assigned("a", "b")
    await ledger.assigned("bad", vehicle_id=FORBIDDEN)
    standing = [Hint(one, 1) for one in ("a", "bad", "b")]
    forbid("UPDATE", "request", IS_FORBIDDEN)

    answer = await ledger.beat(in_bays=standing)

    assert {hint.request_id for hint in answer.assigned} == {"a", "bad", "b"}
    assert dict(asked(path, "SELECT id, bay_epoch FROM request")) == {"a": 1, "bad": None, "b": 1}


async def test_a_lost_substation_gives_up_all_requests_but_the_refused(ledger, path, forbid):
    await claimed(ledger, "a", "bad", "b")
    await claimed(ledger, "s", at="south")
    await ledger.assigned("waits")
    forbid("UPDATE", "request", IS_FORBIDDEN)

    with capture_logs() as said:
        swept = await ledger.sweeping.lose(await ledger.sweeping.leases())

    assert {(one.request_id, one.status) for one in swept} == {
        (one, Status.ACCEPTED) for one in ("a", "b", "s", "waits")
    }
    assert states(path) == {"a": "accepted", "b": "accepted", "s": "accepted", "waits": "accepted", "bad": "charging"}
    assert {one.substation: (one.holder, one.epoch) for one in await ledger.sweeping.leases()} == {
        "north": (None, 2), "south": (None, 2)
    }  # fmt: skip
    assert refusals(said) == [("lose", "bad")]


async def test_orphans_go_on_but_for_the_refused_one(ledger, path, forbid):
    await claimed(ledger, "a", "bad", "b")
    await claimed(ledger, "s", at="south")
    forbid("UPDATE", "request", IS_FORBIDDEN)
    changed(path, "UPDATE substation SET epoch = epoch + 1, holder = NULL")

    with capture_logs() as said:
        first, second = [await ledger.sweeping.lose_orphans() for _ in range(2)]

    assert ({one.request_id for one in first}, second) == ({"a", "b", "s"}, [])
    assert states(path) == {"a": "accepted", "b": "accepted", "s": "accepted", "bad": "charging"}
    assert refusals(said) == [("lose_orphans", "bad")]


async def test_who_takes_a_substation_over_resumes_all_sessions_but_the_refused(ledger, rival, path, forbid):
    await ledger.take(registration("small", connectors=3))
    await claimed(ledger, "a", "bad", "b", at="small")
    forbid("UPDATE", "request", IS_FORBIDDEN)

    assert await rival.take(registration("small", connectors=2), holder="rival #2") == {"small": 2}

    rows = asked(path, "SELECT id, status, epoch, interruptions FROM request ORDER BY id")
    # The forbidden session has the second connector still.
    assert rows == [("a", "charging", 2, 1), ("b", "accepted", 1, 1), ("bad", "charging", 1, 0)]


async def test_a_release_settles_all_sessions_but_the_refused_whose_grant_then_counts_as_delivered(
    ledger, path, forbid
):
    await claimed(ledger, "a", "bad")
    await ledger.beat(*(progress(one, 1_000, wanted_j=9_000) for one in ("a", "bad")))
    forbid("UPDATE", "request", MAKES_PROGRESS)
    told = tuple(progress(one, 2_000, wanted_j=9_000) for one in ("a", "bad"))

    assert await ledger.tenancy.release([Beat("north", 1, HOLDER, told, (), 0)]) == {"north"}

    grants = "SELECT id, energy_delivered_j, energy_granted_j FROM request ORDER BY id"
    assert asked(path, grants) == [("a", 2_000, 2_000), ("bad", 1_000, 9_000)]
    changed(path, "DROP TRIGGER forbidden_update_request" + (" ON request" if isinstance(path, str) else ""))
    leases = [one for one in await ledger.sweeping.leases() if one.substation == "north"]
    assert {one.request_id for one in await ledger.sweeping.lose(leases)} == {"a", "bad"}
    assert asked(path, grants) == [("a", 2_000, 2_000), ("bad", 9_000, 9_000)]


async def test_with_every_change_refused_a_lost_substation_is_given_up_all_the_same(ledger, path, forbid):
    await claimed(ledger, *(f"r{number}" for number in range(8)))
    forbid("UPDATE", "request", "NEW.id <> ''")

    assert await ledger.sweeping.lose(await ledger.sweeping.leases()) == []

    assert set(states(path).values()) == {"charging"}
    assert {one.holder for one in await ledger.sweeping.leases()} == {None}


async def test_what_was_not_tried_in_time_is_left_to_the_next_sweep(ledger, path, forbid, monkeypatch):
    await claimed(ledger, "a", "bad", "b")
    forbid("UPDATE", "request", IS_FORBIDDEN)
    with monkeypatch.context() as patch:
        patch.setattr("services.ledger.sparing.SEARCH_FOR_S", -1.0)
        assert await ledger.sweeping.lose(await ledger.sweeping.leases()) == []
        assert set(states(path).values()) == {"charging"}

    assert {one.request_id for one in await ledger.sweeping.lose_orphans()} == {"a", "b"}


class SlowClock:
    """A clock that a search looks at; each look takes so long."""

    def __init__(self, monkeypatch, each_s):
        self.now_s, self.each_s = 0.0, each_s
        monkeypatch.setattr("services.ledger.sparing.time", SimpleNamespace(monotonic=self.monotonic))

    def monotonic(self):
        self.now_s += self.each_s
        return self.now_s


async def test_searches_that_run_out_of_time_go_on_where_the_last_ended(ledger, path, forbid, monkeypatch):
    names = [f"r{number:02}" for number in range(16)]
    for number, one in enumerate(names):
        await ledger.claimed(one, vehicle_id=FORBIDDEN if number % 4 == 3 else f"EV-{one}")
    forbid("UPDATE", "request", MAKES_PROGRESS)
    clock = SlowClock(monkeypatch, 0.3)

    with capture_logs() as said:
        for delivered_j in range(1, 13):
            await ledger.beat(*(progress(one, delivered_j, wanted_j=9_000) for one in names))
    delivered = dict(asked(path, "SELECT id, energy_delivered_j FROM request"))
    assert delivered == {one: 0 if number % 4 == 3 else 12 for number, one in enumerate(names)}
    gave_up = [line for line in said if line["event"] == "refused_requests_not_all_found"]
    assert (gave_up[0]["operation"], gave_up[0]["refused"]) == ("beat", 0)
    assert len(gave_up) < 12

    changed(path, "DROP TRIGGER forbidden_update_request" + (" ON request" if isinstance(path, str) else ""))
    await ledger.beat(*(progress(one, 13, wanted_j=9_000) for one in names))
    assert asked(path, "SELECT count(*) FROM request WHERE energy_delivered_j = 13") == [(12,)]
    clock.now_s += 60.0
    await ledger.beat(*(progress(one, 14, wanted_j=9_000) for one in names))
    assert asked(path, "SELECT count(*) FROM request WHERE energy_delivered_j = 14") == [(16,)]


async def test_a_refused_request_at_each_of_many_substations_fails_no_beat(ledger, path, forbid, monkeypatch):
    places = [f"p{number}" for number in range(6)]
    await ledger.take(*(registration(one) for one in places))
    for one in places:
        await ledger.claimed(f"good {one}", at=one)
        await ledger.claimed(f"bad {one}", at=one, vehicle_id=FORBIDDEN)
    forbid("UPDATE", "request", MAKES_PROGRESS)
    monkeypatch.setattr("services.ledger.halving.HALVE_FOR_S", -1.0)

    for delivered_j in (1_000, 2_000):
        beats = [
            Beat(one, 1, HOLDER, tuple(progress(f"{kind} {one}", delivered_j, at=one) for kind in ("good", "bad")),
                 (), 0)
            for one in places
        ]  # fmt: skip
        assert {one.substation for one in await ledger.tenancy.beat(beats, 0)} == set(places)

    told = dict(asked(path, "SELECT id, energy_delivered_j FROM request"))
    assert told == {f"{kind} {one}": 2_000 * (kind == "good") for one in places for kind in ("good", "bad")}


async def test_a_rule_that_is_judged_at_the_commit_spares_the_others_on_postgresql(postgres_url):
    async with opened(postgres_url) as connection:
        ledger = Ledger(connection)
        await ledger.take(registration("north"))
        await claimed(ledger, "a", "bad", "b")
        changed(postgres_url, "CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                              "RAISE check_violation USING MESSAGE = 'not here'; END $$")  # fmt: skip
        changed(postgres_url, "CREATE CONSTRAINT TRIGGER late AFTER UPDATE ON request DEFERRABLE INITIALLY DEFERRED "
                              f"FOR EACH ROW WHEN ({IS_FORBIDDEN}) EXECUTE FUNCTION late()")  # fmt: skip

        await ledger.sweeping.lose(await ledger.sweeping.leases())

    assert states(postgres_url) == {"a": "accepted", "b": "accepted", "bad": "charging"}


# --- retention ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aloud", [True, False])
@pytest.mark.parametrize(("most", "each_time"), [(500, [4]), (2, [2, 2])])
async def test_a_request_that_may_not_be_deleted_keeps_no_other_from_being_forgotten(
    ledger, path, forbid, most, each_time, aloud
):
    """The oldest are held, and with a `most` below their number they alone would fill the first page."""
    held, others = [f"held{number}" for number in range(3)], [f"free{number}" for number in range(4)]
    await ledger.ended(*held, *others)
    if aloud and isinstance(path, str):
        changed(path, "CREATE TABLE bill (request TEXT REFERENCES request (id))")
        changed(path, "INSERT INTO bill SELECT id FROM request WHERE id > 'h'")
    else:  # SQLite keeps foreign keys only for a connection that asks for it
        forbid("DELETE", "request", "OLD.id > 'h'", aloud=aloud)

    assert [await ledger.sweeping.forget(0, most) for _ in each_time] == each_time

    with contextlib.suppress(LedgerRefused):
        assert await ledger.sweeping.forget(0, most) == 0
    assert sorted(states(path)) == held
    assert asked(path, "SELECT count(DISTINCT request_id) FROM transition") == [(len(held),)]


async def test_pages_of_held_requests_that_ended_at_once_leave_none_of_any_state_unforgotten(
    ledger, path, forbid, monkeypatch
):
    monkeypatch.setattr("services.ledger.sweeping.FORGET_PAGE", 2)
    held = [f"held{number}" for number in range(5)]
    await ledger.accepted("gone1", "gone2", "gone3")
    for one in ("gone1", "gone2", "gone3"):
        await ledger.intake.withdraw(one)
    await ledger.ended(*held, "free1", "free2")
    changed(path, "UPDATE request SET changed_at_ms = 5")
    forbid("DELETE", "request", "OLD.id > 'h'")

    assert await ledger.sweeping.forget(0, 500) == 5

    assert sorted(states(path)) == held
