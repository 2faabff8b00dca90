"""Each service's database user can do all that the service does, and is refused what the others do."""

import asyncio
import base64
import contextlib
import subprocess
import sys
import uuid

import psycopg
import pytest
from harness.ledger import (
    HOLDER,
    Ledger,
    asked,
    ending,
    let_the_wait_pass,
    new_request,
    opened,
    progress,
    registration,
)
from harness.postgres import empty_ledger, fresh_database

from services.errors import LedgerRefused, LedgerUnavailable, Misconfigured
from services.ledger import schema
from services.ledger.leases import Lease
from services.ledger.provision import ROLES, provision, scram
from services.ledger.records import Assignment, Beat
from services.ledger.states import Reason, Status
from services.messages import Hint

PASSWORDS = {role: f"{role}'s own $$ \\ secret" for role in ROLES}


@pytest.fixture(scope="module")
def provisioned(postgres):
    """A database that the owner has provisioned."""
    with fresh_database(postgres) as url:
        with psycopg.connect(url, autocommit=True) as owner:
            owner.execute(provision(PASSWORDS))
        yield url


@pytest.fixture
def where(provisioned):
    yield provisioned
    empty_ledger(provisioned)


@pytest.fixture
async def services(path):
    """The provisioned ledger as each service's user has it."""
    addresses = {role: address(path, role) for role in ROLES}
    async with contextlib.AsyncExitStack() as stack:
        yield {role: Ledger(await stack.enter_async_context(opened(addresses[role]))) for role in ROLES}


def address(url, role):
    given = psycopg.conninfo.conninfo_to_dict(url)
    password = "".join(f"%{one:02x}" for one in PASSWORDS[role].encode())
    return f"postgresql://evenload_{role}:{password}@{given['host']}:{given['port']}/{given['dbname']}"


async def test_the_services_do_all_their_work_each_as_its_own_user(services, path):
    intake, dispatch = services["gateway"].intake, services["balancer"].dispatch
    station, charging = services["substation"], services["substation"].charging
    sweeping = services["balancer"].sweeping
    await station.take(registration("north", connectors=3))
    await station.take(registration("north", connectors=3))
    ids = ["ends", "stops", "declined", "unroutable", "withdrawn", "late", "keyed"]
    await intake.accept([new_request(one) for one in ids[:-1]])
    for _ in range(2):
        await intake.accept([new_request("keyed", idempotency_key="k", body_hash="h")])
    assert await intake.withdraw("withdrawn") is Status.CANCELLED
    assert len(await dispatch.waiting([Hint(one, 0) for one in ids])) == 6
    assert len(await dispatch.waiting_first(10, 0, ["west"])) == 6
    assert len(await dispatch.registry()) == 1
    await station.tenancy.wait_for(["north"], "somebody else")
    await station.tenancy.stop_waiting("somebody else")
    assert await station.tenancy.leases() == await sweeping.leases()
    to_assign = [one for one in ids if one != "withdrawn"]
    assert len(await dispatch.assign([Assignment(one, 0, "north") for one in to_assign])) == 6
    assert await dispatch.give_back([Hint("unroutable", 1)], "north", Reason.UNROUTABLE) == {"unroutable"}
    assert await charging.decline([Hint("declined", 1)], "north") == {"declined"}
    claims = await charging.claim([Hint(one, 1) for one in ("ends", "stops", "late")], "north", 2, 2)
    assert [one.request_id for one in claims.claimed] == ["ends", "stops"]
    assert await intake.withdraw("stops") is Status.CHARGING
    operating = services["gateway"].operating
    assert await operating.order_limit("north", 5_000, None)
    assert await operating.order_status("north", operative=True)
    answer = await station.beat(progress("ends", 5, epoch=2, wanted_j=9), epoch=2, in_bays=[Hint("late", 1)], grant_s=1)
    assert {one.request_id: one.stop_asked for one in answer.charging} == {"ends": False, "stops": True}
    applied = Beat("north", 2, HOLDER, (), (), 0, answer.orders)
    assert len(await station.tenancy.beat([applied], 0)) == 1
    assert (await operating.orders())[0].applied_at_ms is not None
    assert await operating.metrics_addresses() == {"http://127.0.0.1:1": ["north"]}
    stopped = ending("stops", epoch=2)
    assert await charging.end([ending("ends", epoch=2), stopped]) == {"ends": 1, "stops": 2}
    assert await station.take(registration("north")) == {"north": 3}
    with psycopg.connect(path) as owner:
        owner.execute("UPDATE request SET wait_until_ms = 1 WHERE id IN ('late', 'declined')")
    assert sorted(await sweeping.expire()) == ["declined", "late"]
    assert await dispatch.unseen([]) != []
    assert (await intake.outlook(waiting_most=9, ends_most=9, ends_within_ms=60_000)).places != ()
    assert len(await intake.listed(before=2**62, most=9, status=None, substation=None)) == 7
    assert (await intake.request("ends")).energy_delivered_j == 36_000_000
    assert (await intake.counts())[Status.COMPLETED] == 2
    assert await sweeping.forget(0, 100) == 5
    hints = [Hint(one, 1) for one in ("unroutable", "keyed")]
    await dispatch.assign([Assignment("unroutable", 1, "north")])
    assert len((await charging.claim([Hint("unroutable", 2)], "north", 3, 2, grant_s=1)).claimed) == 1
    assert await sweeping.unclaimed() == [Hint("keyed", 1)]
    assert await sweeping.take_back(hints) == {"keyed"}
    await dispatch.assign([Assignment("keyed", 1, "north")])
    [seen] = await sweeping.leases()
    assert {one.request_id for one in await sweeping.lose([seen])} == {"unroutable", "keyed"}
    assert await sweeping.lose_orphans() == []
    assert await sweeping.audit() == []
    assert await station.take(registration("north")) == {"north": 5}
    assert await station.tenancy.release([Beat("north", 5, HOLDER, (), (), 0)]) == {"north"}


