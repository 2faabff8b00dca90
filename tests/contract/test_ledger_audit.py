"""The audit: the ledger's rows and histories, held against the promises."""

from services.ledger.records import Breach


async def test_the_audit_finds_nothing_in_a_sound_ledger_and_each_breach_in_a_broken_one(ledger, execute):
    await ledger.claimed("a", "b", "c")
    await ledger.assigned("waits")
    assert await ledger.sweeping.audit() == []

    execute("UPDATE request SET energy_delivered_j = 5 WHERE id = 'a'")
    execute("UPDATE request SET epoch = 7 WHERE id = 'b'")
    execute("UPDATE substation SET connectors = 2 WHERE id = 'north'")
    execute("UPDATE request SET wait_until_ms = 1 WHERE id = 'waits'")
    found = {(one.promise, one.subject): one.after_s for one in await ledger.sweeping.audit()}

    assert found == {
        ("more energy than granted, or granted than asked for", "a"): 0,
        ("charging outside of a tenure", "b"): 0,
        ("more sessions than connectors", "north"): 0,
        ("waiting past its time", "waits"): 30,
    }


async def test_the_audit_finds_a_request_that_ended_twice_and_nothing_in_one_that_ended_once(ledger, execute):
    await ledger.ended("once", "twice")
    assert await ledger.sweeping.audit() == []
    columns = "request_id, at_ms, status, substation, attempt, epoch, reason"
    execute(
        f"INSERT INTO transition ({columns}) SELECT {columns} FROM transition "
        "WHERE request_id = 'twice' AND status = 'completed'"
    )

    assert await ledger.sweeping.audit() == [Breach("ended twice", "twice", 0)]

    execute("DELETE FROM transition WHERE number = (SELECT max(number) FROM transition)")


async def test_the_audit_finds_who_stays_assigned_where_nobody_is(ledger):
    [lease] = [one for one in await ledger.sweeping.leases() if one.substation == "north"]
    await ledger.sweeping.lose([lease])
    await ledger.assigned("r", to="north")
    await ledger.assigned("at-home", to="south")

    assert await ledger.sweeping.audit() == [Breach("assigned where nobody is", "r", 30)]
