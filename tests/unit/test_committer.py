import asyncio
import contextlib
import threading
import time
from types import SimpleNamespace

import pytest
from structlog.testing import capture_logs

from services.errors import LedgerRefused, LedgerUnavailable
from services.ledger.committer import GROUP_MAX_ROWS, Committer, Operation

PATIENCE_S = 10


class Held:
    """A transaction that has begun and waits for the test to let it go on."""

    def __init__(self):
        self.begun = threading.Event()
        self.go_on = threading.Event()


class MemoryDriver:
    """Notes what each transaction wrote; one that is told to fail writes nothing."""

    def __init__(self):
        self.transactions = []
        self.faults = []
        """One for each transaction to come; None for one that goes well."""
        self.undone = 0
        """How many transactions the database will undo once, so that they are run again."""
        self.held = []
        self.closed = threading.Event()
        self.transaction = list

    def hold_next(self):
        self.held.append(Held())
        return self.held[-1]

    def run(self, work):
        if self.held:
            held = self.held.pop(0)
            held.begun.set()
            assert held.go_on.wait(PATIENCE_S)
        written = self.transaction()
        work(written)
        if self.undone:
            self.undone -= 1
            written = []
            work(written)
        if self.faults and (fault := self.faults.pop(0)) is not None:
            raise fault
        self.transactions.append(written)

    def close(self):
        self.closed.set()


def _write(transaction, rows):
    transaction.append([row["key"] for row in rows])
    return [{"key": row["key"], "wrote": row["key"].upper()} for row in rows if row["key"] != "nobody"]


def _write_other(transaction, rows):
    return _write(transaction, rows)


WRITE = Operation("write", "key", _write)
OTHER = Operation("other", "key", _write_other)


def rows(*keys):
    return [{"key": key} for key in keys]


@pytest.fixture
def driver():
    return MemoryDriver()


@pytest.fixture
async def committer(driver):
    one = Committer(lambda: driver, deadline_s=PATIENCE_S)
    yield one
    await one.close()


@contextlib.asynccontextmanager
async def while_a_transaction_runs(driver, committer):
    """Inside the block the writer is busy with a transaction of its own, so what is submitted gathers."""
    held = driver.hold_next()
    first = asyncio.create_task(committer.submit(WRITE, rows("first")))
    assert await asyncio.to_thread(held.begun.wait, PATIENCE_S)
    try:
        yield
    finally:
        held.go_on.set()
        await asyncio.gather(first, return_exceptions=True)


async def submitting(committer, *work):
    """Tasks that have all been submitted when this returns."""
    tasks = [asyncio.create_task(committer.submit(operation, theirs)) for operation, theirs in work]
    await asyncio.sleep(0)
    return tasks


async def test_a_single_operation_is_written_at_once_and_answered(driver, committer):
    assert await committer.submit(WRITE, rows("a", "b")) == [
        {"key": "a", "wrote": "A"},
        {"key": "b", "wrote": "B"},
    ]
    assert driver.transactions == [[["a", "b"]]]


async def test_nothing_to_write_is_no_transaction(driver, committer):
    assert await committer.submit(WRITE, []) == []
    assert driver.transactions == []


async def test_what_gathers_while_a_commit_runs_becomes_one_transaction_with_one_statement_per_kind(driver, committer):
    async with while_a_transaction_runs(driver, committer):
        tasks = await submitting(
            committer, (WRITE, rows("a")), (OTHER, rows("x")), (WRITE, rows("b", "c")), (OTHER, rows("y"))
        )
    await asyncio.gather(*tasks)

    assert driver.transactions == [[["first"]], [["a", "b", "c"], ["x", "y"]]]


async def test_each_is_answered_with_its_own_rows_and_only_those_that_changed(driver, committer):
    async with while_a_transaction_runs(driver, committer):
        tasks = await submitting(committer, (WRITE, rows("a")), (WRITE, rows("nobody")), (WRITE, rows("b", "c")))

    assert await asyncio.gather(*tasks) == [
        [{"key": "a", "wrote": "A"}],
        [],
        [{"key": "b", "wrote": "B"}, {"key": "c", "wrote": "C"}],
    ]


