"""Random walks over a real ledger beside a model of its promises: every answer and every row must agree."""

import asyncio
import contextlib
import copy
import itertools
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from harness.ledger import HOLDER, LET_THE_WAIT_PASS, SOON_MS, Ledger, histories_in, looking_into, url_of
from harness.ledger_model import CONNECTORS, REQUESTED_J, WAITING, LedgerModel, PlainLedger
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from services.ledger.committer import Operation
from services.ledger.connection import open_ledger
from services.ledger.states import TERMINAL, Reason, Status, faults

NORTH, SOUTH = "north", "south"
NEVER_MS = 1_000_000_000
PATIENCE_S = 20


class Wrong(NamedTuple):
    """What is wrong with an operation: one thing at a time, and mostly nothing."""

    attempt: int = 0
    epoch: int = 0
    elsewhere: bool = False
    late: bool = False
    """The wait of the first request has passed."""


RIGHT = Wrong()
wrongs = st.sampled_from(
    [
        *[RIGHT] * 6,
        *(Wrong(attempt=-1), Wrong(attempt=1), Wrong(epoch=-1), Wrong(epoch=1)),
        *(Wrong(elsewhere=True), Wrong(late=True)),
    ]
)
stales = st.sampled_from([None] * 4 + ["epoch", "renewals", "holder", "released"])
holders = st.sampled_from([HOLDER] * 4 + ["a rival #2"])
picks = st.integers(0, 1_000)
"""Which of those in a fitting state; every seventh time it is any."""
energies_j = st.integers(0, 5) | st.just(REQUESTED_J)
grants_s = st.sampled_from([0, 1, 180, 10_000])


