"""What a broker must have, held against what a console shows that no test can bring about at a real one."""

import asyncio
import contextlib
import copy

import pytest
from harness.fake_gateway import fake_gateway
from typer.testing import CliRunner

from services.broker import topology
from services.cli.broker_parts import Shown, compare
from services.cli.checks import Finding
from services.cli.checks_broker import check_broker
from services.cli.console import Console
from services.cli.main import app
from services.cli.mend import mend

VHOST = topology.VHOST
USERS = [{"name": one} for one in topology.ROLES]


def whole():
    """The rows of a broker that has all."""
    definitions = topology.definitions(dict.fromkeys(topology.ROLES, "any"))
    rows = {one: definitions[one] for one in ("exchanges", "queues", "bindings", "policies", "permissions")}
    for queue in rows["queues"]:
        queue["type"] = queue["arguments"]["x-queue-type"]
    return rows | {"users": USERS}


def faults(rows, *, are_users_ours=True):
    parts = compare(Shown(VHOST, has_vhost=True, rows=rows), are_users_ours=are_users_ours)
    return [(one.fault, one.cure) for one in parts if one.fault]


def test_a_broker_that_has_all_has_no_fault():
    assert faults(whole()) == []


@pytest.mark.parametrize(("are_users_ours", "expected"), [(True, ["user 'gateway' is missing"]), (False, [])])
def test_a_user_that_is_gone_is_missing_only_where_the_users_are_ours(are_users_ours, expected):
    rows = whole() | {"users": [one for one in USERS if one["name"] != "gateway"]}

    found = faults(rows, are_users_ours=are_users_ours)

    assert [said for said, _ in found] == expected
    assert all("`make run`" in cure for _, cure in found)


@pytest.mark.parametrize(("online", "stands_still"), [(3, False), (2, False), (1, True), (0, True)])
def test_a_queue_without_most_of_its_nodes_stands_still(online, stands_still):
    rows = whole()
    rows["queues"][0] |= {"members": ["a", "b", "c"], "online": ["a", "b", "c"][:online]}

    said = f"queue 'charge.intake' stands still: {online} of its 3 nodes are there"
    assert faults(rows) == ([(said, "start the broker's other nodes")] if stands_still else [])


@pytest.mark.parametrize("kind", ["exchanges", "queues", "bindings", "policies", "permissions", "users"])
def test_what_the_user_may_not_see_is_no_fault(kind):
    shown = Shown(VHOST, has_vhost=True, rows=whole() | {kind: None})

    assert [one.fault for one in compare(shown, are_users_ours=True) if one.fault] == []
    assert shown.unseen == [kind]


def test_an_unreadable_right_grants_nothing():
    rows = copy.deepcopy(whole())
    row = next(one for one in rows["permissions"] if one["user"] == "balancer")
    row["write"], row["read"] = "(", ""

    [(said, _)] = faults(rows)
    write = [f"write {one}" for one in (topology.ASSIGNMENTS, topology.EVENTS, topology.DEAD, f"amq_{'0' * 32}")]
    read = [f"read {one}" for one in (topology.EVENTS, topology.INTAKE, f"amq_{'0' * 32}")]
    assert said == f"user 'balancer' lacks rights ({', '.join([*write, *read])})"


class Frozen:
    """A session with a broker that answers nothing more, and whose library does not let go of a call."""

    link = None
    is_closed = False

    def __init__(self):
        self.ended = asyncio.Event()

    async def channel(self, **_options):
        return self

    async def get_exchange(self, _name):
        while not self.ended.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await self.ended.wait()

    async def close(self):
        return


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("amqp://any@host/evenload", "host:5672"),
        ("amqps://any@host/evenload", "host:5671"),
        ("amqps://any@host:7000/evenload", "host:7000"),
        ("amqp://any@[::1]/evenload", "[::1]:5672"),
    ],
)
async def test_a_broker_that_falls_silent_holds_up_the_doctor_no_longer_than_its_deadline(monkeypatch, address, place):
    session = Frozen()
    monkeypatch.setattr("services.cli.checks_broker.ANSWERS_WITHIN_S", 0.05)
    monkeypatch.setattr(
        "services.cli.checks_broker.broker_connected", lambda *_address: contextlib.nullcontext(session)
    )
    looking = asyncio.create_task(check_broker(None, address, "", []))
    await asyncio.wait({looking}, timeout=20)
    is_done = looking.done()
    session.ended.set()

    [first, *_] = await looking
    assert is_done
    assert (first.finding, first.said) == (Finding.PROBLEM, f"{place} does not answer within 0.05 s")


