"""What PostgreSQL alone does: rivals inside one moment, lost connections, deadlocks."""

import asyncio
import contextlib
import threading

import psycopg
import pytest
from harness.ledger import MANY, Ledger, all_histories, asked, ending, new_request, opened, registration
from harness.postgres import fresh_database

from services.errors import LedgerUnavailable
from services.ledger import dialect, lease_statements, postgres, schema, statements
from services.ledger.committer import Operation
from services.ledger.records import Assignment
from services.ledger.states import Reason, Status, faults
from services.messages import Hint

SERVICE = "application_name = 'evenload'"


@pytest.fixture
def where(where_on_postgres):
    return where_on_postgres


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def waiting_for_a_lock(url):
    return asked(url, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
                      f"AND wait_event_type = 'Lock' AND {SERVICE}")[0][0]  # fmt: skip


@contextlib.asynccontextmanager
async def rival_changes(url, statement):
    """A rival's change, made before what the body starts, and committed once that waits for it."""
    with psycopg.connect(url) as rival:
        rival.execute(statement)
        tasks = []
        yield tasks
        await until(lambda: waiting_for_a_lock(url) == len(tasks))
        rival.commit()


@pytest.mark.parametrize(
    ("status", "kept"), [("cancelled", Status.CANCELLED), ("expired", Status.EXPIRED), ("accepted", Status.ACCEPTED)]
)
async def test_a_claim_that_waited_for_a_rival_ranks_who_is_left_without_a_gap(ledger, path, status, kept):
    await ledger.take(registration("north", connectors=2))
    await ledger.assigned("a", "b", "c")

    async with rival_changes(path, f"UPDATE request SET status = '{status}' WHERE id = 'a'") as waiting:
        waiting.append(asyncio.create_task(ledger.claim([Hint(one, 1) for one in "abc"], "north", 2)))

    assert [(one.request_id, one.claim_number) for one in await waiting[0]] == [("b", 1), ("c", 2)]
    assert await ledger.status("a") == kept


async def test_a_claim_that_waited_for_a_takeover_claims_nothing(ledger, path):
    await ledger.assigned("a")

    async with rival_changes(path, "UPDATE substation SET epoch = epoch + 1 WHERE id = 'north'") as waiting:
        waiting.append(asyncio.create_task(ledger.claim([Hint("a", 1)], "north", 1)))

    assert await waiting[0] == []
    assert await ledger.status("a") == Status.ASSIGNED


async def test_a_claim_that_waited_for_another_counts_what_that_claimed(ledger, rival, path):
    await ledger.take(registration("north", connectors=1))
    await ledger.assigned("a", "b")
    both_wait = "UPDATE substation SET bays = bays WHERE id = 'north'"

    async with rival_changes(path, both_wait) as waiting:
        waiting += [
            asyncio.create_task(one.charging.claim([Hint(request_id, 1)], "north", 2, 1))
            for one, request_id in ((ledger, "a"), (rival, "b"))
        ]

    answers = [await one for one in waiting]
    assert sorted((len(one.claimed), len(one.held)) for one in answers) == [(0, 1), (1, 0)]


async def test_ends_that_waited_for_each_other_are_numbered_without_a_gap(ledger, rival, path):
    await ledger.claimed("a", "b")

    async with rival_changes(path, "UPDATE substation SET bays = bays WHERE id = 'north'") as waiting:
        waiting += [
            asyncio.create_task(one.charging.end([ending(request_id)]))
            for one, request_id in ((ledger, "a"), (rival, "b"))
        ]

    answers = [await one for one in waiting]
    assert sorted(number for answer in answers for number in answer.values()) == [1, 2]