async def test_a_transaction_that_was_undone_and_run_again_answers_once(driver, committer):
    driver.undone = 1

    assert await committer.submit(WRITE, rows("a")) == [{"key": "a", "wrote": "A"}]


async def test_a_key_twice_in_a_kind_waits_for_the_next_transaction(driver, committer):
    async with while_a_transaction_runs(driver, committer):
        tasks = await submitting(
            committer, (WRITE, rows("a")), (WRITE, rows("a", "b")), (WRITE, rows("c")), (WRITE, rows("a"))
        )
    answers = await asyncio.gather(*tasks)

    assert driver.transactions == [[["first"]], [["a", "c"]], [["a", "b"]], [["a"]]]
    assert [len(answer) for answer in answers] == [1, 2, 1, 1]


async def test_the_same_key_in_two_kinds_shares_a_transaction(driver, committer):
    async with while_a_transaction_runs(driver, committer):
        tasks = await submitting(committer, (WRITE, rows("a")), (OTHER, rows("a")))
    await asyncio.gather(*tasks)

    assert driver.transactions == [[["first"]], [["a"], ["a"]]]


async def test_a_transaction_is_bounded_and_the_rest_follows(driver, committer):
    many = [f"k{number}" for number in range(GROUP_MAX_ROWS)]
    async with while_a_transaction_runs(driver, committer):
        tasks = await submitting(committer, (WRITE, rows(*many)), (WRITE, rows("late")))
    await asyncio.gather(*tasks)

    assert driver.transactions == [[["first"]], [many], [["late"]]]


async def test_what_nobody_waits_for_any_more_is_not_written_behind_their_back(driver, committer):
    async with while_a_transaction_runs(driver, committer):
        gone, stays = await submitting(committer, (WRITE, rows("gone")), (WRITE, rows("stays")))
        gone.cancel()
        await asyncio.wait({gone})
    await stays

    assert driver.transactions == [[["first"]], [["stays"]]]


async def test_what_waits_for_the_lock_past_its_deadline_is_never_written(driver):
    committer = Committer(lambda: driver, deadline_s=0.02)
    held = driver.hold_next()  # the driver has the group, and waits for another process's lock
    waiting = asyncio.create_task(committer.submit(WRITE, rows("waiting")))
    await asyncio.to_thread(held.begun.wait, PATIENCE_S)
    with pytest.raises(LedgerUnavailable, match="other could not begin"):
        await committer.submit(OTHER, rows("behind"))
    with pytest.raises(LedgerUnavailable, match="write could not begin"):
        await waiting

    held.go_on.set()
    await committer.close()
    assert await asyncio.to_thread(driver.closed.wait, PATIENCE_S)

    assert driver.transactions == [[]]


async def test_what_has_begun_by_its_deadline_is_told_to_be_unknown(driver):
    inside = Held()

    def write_slowly(transaction, some):
        inside.begun.set()
        assert inside.go_on.wait(PATIENCE_S)
        return _write(transaction, some)

    committer = Committer(lambda: driver, deadline_s=0.02)
    with pytest.raises(LedgerUnavailable, match="unknown"):
        await committer.submit(Operation("slow", "key", write_slowly), rows("begun"))
    inside.go_on.set()
    await committer.close()
    assert await asyncio.to_thread(driver.closed.wait, PATIENCE_S)

    assert driver.transactions == [[["begun"]]]


async def test_a_drivers_error_reaches_everybody_in_the_transaction_and_nobody_else(driver, committer):
    driver.faults = [None, LedgerUnavailable("locked")]
    async with while_a_transaction_runs(driver, committer):
        tasks = await submitting(
            committer, (WRITE, rows("a")), (OTHER, rows("b")), (WRITE, rows("c")), (WRITE, rows("a"))
        )
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)

    assert all(isinstance(one, LedgerUnavailable) and "locked" in str(one) for one in outcomes[:3])
    assert outcomes[3] == [{"key": "a", "wrote": "A"}]
    assert driver.transactions == [[["first"]], [["a"]]]