@pytest.fixture
def console(monkeypatch):
    """A console of a broker that has all."""
    monkeypatch.setenv("EVENLOAD_CONSOLE_PASSWORD", "any")
    with fake_gateway() as one:
        rows = whole()
        for kind in ("exchanges", "queues", "bindings", "policies"):
            one.answers["GET", f"/api/{kind}/{VHOST}"] = (200, rows[kind])
        one.answers["GET", f"/api/vhosts/{VHOST}/permissions"] = (200, rows["permissions"])
        one.answers["GET", "/api/users/"] = (200, rows["users"])
        one.answers["GET", f"/api/consumers/{VHOST}"] = (200, [{"queue": {"name": topology.INTAKE}}])
        one.answers["GET", "/api/health/checks/alarms"] = (200, {"status": "ok"})
        one.answers["GET", "/api/connections"] = (200, [])
        yield one


async def lines(console):
    return [(one.finding, one.said, one.cure) for one in await check_broker(None, None, console.url, [])]


async def test_a_broker_that_only_its_console_is_known_of_is_well(console):
    assert await lines(console) == [(Finding.OK, f"answers at {console.url}, and nothing is missing there", "")]


@pytest.mark.parametrize(
    ("resource", "cure"),
    [
        ("memory", "let its queues become shorter, or raise vm_memory_high_watermark"),
        ("disk", "free space on its disk, or lower disk_free_limit"),
        ("patience", "see its log"),
    ],
)
async def test_an_alarm_is_told_with_its_cure_and_the_connections_that_it_holds_up(console, resource, cure):
    alarms = [{"node": node, "resource": resource} for node in ("one", "two")]
    console.answers["GET", "/api/health/checks/alarms"] = (503, {"status": "failed", "reason": "…", "alarms": alarms})
    connections = [
        {"name": f"127.0.0.1:{number}", "vhost": vhost, "state": state, "client_properties": properties}
        for number, (vhost, state, properties) in enumerate(
            [
                (VHOST, "blocked", {"connection_name": "gateway-1 publish"}),
                (VHOST, "blocking", {}),
                (VHOST, "running", {"connection_name": "gateway-1 consume"}),
                ("other", "blocked", {"connection_name": "somebody's"}),
            ]
        )
    ]
    console.answers["GET", "/api/connections"] = (200, connections)

    assert await lines(console) == [
        (Finding.PROBLEM, f"takes no messages: it has a {resource} alarm", cure),
        (
            Finding.PROBLEM,
            "holds up these connections: 127.0.0.1:1, gateway-1 publish",
            "it lets them go on when its alarm ends: see above",
        ),
    ]


@pytest.mark.parametrize(
    "answer",
    [
        (404, {"type": "about:blank", "title": "Not Found", "status": 404}),
        (404, b""),
        (404, b"<html>"),
        (301, b""),
        (302, {"location": "/login"}),
        (401, {"message": "no token"}),
        (403, []),
        (405, b""),
        (200, b""),
        (200, {"items": []}),
        (200, ["a"]),
        (200, None),
    ],
    ids=repr,
)
async def test_what_answers_as_no_console_does_is_told_with_the_cure_and_nobody_else_is_blamed(console, answer):
    for place in (f"/api/exchanges/{VHOST}", "/api/whoami"):
        console.answers["GET", place] = answer
    console.answers["POST", f"/api/queues/{VHOST}/{topology.GRAVEYARD}/get"] = answer
    said = f"what answers at {console.url} is no RabbitMQ console"

    assert await lines(console) == [(Finding.PROBLEM, said, "correct --console")]
    for command in ("mend", "dead"):
        done = await asyncio.to_thread(CliRunner().invoke, app, [command, "--console", console.url])
        assert (done.exit_code, done.stderr) == (1, f"evenload: {said}: correct --console\n")


async def test_a_console_that_fails_is_told_as_a_problem(console):
    console.answers["GET", f"/api/queues/{VHOST}"] = (500, {"reason": "out of order"})

    said = f"the console at {console.url} fails at /api/queues/{VHOST} (out of order)"
    assert await lines(console) == [(Finding.PROBLEM, said, "see the broker's log")]


async def test_mend_names_a_user_at_the_console_whatever_signs_its_name_has(console, monkeypatch):
    name = "north/grid ü%?"
    monkeypatch.setitem(topology.ROLES, name, topology.ROLES["gateway"])
    console.answers["GET", "/api/users/"] = (200, [*USERS, {"name": name}])
    console.answers["GET", "/api/whoami"] = (200, {"name": "operator", "tags": ["administrator"]})
    console.answers["PUT", f"/api/permissions/{VHOST}/{name}"] = (204, b"")

    await mend(Console(console.url, "operator", "any", VHOST))

    changed = [path for method, path, _, _ in console.asked if method == "PUT"]
    assert changed == [f"/api/permissions/{VHOST}/north%2Fgrid%20%C3%BC%25%3F"]