async def test_a_takeover_that_waited_for_a_claim_takes_its_session_along(ledger, rival, path):
    await ledger.assigned("a")
    with psycopg.connect(path, row_factory=psycopg.rows.dict_row) as claiming:
        transaction = postgres.PostgresTransaction(claiming)
        transaction.execute(statements.LOCK_SUBSTATIONS, [["north"]])
        [seen] = [one for one in await rival.sweeping.leases() if one.substation == "north"]
        taking_over = asyncio.create_task(rival.tenancy.take([registration("north")], {"north": seen}, "rival #2"))
        await until(lambda: waiting_for_a_lock(path) == 1)
        assert len(transaction.execute(statements.CLAIM, [["a", 1, "north", 1, 1, 0, 0, 1]])) == 1

    assert await taking_over == {"north": 2}
    answer = await rival.beat(epoch=2, holder="rival #2")
    assert [one.request_id for one in answer.charging] == ["a"]


async def test_a_sweep_that_waited_for_a_beat_loses_nobody(ledger, rival, path):
    await ledger.claimed("a")
    [seen] = [one for one in await rival.sweeping.leases() if one.substation == "north"]

    async with rival_changes(path, "UPDATE substation SET renewals = renewals + 1 WHERE id = 'north'") as waiting:
        waiting.append(asyncio.create_task(rival.sweeping.lose([seen])))

    assert await waiting[0] == []
    assert await ledger.status("a") == Status.CHARGING


async def test_a_sweep_that_waited_for_a_withdrawal_stops_the_session(ledger, rival, path):
    await ledger.claimed("a")
    [seen] = [one for one in await rival.sweeping.leases() if one.substation == "north"]

    async with rival_changes(path, "UPDATE request SET stop_asked = 1 WHERE id = 'a'") as waiting:
        waiting.append(asyncio.create_task(rival.sweeping.lose([seen])))

    assert [(one.request_id, one.status) for one in await waiting[0]] == [("a", Status.STOPPED)]


async def test_a_sweep_that_waited_for_a_claim_sends_its_session_elsewhere(ledger, rival, path):
    await ledger.assigned("a")
    [seen] = [one for one in await rival.sweeping.leases() if one.substation == "north"]
    with psycopg.connect(path, row_factory=psycopg.rows.dict_row) as claiming:
        transaction = postgres.PostgresTransaction(claiming)
        transaction.execute(statements.LOCK_SUBSTATIONS, [["north"]])
        losing = asyncio.create_task(rival.sweeping.lose([seen]))
        await until(lambda: waiting_for_a_lock(path) == 1)
        assert len(transaction.execute(statements.CLAIM, [["a", 1, "north", 1, 1, 0, 0, 1]])) == 1

    assert [(one.request_id, one.status) for one in await losing] == [("a", Status.ACCEPTED)]


@pytest.mark.parametrize(
    "change", ["status = 'assigned', attempt = 1, substation = 'south'", "status = 'cancelled'", "status = 'expired'"]
)
async def test_an_assignment_that_waited_for_a_rival_changes_nothing(ledger, path, change):
    await ledger.accepted("a", "b")

    async with rival_changes(path, f"UPDATE request SET {change} WHERE id = 'a'") as waiting:
        waiting.append(asyncio.create_task(ledger.dispatch.assign([Assignment(one, 0, "north") for one in "ab"])))

    assert await waiting[0] == {"b"}


async def test_an_expiry_that_waited_for_an_assignment_ends_it_with_a_history_in_order(ledger, path):
    await ledger.accepted("a", wait_max_ms=0)
    later = "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint) + 60000"

    async with rival_changes(
        path, f"UPDATE request SET status = 'assigned', attempt = 1, reason = 'dispatched', substation = 'north', "
        f"changed_at_ms = {later} WHERE id = 'a'"
    ) as waiting:  # fmt: skip
        waiting.append(asyncio.create_task(ledger.sweeping.expire()))

    assert await waiting[0] == ["a"]
    assert [one.status for one in await ledger.history("a")] == ["accepted", "assigned", "expired"]