def refusing(*keys, error=None):
    """A kind of operation whose statement fails as long as one of the keys is among its rows."""

    def write(transaction, theirs):
        if {row["key"] for row in theirs} & set(keys):
            raise error or LedgerRefused("PostgreSQL: a rule", "23514")
        return _write(transaction, theirs)

    return Operation("picky", "key", write, tells_refused=error is None)


def written(driver):
    return sorted(key for transaction in driver.transactions for statement in transaction for key in statement)


async def test_a_row_that_is_refused_fails_alone_and_its_neighbours_are_written(driver, committer):
    async with while_a_transaction_runs(driver, committer):
        tasks = await submitting(
            committer,
            (WRITE, rows("a")),
            (refusing("bad"), rows(*(f"k{number}" for number in range(40)), "bad", "last")),
            (OTHER, rows("b")),
        )
    first, picky, last = await asyncio.gather(*tasks)

    assert (first, last) == ([{"key": "a", "wrote": "A"}], [{"key": "b", "wrote": "B"}])
    assert picky == [
        *({"key": f"k{number}", "wrote": f"K{number}"} for number in range(40)),
        {"key": "last", "wrote": "LAST"},
        {"key": "bad", "refused": "23514"},
    ]
    assert written(driver) == sorted(["first", "a", "b", *(f"k{number}" for number in range(40)), "last"])
    assert committer.fault is None


async def test_an_operation_whose_rows_are_all_refused_raises_and_its_neighbour_does_not(driver, committer):
    async with while_a_transaction_runs(driver, committer):
        tasks = await submitting(committer, (refusing("x", "y"), rows("x", "y")), (WRITE, rows("a")))
    refused, answered = await asyncio.gather(*tasks, return_exceptions=True)

    assert (type(refused), refused.code, str(refused)) == (LedgerRefused, "23514", "PostgreSQL: a rule")
    assert answered == [{"key": "a", "wrote": "A"}]


async def test_a_bug_fails_whoever_met_it_alone_and_tells_no_values(driver, committer):
    bug = UnicodeEncodeError("ascii", "EV-sécret", 4, 5, "ordinal not in range")
    with capture_logs() as said:
        async with while_a_transaction_runs(driver, committer):
            tasks = await submitting(committer, (refusing("x", error=bug), rows("x")), (WRITE, rows("a")))
        failed, answered = await asyncio.gather(*tasks, return_exceptions=True)

    assert (type(failed), str(failed)) == (LedgerUnavailable, "writing failed: UnicodeEncodeError")
    assert answered == [{"key": "a", "wrote": "A"}]
    assert [line["event"] for line in said] == ["ledger_write_failed"]
    assert (
        str(said[0]["exc_info"]) == "'ascii' codec can't encode character '\\xe9' in position 4: ordinal not in range"
    )


async def test_a_database_that_refuses_everything_does_not_hold_up_the_others_for_long(driver, committer, monkeypatch):
    monkeypatch.setattr("services.ledger.halving.HALVE_FOR_S", -1.0)
    many = [f"k{number}" for number in range(100)]
    async with while_a_transaction_runs(driver, committer):
        [task] = await submitting(committer, (refusing(*many), rows(*many)))

    with pytest.raises(LedgerUnavailable, match="another row was refused: 23514"):
        await task
    assert committer.fault is None


def tell_the_time(monkeypatch, monotonic_s):
    """Replace the clock of the search, and no other's."""
    clock = SimpleNamespace(monotonic=monotonic_s, perf_counter=time.perf_counter)
    monkeypatch.setattr("services.ledger.halving.time", clock)


