"""A ledger under test: one process's views of it, values to put in, and what its histories say."""

import collections
import contextlib
import sqlite3
from dataclasses import replace

import psycopg

from services.ledger.charging import LedgerCharging
from services.ledger.connection import open_ledger
from services.ledger.dispatch import LedgerDispatch
from services.ledger.intake import LedgerIntake
from services.ledger.operating import LedgerOperating
from services.ledger.records import Assignment, Beat, Ending, NewRequest, Progress, Registration
from services.ledger.states import Reason, Status, Transition
from services.ledger.sweeping import LedgerSweeping
from services.ledger.tenancy import LedgerTenancy
from services.messages import Hint

SOON_MS = 600_000
HOLDER = "a test #1"
FORBIDDEN = "EV-FORBIDDEN-7"
"""A vehicle for rules of an operator's own."""
MANY = [f"r{number:02d}" for number in range(40)]


class Ledger:
    """One process's views of a ledger, and short ways to bring requests into a state."""

    def __init__(self, connection):
        self.connection = connection
        self.intake = LedgerIntake(connection)
        self.dispatch = LedgerDispatch(connection)
        self.charging = LedgerCharging(connection)
        self.tenancy = LedgerTenancy(connection)
        self.sweeping = LedgerSweeping(connection)
        self.operating = LedgerOperating(connection)

    async def take(self, *registrations, holder=HOLDER):
        """Take leases as after their silence; the epochs."""
        seen = await self.tenancy.wait_for([one.substation for one in registrations], holder)
        return await self.tenancy.take(registrations, seen, holder)

    async def beat(self, *progress, at="north", epoch=1, holder=HOLDER, in_bays=(), grant_s=0, adopt_after_ms=0):
        """Beat for one substation; the answer, None where the lease is not ours."""
        beat = Beat(at, epoch, holder, tuple(progress), tuple(in_bays), grant_s)
        return next(iter(await self.tenancy.beat([beat], adopt_after_ms)), None)

    async def accepted(self, *request_ids, **changes):
        await self.intake.accept([new_request(one, **changes) for one in request_ids])

    async def assigned(self, *request_ids, to="north", **changes):
        await self.accepted(*request_ids, **changes)
        assert await self.dispatch.assign([Assignment(one, 0, to) for one in request_ids]) == set(request_ids)

    async def claimed(self, *request_ids, at="north", epoch=1, **changes):
        await self.assigned(*request_ids, to=at, **changes)
        claims = await self.claim([Hint(one, 1) for one in request_ids], at, epoch)
        assert len(claims) == len(request_ids)
        return claims

    async def claim(self, hints, at, epoch, places=40):
        return list((await self.charging.claim(hints, at, epoch, places)).claimed)

    async def ended(self, *request_ids, at="north", epoch=1):
        await self.claimed(*request_ids, at=at, epoch=epoch)
        return await self.charging.end([ending(one, at, epoch) for one in request_ids])

    async def status(self, request_id):
        return (await self.intake.request(request_id)).status

    async def history(self, request_id):
        return (await self.intake.request(request_id)).history


def new_request(request_id, **changes):
    kept = NewRequest(
        request_id=request_id,
        vehicle_id="EV-1",
        energy_requested_j=36_000_000,
        power_max_w=11_000,
        priority=0,
        zone=None,
        depart_by_ms=None,
        departs_at_ms=None,
        wait_max_ms=SOON_MS,
    )
    return replace(kept, **changes)


def ending(request_id, at="north", epoch=1, *, attempt=1, delivered_j=36_000_000):
    return Ending(request_id, attempt, at, epoch, Status.COMPLETED, Reason.ENERGY_LIMIT_REACHED, delivered_j)


def progress(request_id, delivered_j, at="north", epoch=1, *, attempt=1, wanted_j=0):
    return Progress(request_id, attempt, at, epoch, delivered_j, max(delivered_j, wanted_j))


def registration(substation="north", **changes):
    return replace(Registration(substation, None, 380_000, 304_000, 40, 10, "http://127.0.0.1:1"), **changes)


def url_of(where):
    """The address of a ledger, given as a SQLite file or as an address."""
    return where if isinstance(where, str) else f"sqlite:///{where}"


def opened(where, *, speed=60.0, shared=False, startup_timeout_s=5):
    return open_ledger(
        url_of(where),
        shared=shared,
        speed=speed,
        lease_s=5.0,
        startup_timeout_s=startup_timeout_s,
        observe_commit_s=lambda _seconds: None,
    )


@contextlib.contextmanager
def looking_into(where):
    """A way to run queries beside the ledger's own connections, each at once; parameters are written `?`."""
    if isinstance(where, str):
        with psycopg.connect(where, autocommit=True) as connection:
            yield lambda query, parameters=(): connection.execute(query.replace("?", "%s"), parameters)
    else:
        with contextlib.closing(sqlite3.connect(where, isolation_level=None)) as connection:
            yield connection.execute


def asked(where, query, parameters=()):
    """The rows that a query finds in a ledger."""
    with looking_into(where) as execute:
        return execute(query, parameters).fetchall()


def changed(where, statement, parameters=()):
    """Change a ledger behind its back."""
    with looking_into(where) as execute:
        execute(statement, parameters)


def all_histories(where):
    with looking_into(where) as database:
        return histories_in(database)


def histories_in(database):
    """Every request's history, and the state that its row is in, by id."""
    rows = database(
        "SELECT request_id, at_ms, status, substation, attempt, epoch, reason FROM transition ORDER BY number"
    ).fetchall()
    histories = collections.defaultdict(list)
    for request_id, at_ms, status, substation, attempt, epoch, reason in rows:
        histories[request_id].append(Transition(at_ms, Status(status), substation, attempt, epoch, reason))
    return histories, dict(database("SELECT id, status FROM request").fetchall())


LET_THE_WAIT_PASS = "UPDATE request SET wait_until_ms = changed_at_ms - 1 WHERE id = ?"


def let_the_wait_pass(where, request_id):
    """As if the request's `wait_until` had been reached."""
    changed(where, LET_THE_WAIT_PASS, [request_id])


def let_the_vehicle_leave(where, request_id):
    """As if the departure of a charging request had been reached."""
    changed(where, "UPDATE request SET departs_at_ms = changed_at_ms - 1 WHERE id = ?", [request_id])