async def test_one_key_of_two_processes_at_one_moment_is_one_request(ledger, path):
    with psycopg.connect(path, row_factory=psycopg.rows.dict_row) as rival:
        transaction = postgres.PostgresTransaction(rival)
        row = ["first", "EV-1", 1, 1, 0, None, None, None, 600_000, "k", "h"]
        transaction.execute(statements.ACCEPT, [row])
        asking = asyncio.create_task(ledger.intake.accept([new_request("second", idempotency_key="k", body_hash="h")]))
        await until(lambda: waiting_for_a_lock(path) == 1)

    [answer] = await asking
    assert (answer.asked, answer.request_id) == ("second", "first")


async def test_who_is_chosen_as_the_victim_of_a_deadlock_is_run_again_and_answers_once(ledger, path):
    await ledger.accepted("a", "z")

    def assign(transaction, rows):
        """Takes `z`, lets a rival take `a` and wait for `z`, then wants `a`: a ring, the first time."""
        done = transaction.execute(statements.ASSIGN, [["z", 0, "north", "{}"]])
        holds_z.set()
        rival_waits.wait(20)
        attempts.append(done)
        done += transaction.execute(statements.ASSIGN, [["a", 0, "north", "{}"]])
        return [{"id": "both", "changed": [row["id"] for row in done]}]

    attempts, holds_z, rival_waits = [], threading.Event(), threading.Event()
    with psycopg.connect(path) as rival:
        # Whoever waits longer than this looks for a ring, and is its victim.
        rival.execute("SET deadlock_timeout = '60s'")
        rival.execute("SELECT 1 FROM request WHERE id = 'a' FOR UPDATE")
        asking = asyncio.create_task(ledger.connection.write(Operation("ring", "id", assign), [{"id": "both"}]))
        await until(holds_z.is_set)
        waits = asyncio.create_task(asyncio.to_thread(rival.execute, "SELECT 1 FROM request WHERE id = 'z' FOR UPDATE"))
        await until(lambda: asked(path, "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
                                        "AND datname = current_database()") == [(1,)])  # fmt: skip
        rival_waits.set()
        await waits

    assert await asking == [{"id": "both", "changed": ["z", "a"]}]
    assert len(attempts) > 1
    assert await ledger.status("a") == Status.ASSIGNED


def end_connections(url):
    return asked(
        url,
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
        f"WHERE datname = current_database() AND {SERVICE}",
    )[0][0]


async def test_lost_connections_are_made_anew_by_the_next_write_and_read(ledger, path):
    await ledger.accepted("a")
    await ledger.status("a")

    for number in range(3):
        assert end_connections(path) == 2
        await ledger.accepted(f"b{number}")
        assert await ledger.status(f"b{number}") == Status.ACCEPTED

    assert (await ledger.intake.counts())[Status.ACCEPTED] == 4


async def test_a_connection_lost_inside_a_transaction_leaves_nothing_and_is_written_once(ledger, path):
    def accept(transaction, rows):
        done = transaction.execute(statements.AGREE, [["speed", "1"]])
        attempts.append(done)
        if len(attempts) == 1:
            end_connections(path)
        return [{"id": "x", "kept": transaction.execute(statements.AGREED, [["speed", ""]])[0]["value"]}]

    attempts = []
    answer = await ledger.connection.write(Operation("speak", "id", accept), [{"id": "x"}])

    assert answer == [{"id": "x", "kept": "60"}]
    assert len(attempts) == 2


async def test_a_connection_lost_during_the_commit_is_told_as_unknown_and_nothing_is_written_again(ledger, path):
    with psycopg.connect(path) as database:
        database.execute(
            "CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_terminate_backend(pg_backend_pid()), pg_sleep(20); RETURN NULL; END $$"
        )
        database.execute(
            "CREATE CONSTRAINT TRIGGER dies AFTER INSERT ON request DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION die()"
        )

    with pytest.raises(LedgerUnavailable, match="outcome is unknown"):
        await ledger.accepted("a")

    with psycopg.connect(path) as database:
        database.execute("DROP TRIGGER dies ON request")
    await ledger.accepted("a")
    assert await ledger.status("a") == Status.ACCEPTED