def losing(*keys, cause="connection lost"):
    """A kind of operation that tells its refusals: "bad" is refused, and the connection is lost at the keys."""

    def write(transaction, theirs):
        if any(row["key"] == "bad" for row in theirs):
            raise LedgerRefused("PostgreSQL: secret of the row", "23514")
        if {row["key"] for row in theirs} & set(keys):
            raise LedgerUnavailable(cause)
        return _write(transaction, theirs)

    return Operation("losing", "key", write, tells_refused=True)


async def test_what_was_committed_is_answered_though_the_connection_is_lost_after_it(driver, committer):
    assert await committer.submit(losing("c"), rows("a", "b", "bad", "c", "d", "e", "f", "g")) == [
        {"key": "a", "wrote": "A"},
        {"key": "b", "wrote": "B"},
        {"key": "bad", "refused": "23514"},
        {"key": "c", "unconfirmed": "connection lost"},
        *({"key": key, "unconfirmed": "not tried, because another write failed: connection lost"} for key in "defg"),
    ]
    assert driver.transactions == [[["a", "b"]]]
    assert committer.fault == "connection lost"


async def test_what_was_committed_is_answered_though_the_search_takes_too_long(driver, committer, monkeypatch):
    refused_at_s = iter([0.0, 9.0])
    tell_the_time(monkeypatch, lambda: next(refused_at_s))

    assert await committer.submit(refusing("c", "d"), rows(*"abcd")) == [
        {"key": "a", "wrote": "A"},
        {"key": "b", "wrote": "B"},
        {"key": "c", "unconfirmed": "another row was refused: 23514"},
        {"key": "d", "unconfirmed": "another row was refused: 23514"},
    ]
    assert committer.fault is None


async def test_a_wait_for_the_lock_takes_nothing_from_the_search_for_a_refused_row(driver, committer, monkeypatch):
    now_s = 0.0
    tell_the_time(monkeypatch, lambda: now_s)
    held = driver.hold_next()
    waiting = asyncio.create_task(committer.submit(refusing("bad"), rows("a", "bad", "b", "c")))
    assert await asyncio.to_thread(held.begun.wait, PATIENCE_S)
    now_s = 100.0
    held.go_on.set()

    assert sorted(row["key"] for row in await waiting if "wrote" in row) == ["a", "b", "c"]


async def test_rows_that_depend_on_each_other_are_never_written_apart(driver, committer):
    whole = Operation("whole", "key", refusing("bad").apply, may_split=False)
    async with while_a_transaction_runs(driver, committer):
        tasks = await submitting(committer, (whole, rows("a", "bad", "b")), (WRITE, rows("c")))
    refused, answered = await asyncio.gather(*tasks, return_exceptions=True)

    assert (type(refused), answered) == (LedgerRefused, [{"key": "c", "wrote": "C"}])
    assert driver.transactions == [[["first"]], [["c"]]]


async def test_a_row_that_was_refused_lately_is_not_searched_for_again(driver, committer):
    tried = []

    def write(transaction, theirs):
        tried.append([row["key"] for row in theirs])
        return refusing("bad").apply(transaction, theirs)

    looping = Operation("looping", "key", write)
    for _ in range(2):
        tried.clear()
        assert len(await committer.submit(looping, rows("a", "b", "bad", "c"))) == 3
    assert tried == [["a", "b", "c"], ["bad"]]


async def test_refusals_of_many_new_rows_are_told_once_a_minute_with_their_number(driver, committer, monkeypatch):
    now = 1_000.0
    tell_the_time(monkeypatch, lambda: now)
    with capture_logs() as said:
        for number in range(50):
            with pytest.raises(LedgerRefused):
                await committer.submit(refusing(f"k{number}"), rows(f"k{number}"))
        now += 61
        with pytest.raises(LedgerRefused):
            await committer.submit(refusing("last"), rows("last"))

    assert [(line["event"], line["operation"], line["id"], line["code"], line["times"]) for line in said] == [
        ("row_refused", "picky", "k0", "23514", 1),
        ("row_refused", "picky", "last", "23514", 50),
    ]