LEASE = Lease("north", 1, 0, HOLDER, is_released=False)
REFUSED = {
    "gateway": [
        lambda it: it.dispatch.assign([Assignment("waits", 0, "north")]),
        lambda it: it.dispatch.give_back([Hint("assigned", 1)], "north", Reason.DECLINED),
        lambda it: it.sweeping.expire(),
        lambda it: it.sweeping.forget(0, 10),
        lambda it: it.tenancy.take([registration("north")], {"north": LEASE}, HOLDER),
        lambda it: it.charging.claim([Hint("assigned", 1)], "north", 1, 9),
        lambda it: it.charging.end([ending("charging")]),
        lambda it: it.beat(progress("charging", 9)),
        lambda it: it.sweeping.lose([LEASE]),
    ],
    "balancer": [
        lambda it: it.intake.accept([new_request("new")]),
        lambda it: it.intake.withdraw("waits"),
        lambda it: it.tenancy.take([registration("north")], {"north": LEASE}, HOLDER),
        lambda it: it.charging.claim([Hint("assigned", 1)], "north", 1, 9),
        lambda it: it.charging.end([ending("charging")]),
        lambda it: it.beat(progress("charging", 9)),
    ],
    "substation": [
        lambda it: it.operating.order_limit("north", 1, None),
        lambda it: it.operating.order_status("north", operative=False),
        lambda it: it.intake.accept([new_request("new")]),
        lambda it: it.intake.withdraw("waits"),
        lambda it: it.dispatch.assign([Assignment("waits", 0, "north")]),
        lambda it: it.sweeping.forget(0, 10),
    ],
}
STATEMENTS_REFUSED = [
    ("gateway", "UPDATE request SET status = 'charging' WHERE id = 'assigned'"),
    ("gateway", "UPDATE request SET status = 'assigned' WHERE id = 'waits'"),
    ("gateway", "UPDATE request SET energy_delivered_j = 1"),
    ("balancer", "UPDATE request SET status = 'charging' WHERE id = 'assigned'"),
    ("balancer", "UPDATE request SET energy_requested_j = 1"),
    ("gateway", "UPDATE substation SET epoch = 9"),
    ("balancer", "UPDATE substation SET connectors = 9"),
    ("balancer", "UPDATE substation SET operative = 0"),
    ("substation", "UPDATE substation SET operative = 0"),
    ("substation", "UPDATE request SET status = 'assigned' WHERE id = 'waits'"),
    ("substation", "UPDATE request SET status = 'expired' WHERE id = 'waits'"),
    ("substation", "UPDATE request SET attempt = 9"),
    *((role, one) for role in ROLES for one in (
        "INSERT INTO transition (request_id, at_ms, status, attempt, reason) VALUES ('waits', 1, 'charging', 1, 'any')",
        "UPDATE transition SET reason = 'claimed'",
        "UPDATE meta SET value = '9'",
        "DELETE FROM substation",
        "CREATE TABLE mine (id integer)",
        "CREATE FUNCTION mine() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
        "ALTER TABLE request DISABLE TRIGGER request_accepted",
        "TRUNCATE request",
    )),
]  # fmt: skip