class LedgerMachine(RuleBasedStateMachine):
    """The walk; each database's machine adds `new_ledger`, a context that gives a place for a ledger."""

    def __init__(self):
        super().__init__()
        self.model = LedgerModel()
        self.commits = 0
        self.names = (f"r{number}" for number in itertools.count())
        self.stack = contextlib.ExitStack()
        self.path = self.stack.enter_context(self.new_ledger())
        self.runner = self.stack.enter_context(asyncio.Runner())
        self.opened = open_ledger(
            url_of(self.path),
            shared=False,
            speed=60,
            lease_s=5,
            startup_timeout_s=5,
            observe_commit_s=self.count_commit,
        )
        self.connection = self.runner.run(self.opened.__aenter__())
        self.stack.callback(lambda: self.runner.run(self.opened.__aexit__(None, None, None)))
        self.real = PlainLedger(self.connection)
        self.database = self.stack.enter_context(looking_into(self.path))

    def teardown(self):
        self.stack.close()

    def count_commit(self, _seconds):
        self.commits += 1

    # --- asking both -------------------------------------------------------------------------------------------

    def ask(self, name, *arguments):
        """Ask ledger and model the same; returns what both answered."""
        answer = self.runner.run(getattr(self.real, name)(*arguments))
        assert answer == getattr(self.model, name)(*arguments), (name, arguments)
        self.learn_waits()
        return answer

    def learn_waits(self):
        """Only the ledger's clock knows until when who was sent back waits; it is a whole wait from now."""
        for row in self.model.rows.values():
            if row.waits_anew:
                row.waits_anew = False
                row.wait_until_ms = self.wait_until_ms(row.request_id)
                assert row.wait_until_ms > time.time() * 1000 + SOON_MS / 2

    def wait_until_ms(self, request_id):
        [[wait_until_ms]] = self.database("SELECT wait_until_ms FROM request WHERE id = ?", [request_id])
        return wait_until_ms

    def race(self, *calls):
        """Ask in one commit; the answers must be those of one order or the other."""
        answers = self.runner.run(self._in_one_commit(calls))
        possible = []
        for order in itertools.permutations(range(len(calls))):
            model = copy.deepcopy(self.model)
            told = {number: getattr(model, calls[number][0])(*calls[number][1:]) for number in order}
            possible.append((model, [told[number] for number in range(len(calls))]))
        self.model = next((model for model, told in possible if told == answers), None)
        assert self.model is not None, (calls, answers, [told for _, told in possible])
        self.learn_waits()

    async def _in_one_commit(self, calls):
        has_begun, may_end = threading.Event(), threading.Event()

        def idle(_transaction, _rows):
            has_begun.set()
            assert may_end.wait(PATIENCE_S)
            return []

        before = self.commits
        first = asyncio.create_task(self.connection.write(Operation("idle", "id", idle), [{"id": 0}]))
        while not has_begun.is_set():
            await asyncio.sleep(0)
        tasks = [asyncio.create_task(getattr(self.real, name)(*arguments)) for name, *arguments in calls]
        await asyncio.sleep(0)  # each call goes on until it waits for its commit; the count of commits below proves it
        may_end.set()
        answers = await asyncio.gather(*tasks)
        await first
        assert self.commits == before + 2
        return answers

    def pick(self, pick, *statuses):
        """A request's id: one in these states, or, where `pick` says so, any; it may be gone."""
        if statuses and pick % 7:
            fitting = self.in_states(*statuses) or self.bring(statuses[0])
        else:
            fitting = [*self.model.rows, "nobody"]
        return fitting[pick % len(fitting)]

    def in_states(self, *statuses):
        return [row.request_id for row in self.model.rows.values() if row.status in statuses]

    def bring(self, status, count=2):
        """New requests in a state, so that no rule depends on what the other ones happened to do before."""
        brought = [self.newcomer(priority=number) for number in range(count)]
        if status is not Status.ACCEPTED:
            self.ask("assign", [self.hint(one) for one in brought], NORTH)
        if status is Status.CHARGING:
            self.ask("claim", [self.hint(one) for one in brought], NORTH, self.epoch(NORTH), CONNECTORS)
        return brought

    def hint(self, request_id, wrong=RIGHT):
        row = self.model.rows.get(request_id)
        return (request_id, row.attempt + wrong.attempt if row else 1)

    def hints(self, several, *statuses, wrong=RIGHT):
        chosen = list(dict.fromkeys(self.pick(pick, *statuses) for pick in several))
        if wrong.late and chosen:
            self.let_the_wait_pass(chosen[0])
        return [self.hint(one, wrong) for one in chosen]

    def place(self, request_id, wrong=RIGHT):
        row = self.model.rows.get(request_id)
        own = (row and row.substation) or NORTH
        return (SOUTH if own == NORTH else NORTH) if wrong.elsewhere else own

    def epoch(self, substation, wrong=RIGHT):
        return self.model.tenures[substation].epoch + wrong.epoch

    # --- the walk ----------------------------------------------------------------------------------------------

    @initialize(counts=st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, CONNECTORS)))
    def begin(self, counts):
        for one in (NORTH, SOUTH):
            self.ask("take", one, None, HOLDER)
        for count, status in zip(counts, (Status.ACCEPTED, Status.ASSIGNED, Status.CHARGING), strict=True):
            self.bring(status, count)

    @rule(
        key=st.sampled_from([None, None, "k1", "k2"]),
        body=st.sampled_from(["one", "other"]),
        priority=st.sampled_from([0, 0, 9]),
    )
    def accept(self, key, body, priority):
        self.newcomer(key, body, priority)

    def newcomer(self, key=None, body="one", priority=0):
        request_id, _ = self.ask("accept", next(self.names), key, body, priority)
        self.model.rows[request_id].wait_until_ms = self.wait_until_ms(request_id)
        return request_id

    @rule(pick=picks)
    def accept_again(self, pick):
        row = self.model.rows.get(self.pick(pick))
        if row is not None:
            self.ask("accept", row.request_id, row.key, "another", 5)

    @rule(several=st.lists(picks, min_size=1, max_size=4), wrong=wrongs, to=st.sampled_from([NORTH, NORTH, SOUTH]))
    def assign(self, several, wrong, to):
        self.ask("assign", self.hints(several, Status.ACCEPTED, wrong=wrong), to)

    @rule(
        several=st.lists(picks, min_size=1, max_size=5),
        wrong=wrongs,
        places=st.integers(0, CONNECTORS + 1),
        in_bays=st.integers(0, 3),
        grant_s=grants_s,
    )
    def claim(self, several, wrong, places, in_bays, grant_s):
        hints = self.hints(several, Status.ASSIGNED, wrong=wrong)
        at = self.place(hints[0][0], wrong)
        self.ask("claim", hints, at, self.epoch(at, wrong), places, hints[-1 : -1 - in_bays : -1], grant_s)

    @rule(pick=picks)
    def withdraw_twice(self, pick):
        request_id = self.pick(pick, Status.ACCEPTED, Status.ASSIGNED, Status.CHARGING)
        assert self.ask("withdraw", request_id) == self.ask("withdraw", request_id)

    @rule(
        pick=picks,
        wrong=wrongs,
        how=st.sampled_from([(Status.COMPLETED, Reason.ENERGY_LIMIT_REACHED), (Status.STOPPED, Reason.REMOTE)]),
        delivered_j=energies_j,
    )
    def end(self, pick, wrong, how, delivered_j):
        request_id = self.pick(pick, Status.CHARGING)
        at = self.place(request_id, wrong)
        self.ask("end", self.hint(request_id, wrong), at, self.epoch(at, wrong), *how, delivered_j)

    @rule(
        several=st.lists(picks, min_size=1, max_size=4),
        wrong=wrongs,
        reason=st.sampled_from([Reason.DECLINED, Reason.UNROUTABLE]),
    )
    def give_back(self, several, wrong, reason):
        hints = self.hints(several, Status.ASSIGNED, wrong=wrong)
        self.ask("give_back", hints, self.place(hints[0][0], wrong), reason)

    @rule(pick=picks)
    def wait_too_long(self, pick):
        self.let_the_wait_pass(self.pick(pick, *WAITING, Status.CHARGING))

    def let_the_wait_pass(self, request_id):
        row = self.model.rows.get(request_id)
        if row is not None and row.status not in TERMINAL:
            self.database(LET_THE_WAIT_PASS, [request_id])
            row.has_waited_too_long = True

    @rule()
    def expire(self):
        self.ask("expire")

    @precondition(lambda self: sum(row.status in TERMINAL for row in self.model.rows.values()) > 3)
    @rule()
    def forget(self):
        self.ask("forget")

    @rule(substation=st.sampled_from([NORTH, SOUTH]), holder=holders, stale=stales)
    def take(self, substation, holder, stale):
        self.ask("take", substation, self.seen(substation, stale), holder)

    @rule(substation=st.sampled_from([NORTH, SOUTH]), stale=stales)
    def lose(self, substation, stale):
        self.ask("lose", substation, self.seen(substation, stale))

    def seen(self, substation, stale):
        """A lease as it is, or as it was before something moved."""
        epoch, renewals, holder, released = self.model.tenures[substation].seen
        return {
            "epoch": (epoch - 1, renewals, holder, released),
            "renewals": (epoch, renewals - 1, holder, released),
            "holder": (epoch, renewals, "somebody else", released),
            "released": (epoch, renewals, holder, not released),
        }.get(stale, (epoch, renewals, holder, released))

    @rule(several=st.lists(picks, min_size=1, max_size=4), wrong=wrongs)
    def take_back(self, several, wrong):
        self.ask("take_back", self.hints(several, Status.ASSIGNED, wrong=wrong))

    @rule(
        substation=st.sampled_from([NORTH, NORTH, SOUTH]),
        holder=holders,
        several=st.lists(picks, max_size=4),
        standing=st.lists(picks, max_size=3),
        wrong=wrongs,
        delivered_j=energies_j,
        wanted_j=energies_j,
        grant_s=grants_s,
        older_than_ms=st.sampled_from([0, NEVER_MS]),
    )
    def beat(self, substation, holder, several, standing, wrong, delivered_j, wanted_j, grant_s, older_than_ms):
        progress = [(hint, delivered_j, wanted_j) for hint in self.hints(several, Status.CHARGING, wrong=wrong)]
        in_bays = self.hints(standing, Status.ASSIGNED, wrong=wrong)
        epoch = self.epoch(substation, wrong)
        self.ask("beat", substation, epoch, holder, progress, in_bays, grant_s, older_than_ms)

    @rule(substation=st.sampled_from([NORTH, SOUTH]), holder=holders, several=st.lists(picks, max_size=3), wrong=wrongs)
    def release(self, substation, holder, several, wrong):
        progress = [(hint, 2, 2) for hint in self.hints(several, Status.CHARGING, wrong=wrong)]
        self.ask("release", substation, self.epoch(substation, wrong), holder, progress)

    @rule(substation=st.sampled_from([NORTH, SOUTH]), delivered_j=energies_j)
    def stop_what_is_asked_to_stop(self, substation, delivered_j):
        """A substation's heartbeat, and what follows from it."""
        epoch, holder = self.epoch(substation), self.model.tenures[substation].holder
        answer = self.ask("beat", substation, epoch, holder or HOLDER, [], [], 0, NEVER_MS)
        if answer is None:
            return
        for hint, before_j, _, is_asked in answer[-1]:
            if not is_asked:
                continue
            assert self.ask("end", hint, substation, epoch, Status.STOPPED, Reason.REMOTE, delivered_j) is not None
            assert self.ask("withdraw", hint[0]) is Status.STOPPED
            assert self.model.rows[hint[0]].delivered_j == max(before_j, delivered_j)
        assert not any(one[-1] for one in self.ask("beat", substation, epoch, holder, [], [], 0, NEVER_MS)[-1])

    @rule(pick=picks, kinds=st.permutations(["withdraw", "claim", "end", "give_back", "assign", "beat", "lose"]))
    def race_of_two(self, pick, kinds):
        request_id = self.pick(pick, Status.ASSIGNED, Status.CHARGING)
        self.race(*(self._call(kind, request_id) for kind in kinds[:2]))

    @rule(pick=picks, is_first=st.booleans())
    def race_of_withdrawal_and_claim(self, pick, is_first):
        request_id = self.pick(pick, Status.ASSIGNED)
        calls = [self._call("withdraw", request_id), self._call("claim", request_id)]
        self.race(*(calls if is_first else calls[::-1]))

    @rule(pick=picks, is_first=st.booleans())
    def race_of_withdrawal_and_end(self, pick, is_first):
        request_id = self.pick(pick, Status.CHARGING)
        calls = [self._call("withdraw", request_id), self._call("end", request_id)]
        self.race(*(calls if is_first else calls[::-1]))

    def _call(self, kind, request_id):
        hint, at = self.hint(request_id), self.place(request_id)
        epoch = self.epoch(at)
        return {
            "withdraw": ("withdraw", request_id),
            "claim": ("claim", [hint], at, epoch, CONNECTORS),
            "end": ("end", hint, at, epoch, Status.COMPLETED, Reason.ENERGY_LIMIT_REACHED, 4),
            "give_back": ("give_back", [hint], at, Reason.DECLINED),
            "assign": ("assign", [hint], at),
            "beat": ("beat", at, epoch, self.model.tenures[at].holder or HOLDER, [(hint, 3, 9)], [hint], 1, NEVER_MS),
            "lose": ("lose", at, self.model.tenures[at].seen),
        }[kind]

    # --- what holds always -------------------------------------------------------------------------------------

    @invariant()
    def the_waiting_room_is_in_its_order(self):
        self.ask("waiting")

    @invariant()
    def who_is_named_by_no_beat_is_known(self):
        self.ask("unclaimed")

    @invariant()
    def no_promise_is_broken(self):
        breaches = self.runner.run(Ledger(self.connection).sweeping.audit())
        assert [one for one in breaches if not one.after_s] == []

    @invariant()
    def every_row_and_every_history_is_the_models(self):
        rows = self.database(
            "SELECT id, status, attempt, substation, epoch, energy_delivered_j, energy_granted_j, interruptions,"
            " stop_asked FROM request ORDER BY id"
        ).fetchall()
        assert rows == [
            (
                *(row.request_id, row.status, row.attempt, row.substation, row.epoch),
                *(row.delivered_j, row.granted_j, row.interruptions, row.stop_asked),
            )
            for _, row in sorted(self.model.rows.items())
        ]
        histories, _ = histories_in(self.database)
        for request_id, history in histories.items():
            assert faults(history) == []
            assert [
                (one.status, one.substation, one.attempt, one.epoch, one.reason) for one in history
            ] == self.model.rows[request_id].history


class SqliteMachine(LedgerMachine):
    @contextlib.contextmanager
    def new_ledger(self):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / "ledger.sqlite"


class PostgresMachine(LedgerMachine):
    databases = None

    def new_ledger(self):
        return self.databases.lent()


ON_SQLITE = int(os.environ.get("EVENLOAD_WALKS_SQLITE", "25"))
ON_POSTGRES = int(os.environ.get("EVENLOAD_WALKS_POSTGRES", "10"))
"""`make walks` makes more of them."""


def walks(count):
    """Always the same: a test that fails now and then is believed by nobody."""
    return settings(
        max_examples=count,
        stateful_step_count=40,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=[HealthCheck.too_slow],
    )


def test_walks_on_sqlite():
    run_state_machine_as_test(SqliteMachine, settings=walks(ON_SQLITE))


def test_walks_on_postgresql(ledger_databases):
    PostgresMachine.databases = ledger_databases
    run_state_machine_as_test(PostgresMachine, settings=walks(ON_POSTGRES))