async def test_closing_writes_what_is_pending_and_closes_the_driver(driver):
    committer = Committer(lambda: driver, deadline_s=PATIENCE_S)
    async with while_a_transaction_runs(driver, committer):
        tasks = await submitting(committer, (WRITE, rows("a")), (WRITE, rows("a", "b")))
        closing = asyncio.create_task(committer.close())
        await asyncio.sleep(0)
    await asyncio.gather(*tasks, closing)

    assert driver.transactions == [[["first"]], [["a"]], [["a", "b"]]]
    assert driver.closed.is_set()


async def test_nothing_is_taken_after_closing(driver):
    committer = Committer(lambda: driver)
    await committer.close()

    with pytest.raises(LedgerUnavailable, match="closed"):
        await committer.submit(WRITE, rows("late"))
    assert driver.transactions == []


async def test_only_transactions_that_were_committed_are_timed(driver):
    seconds = []
    committer = Committer(lambda: driver, observe_commit_s=seconds.append)
    driver.faults = [LedgerUnavailable("locked")]
    with pytest.raises(LedgerUnavailable):
        await committer.submit(WRITE, rows("a"))
    await committer.submit(WRITE, rows("a"))
    await committer.close()

    assert len(seconds) == 1
    assert seconds[0] >= 0


async def test_a_deadline_that_passed_is_a_fault_until_something_is_written(driver):
    committer = Committer(lambda: driver, deadline_s=0.05)
    held = driver.hold_next()
    with pytest.raises(LedgerUnavailable):
        await committer.submit(WRITE, rows("a"))
    assert "could not begin" in committer.fault

    held.go_on.set()
    async with asyncio.timeout(PATIENCE_S):
        while committer.fault is not None:
            with contextlib.suppress(LedgerUnavailable):
                await committer.submit(WRITE, rows("b"))
    await committer.close()


async def test_a_drivers_fault_is_told_until_something_is_written(driver, committer):
    driver.faults = [LedgerUnavailable("full"), RuntimeError("odd")]
    for cause in ("full", "RuntimeError"):
        with pytest.raises(LedgerUnavailable):
            await committer.submit(WRITE, rows("a"))
        assert cause in committer.fault

    await committer.submit(WRITE, rows("a"))
    assert committer.fault is None


async def test_a_row_that_was_tried_without_refused_requests_is_tried_so_at_once_the_next_time(driver, committer):
    """It neither fails its neighbours' transaction, nor is it looked for among them."""

    class Transaction(list):
        def refusal(self, statement, rows, left_out):
            return LedgerRefused("PostgreSQL: a rule", "23514") if self.is_refused(rows, left_out) else None

        def execute(self, statement, rows, left_out="[]"):
            if self.is_refused(rows, left_out):
                raise LedgerRefused("PostgreSQL: a rule", "23514")
            self.append([one for [one] in rows if one not in left_out])
            return []

        @staticmethod
        def is_refused(rows, left_out):
            return ["bad"] in rows and "bad" not in left_out

    tries = []

    def apply(transaction, theirs):
        tries.append([row["key"] for row in theirs])
        changes = [[request] for row in theirs for request in row["requests"]]
        transaction.execute("UPDATE request FROM {rows: id, x} {spared}", changes)
        return [{"key": row["key"]} for row in theirs]

    driver.transaction = Transaction
    beat = Operation("beat", "key", apply, spares=True)
    west, east = {"key": "west", "requests": ["free", "bad"]}, {"key": "east", "requests": ["other"]}

    answers = [await committer.submit(beat, [west, east]) for _ in range(2)]

    assert [sorted(row["key"] for row in answer) for answer in answers] == [["east", "west"]] * 2
    assert tries == [["west", "east"], ["west"], ["west"], ["east"], ["east"], ["west"]]
    assert driver.transactions == [[["free"]], [["other"]], [["other"]], [["free"]]]