async def test_a_row_that_stays_locked_is_answered_in_time_by_its_cause(ledger, path):
    await ledger.accepted("a")

    with psycopg.connect(path) as rival:
        rival.execute("SELECT 1 FROM request WHERE id = 'a' FOR UPDATE")
        with pytest.raises(LedgerUnavailable, match="lock timeout"):
            await ledger.dispatch.assign([Assignment("a", 0, "north")])
    assert await ledger.dispatch.assign([Assignment("a", 0, "north")]) == {"a"}


async def test_a_process_that_stands_still_inside_a_transaction_loses_it_and_its_locks(ledger, rival, path):
    def stand_still(transaction, rows):
        transaction.execute(statements.LOCK_SUBSTATIONS, [["north"]])
        holds.set()
        goes_on.wait(20)
        return transaction.execute(statements.LOCK_SUBSTATIONS, [["north"]])

    await ledger.assigned("a")
    holds, goes_on = threading.Event(), threading.Event()
    standing = asyncio.create_task(ledger.connection.write(Operation("stand", "id", stand_still), [{"id": "north"}]))
    await until(holds.is_set)

    assert len(await rival.claim([Hint("a", 1)], "north", 1)) == 1
    goes_on.set()
    assert await standing == [{"id": "north"}]


@pytest.mark.parametrize("text", ["a\x00b", "\ud800", "\x00"])
async def test_an_id_that_no_database_can_hold_is_not_there_and_harms_nobody(ledger, text):
    await ledger.assigned("good")

    assert await ledger.intake.request(text) is None
    assert await ledger.intake.withdraw(text) is None
    assert len(await ledger.claim([Hint(text, 1), Hint("good", 1)], "north", 1)) == 1


async def test_a_ledger_that_was_emptied_of_its_processes_opens_with_everything_committed(postgres_url):
    async with opened(postgres_url) as connection:
        ledger = Ledger(connection)
        await ledger.take(registration("north"))
        await ledger.claimed(*MANY)
        assert end_connections(postgres_url) >= 1

    async with opened(postgres_url) as connection:
        answer = await Ledger(connection).beat()
    assert {one.request_id for one in answer.charging} == set(MANY)


def test_a_column_has_the_same_type_in_rows_as_in_its_table(postgres):
    named = {
        column.strip()
        for text in {**vars(statements), **vars(lease_statements)}.values()
        if isinstance(text, str)
        for _, columns in dialect.ROWS.findall(text)
        for column in columns.split(",")
    }
    with fresh_database(postgres) as url, psycopg.connect(url) as connection:
        for statement in schema.POSTGRES:
            connection.execute(statement)
        kinds = dict(
            connection.execute(
                "SELECT column_name, data_type FROM information_schema.columns WHERE table_schema = 'public'"
            ).fetchall()
        )

    assert {one for one in named if kinds.get(one) == "bigint"} == dialect.INTEGER_COLUMNS & kinds.keys()
    assert named >= dialect.INTEGER_COLUMNS


async def test_writers_at_one_row_from_two_processes_leave_sound_histories(ledger, rival, path):
    """Batches in opposite orders, over and over: rings are broken, and nobody is answered twice."""
    await ledger.accepted(*MANY)
    for attempt in range(4):
        answers = await asyncio.gather(
            *(
                one.dispatch.assign([Assignment(request_id, attempt, to) for request_id in order])
                for one, to, order in ((ledger, "north", MANY), (rival, "south", MANY[::-1]))
            )
        )
        assert sorted(request_id for answer in answers for request_id in answer) == MANY
        taken_back = [
            await one.dispatch.give_back([Hint(request_id, attempt + 1) for request_id in MANY], at, Reason.DECLINED)
            for one, at in ((ledger, "north"), (rival, "south"))
        ]
        assert taken_back == answers

    histories, _ = all_histories(path)
    assert all(faults(history) == [] for history in histories.values())
    assert sorted(histories) == MANY