WAITS_FOR_THE_TABLE = """
SELECT count(*) FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database
WHERE NOT l.granted AND l.relation = 'request'::regclass AND d.datname = current_database()
"""


@pytest.mark.parametrize("role", ROLES)
async def test_a_probe_asks_for_no_more_than_its_role_may_and_waits_for_the_locks_of_its_work(services, path, role):
    await services[role].connection.probe(role)

    with psycopg.connect(path) as other:
        other.execute("LOCK TABLE request IN SHARE MODE")
        probing = asyncio.create_task(services[role].connection.probe(role))
        async with asyncio.timeout(60):
            while asked(path, WAITS_FOR_THE_TABLE) != [(1,)]:
                await asyncio.sleep(0.01)
    await probing


async def some_requests(services):
    await services["substation"].take(registration("north"))
    await services["gateway"].intake.accept([new_request(one) for one in ("waits", "assigned", "charging", "late")])
    await services["balancer"].dispatch.assign([Assignment(one, 0, "north") for one in ("assigned", "charging")])
    await services["substation"].claim([Hint("charging", 1)], "north", 1)


@pytest.mark.parametrize("role", ROLES)
async def test_a_service_is_refused_what_the_others_do(services, path, role):
    await some_requests(services)
    let_the_wait_pass(path, "late")
    before = asked(path, "SELECT * FROM request ORDER BY id"), asked(path, "SELECT * FROM substation")

    for refused in REFUSED[role]:
        with pytest.raises(LedgerUnavailable, match=r"permission denied|may not make a request") as caught:
            await refused(services[role])
        assert not isinstance(caught.value, LedgerRefused), "a right is missing; no rule is about this request"

    assert (asked(path, "SELECT * FROM request ORDER BY id"), asked(path, "SELECT * FROM substation")) == before


@pytest.mark.parametrize(("role", "statement"), STATEMENTS_REFUSED)
async def test_a_user_is_refused_what_no_service_does(services, path, role, statement):
    await some_requests(services)

    with psycopg.connect(address(path, role)) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(statement)


async def test_history_that_a_user_causes_is_written_by_the_owner(services, path):
    await some_requests(services)

    assert asked(path, "SELECT status FROM transition WHERE request_id = 'charging' ORDER BY number") == [
        ("accepted",),
        ("assigned",),
        ("charging",),
    ]


async def test_provisioning_again_changes_the_password_and_keeps_the_rest(services, path):
    await services["gateway"].accepted("r")

    with psycopg.connect(path, autocommit=True) as owner:
        owner.execute(provision({**PASSWORDS, "gateway": "another"}))
        try:
            with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
                psycopg.connect(address(path, "gateway"))
        finally:
            owner.execute(provision(PASSWORDS))
    assert asked(address(path, "balancer"), "SELECT id FROM request") == [("r",)]


async def test_a_ledger_that_the_owner_made_by_opening_it_can_be_provisioned_later(postgres_url):
    async with opened(postgres_url) as connection:
        await Ledger(connection).accepted("r")

    with psycopg.connect(postgres_url, autocommit=True) as owner:
        owner.execute(provision(PASSWORDS))
    async with opened(address(postgres_url, "gateway")) as connection:
        assert await Ledger(connection).status("r") == Status.ACCEPTED


def test_the_command_prints_sql_without_a_password_in_it():
    secret = uuid.uuid4().hex

    said = subprocess.run(
        [sys.executable, "-m", "services.ledger.provision", *(f"{role}={secret}" for role in ROLES)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert secret not in said
    assert said.count("SCRAM-SHA-256$4096:") == 3
    assert all(statement.strip() in said for statement in schema.POSTGRES)


@pytest.mark.parametrize("passwords", [{"gatevay": "x"}, {"gateway": ""}, {"balancer": "pässword"}, {"gateway": "a\n"}])
def test_what_cannot_be_provisioned_is_refused(passwords):
    with pytest.raises(Misconfigured):
        provision(passwords)


def test_the_hash_is_the_one_that_postgresql_makes(postgres_url):
    with psycopg.connect(postgres_url) as connection:
        role = f"r{uuid.uuid4().hex[:8]}"
        connection.execute(f"CREATE ROLE {role} PASSWORD 'pencil'")
        [kept] = connection.execute("SELECT rolpassword FROM pg_authid WHERE rolname = %s", [role]).fetchone()
        connection.rollback()

    assert scram("pencil", base64.b64decode(kept.split(":")[1].split("$")[0])) == kept
