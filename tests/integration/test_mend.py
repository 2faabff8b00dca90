"""What is missing at a real RabbitMQ is named by the doctor, made by `evenload mend`, and then all is well again."""

import asyncio
import contextlib
import json
from urllib.parse import quote

import aio_pika
import pytest
from harness.broker import api
from typer.testing import CliRunner

from services.broker import topology
from services.cli.checks import Finding
from services.cli.checks_broker import check_broker
from services.cli.main import app

NORTH = topology.substation_queue("north")
NOT_BOUND = "queue 'charge.intake' is not bound to exchange 'charge.requests'"
REMADE = "a substation makes its own again within seconds: where it does not, see its log"


class Broker:
    """A vhost, the doctor's look at it, and `mend`; somebody takes from the intake and from the queue of north."""

    def __init__(self, vhost, patch):
        self.vhost, self._patch = vhost, patch
        self.url = vhost.broker.console_url
        self.mend_cure = f"run `evenload mend --console {self.url}`"
        self.ask_as("operator", vhost.broker.passwords["operator"])

    def ask_as(self, user, password):
        names = {"USER": user, "PASSWORD": password, "VHOST": self.vhost.name}
        for name, value in names.items():
            self._patch.setenv(f"EVENLOAD_CONSOLE_{name}", value)

    async def api(self, method, path, body=None):
        return await asyncio.to_thread(api, self.vhost.broker, method, path.replace("{vhost}", self.vhost.name), body)

    async def doctor(self, *, console=True, role="gateway", registered=("north",)):
        """The doctor's lines: what it found, said, and names as the cure."""
        amqp_url = self.vhost.amqp_url(role)
        checks = await check_broker(None, amqp_url, self.url if console else "", registered)
        assert {one.check for one in checks} == {"broker"}
        return [(one.finding, one.said, one.cure) for one in checks]

    async def faults(self, **how):
        """What the doctor says of problems that `mend` cures."""
        lines = await self.doctor(**how)
        assert {(finding, cure) for finding, _, cure in lines} == {(Finding.PROBLEM, self.mend_cure)}
        return [said for _, said, _ in lines]

    async def well(self):
        port = self.vhost.broker.ports.amqp
        return await self.doctor() == [(Finding.OK, f"answers at 127.0.0.1:{port}, and nothing is missing there", "")]

    async def mend(self, *, code=0):
        """What `mend` tells a program; returns each thing that was not there, with its outcome."""
        done = await asyncio.to_thread(CliRunner().invoke, app, ["mend", "--console", self.url, "--json"])
        assert done.exit_code == code, (done.output, done.exception)
        (line,) = done.stdout.splitlines()
        answer = json.loads(line)
        assert (answer["console"], answer["vhost"]) == (self.url, self.vhost.name)
        return [one for one in answer["items"] if one["outcome"] != "was there"]

    def taking(self):
        return taking_as(self.vhost, "one consume")


async def nobody(_message):
    raise AssertionError("nothing is published here")


@contextlib.asynccontextmanager
async def taking_as(vhost, name):
    """Take from both queues over a connection of that name, as a balancer and a substation do; both make their own."""
    properties = {"connection_name": name}
    async with await aio_pika.connect(vhost.amqp_url("operator"), client_properties=properties) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(NORTH, durable=True, arguments=dict(topology.QUORUM))
        await queue.bind(topology.ASSIGNMENTS, "north")
        for one in (queue, await channel.get_queue(topology.INTAKE)):
            await one.consume(nobody)
        yield


@pytest.fixture
async def looked_at(vhost, monkeypatch):
    one = Broker(vhost, monkeypatch)
    async with one.taking():
        yield one


def made(*things):
    return [{"kind": kind, "name": name, "outcome": "made"} for kind, name in things]


async def test_a_whole_broker_is_well_and_mend_changes_nothing(looked_at):
    before = await looked_at.api("GET", "definitions/{vhost}")

    assert await looked_at.well()
    assert await looked_at.mend() == []
    assert await looked_at.api("GET", "definitions/{vhost}") == before


BOUND = ("binding", "charge.requests → charge.intake")
DEAD_BOUND = ("binding", "charge.dead → charge.graveyard")
DEAD_NOT_BOUND = "queue 'charge.graveyard' is not bound to exchange 'charge.dead'"


@pytest.mark.parametrize(
    ("gone", "said", "things"),
    [
        ("exchanges/{vhost}/charge.requests", [NOT_BOUND], [("exchange", "charge.requests"), BOUND]),
        ("exchanges/{vhost}/charge.assignments", [], [("exchange", "charge.assignments")]),
        ("exchanges/{vhost}/charge.events", [], [("exchange", "charge.events")]),
        ("exchanges/{vhost}/charge.dead", [DEAD_NOT_BOUND], [("exchange", "charge.dead"), DEAD_BOUND]),
        ("queues/{vhost}/charge.intake", [NOT_BOUND], [("queue", "charge.intake"), BOUND]),
        ("queues/{vhost}/charge.graveyard", [DEAD_NOT_BOUND], [("queue", "charge.graveyard"), DEAD_BOUND]),
        ("bindings/{vhost}/e/charge.requests/q/charge.intake/~", [NOT_BOUND], [BOUND]),
        ("bindings/{vhost}/e/charge.dead/q/charge.graveyard/~", [DEAD_NOT_BOUND], [DEAD_BOUND]),
        ("policies/{vhost}/charge-work", [], [("policy", "charge-work")]),
        ("policies/{vhost}/charge-graveyard", [], [("policy", "charge-graveyard")]),
        ("permissions/{vhost}/balancer", ["user 'balancer' has no rights in the vhost"], [("rights", "balancer")]),
    ],
)
async def test_what_is_missing_is_named_made_and_then_all_is_well(looked_at, gone, said, things):
    await looked_at.api("DELETE", gone)

    (kind, name), *_ = things
    own = [] if kind in ("binding", "rights") else [f"{kind} {name!r} is missing"]
    assert await looked_at.faults() == own + said
    assert await looked_at.mend() == made(*things)
    async with looked_at.taking():
        assert await looked_at.well()
    assert await looked_at.mend() == []


async def test_a_vhost_that_is_gone_is_made_with_all_that_belongs_into_it(looked_at):
    await looked_at.api("DELETE", "vhosts/{vhost}")

    assert await looked_at.faults() == [f"vhost '{looked_at.vhost.name}' is missing"]
    assert {one["kind"] for one in await looked_at.mend()} == {
        *("vhost", "exchange", "queue", "binding", "policy", "rights")
    }
    async with looked_at.taking():
        assert await looked_at.well()


async def test_a_policy_that_was_changed_is_restored(looked_at):
    path = "policies/{vhost}/charge-work"
    before = await looked_at.api("GET", path)
    changed = dict(topology.POLICIES[0]["definition"]) | {"delivery-limit": 3}
    await looked_at.api("PUT", path, dict(topology.POLICIES[0]) | {"definition": changed})

    assert await looked_at.faults() == ["policy 'charge-work' was changed (delivery-limit is 3, not 20)"]
    assert [one["outcome"] for one in await looked_at.mend()] == ["made"]
    assert await looked_at.api("GET", path) == before
    assert await looked_at.well()


WRITE = topology.ROLES["gateway"].write
LACKING = f"user 'gateway' lacks rights (write charge.requests, write amq_{'0' * 32})"


@pytest.mark.parametrize(
    ("write", "mended"),
    [
        ("^charge\\.events$", f"(?:^charge\\.events$)|(?:{WRITE})"),
        ("^other|^charge\\.events$", f"(?:^other|^charge\\.events$)|(?:{WRITE})"),
        # Only the broker can read this one: a flag in the middle of a pattern.
        ("(?i)^charge\\.EVENTS$", f"(?:(?i)^charge\\.EVENTS$)|(?:{WRITE})"),
    ],
)
async def test_a_right_that_is_lacking_is_granted_beside_those_that_are_there(looked_at, write, mended):
    path, wide = "permissions/{vhost}/gateway", {"configure": ".*", "read": "^charge|^amq_|^other"}
    await looked_at.api("PUT", path, wide | {"write": write})

    assert await looked_at.faults() == [LACKING]
    assert await looked_at.mend() == made(("rights", "gateway"))
    assert (await looked_at.api("GET", path)).items() >= (wide | {"write": mended}).items()
    assert await looked_at.well()
    assert await looked_at.mend() == []


async def test_an_empty_right_grants_nothing_and_is_replaced(looked_at):
    path = "permissions/{vhost}/gateway"
    await looked_at.api("PUT", path, {"configure": "", "write": "", "read": ""})

    assert await looked_at.mend() == made(("rights", "gateway"))
    assert (await looked_at.api("GET", path)).items() >= topology.ROLES["gateway"].rights.items()


@pytest.mark.parametrize("user", ["operator", "monitor"])
@pytest.mark.parametrize("rights", [None, {"configure": "^$", "write": "^$", "read": ""}])
async def test_a_person_at_a_broker_of_others_is_granted_nothing(looked_at, user, rights):
    path = f"permissions/{{vhost}}/{user}"
    await looked_at.api("PUT", path, {"configure": "", "write": "", "read": ""})
    await (looked_at.api("PUT", path, rights) if rights else looked_at.api("DELETE", path))
    before = await looked_at.api("GET", "vhosts/{vhost}/permissions")

    assert await looked_at.well()
    assert await looked_at.mend() == []
    assert await looked_at.api("GET", "vhosts/{vhost}/permissions") == before


async def test_wider_rights_than_needed_are_left_as_they_are(looked_at):
    wide = {"configure": ".*", "write": ".*", "read": ""}
    await looked_at.api("PUT", "permissions/{vhost}/monitor", wide)

    assert await looked_at.well()
    assert await looked_at.mend() == []
    assert (await looked_at.api("GET", "permissions/{vhost}/monitor")).items() >= wide.items()


@pytest.mark.parametrize(
    ("path", "other", "said", "cure"),
    [
        (
            "exchanges/{vhost}/charge.events",
            {"type": "fanout", "durable": True},
            "exchange 'charge.events' is of another kind (type is fanout, not topic)",
            f"delete that exchange at the console, which loses no request, and {topology.MEND}",
        ),
        (
            "queues/{vhost}/charge.graveyard",
            {"durable": True, "arguments": {"x-queue-type": "quorum"}},
            "queue 'charge.graveyard' is of another kind (type is quorum, not classic)",
            f"delete that queue at the console, which loses no request, and {topology.MEND}",
        ),
        (
            f"queues/{{vhost}}/{NORTH}",
            {"durable": True, "arguments": {"x-queue-type": "classic"}},
            f"queue '{NORTH}' is of another kind (type is classic, not quorum)",
            "delete that queue at the console: its substation makes it anew within seconds",
        ),
    ],
)
async def test_what_is_there_in_another_kind_is_told_and_left_alone(looked_at, path, other, said, cure):
    await looked_at.api("DELETE", path)
    await looked_at.api("PUT", path, other)

    assert (Finding.PROBLEM, said, cure) in await looked_at.doctor()
    kind = path.partition("s/")[0]
    told = {"kind": kind, "name": path.rpartition("/")[2], "outcome": "not made", "said": said, "cure": cure}
    assert told in await looked_at.mend(code=1)
    assert (await looked_at.api("GET", path)).items() >= other.items()

    await looked_at.api("DELETE", path)
    await looked_at.mend()
    async with looked_at.taking():
        assert await looked_at.well()


async def test_a_policy_of_others_that_takes_the_place_of_ours_is_told(looked_at):
    await looked_at.api(
        "PUT", "policies/{vhost}/short", {"pattern": ".*", "definition": {"max-length": 5}, "priority": 9}
    )

    expected = [
        (
            Finding.PROBLEM,
            f"policy 'short' takes the place of '{ours}' at queue '{queue}'",
            "give 'short' a priority below 1, or delete it",
        )
        for ours, queue in (("charge-work", topology.INTAKE), ("charge-graveyard", topology.GRAVEYARD))
    ]
    assert await looked_at.doctor() == expected


async def test_queues_that_nobody_takes_from_and_those_of_substations_that_are_missing_are_told(vhost, monkeypatch):
    looked_at = Broker(vhost, monkeypatch)
    idle = (Finding.PROBLEM, "no balancer takes from queue 'charge.intake'", "start one, or see its log")
    without = (Finding.PROBLEM, "substations without a queue: north", REMADE)
    assert await looked_at.doctor() == [idle, without]
    unseen = (
        Finding.NOTE,
        "bindings, policies, rights and alarms were not looked at",
        "give `--console URL` with EVENLOAD_CONSOLE_USER and EVENLOAD_CONSOLE_PASSWORD",
    )
    assert await looked_at.doctor(console=False) == [idle, without, unseen]

    queue = {"durable": True, "arguments": dict(topology.QUORUM)}
    await looked_at.api("PUT", f"queues/{{vhost}}/{NORTH}", queue)
    unbound = "substations whose queue is not bound to exchange 'charge.assignments': north"
    assert await looked_at.doctor() == [idle, (Finding.PROBLEM, unbound, REMADE)]

    await looked_at.api("POST", f"bindings/{{vhost}}/e/charge.assignments/q/{NORTH}", {"routing_key": "north"})
    stands_idle = (Finding.PROBLEM, "substations that do not take from their queue: north", REMADE)
    assert await looked_at.doctor() == [idle, stands_idle]
    assert await looked_at.doctor(console=False) == [idle, stands_idle, unseen]


async def test_somebody_else_who_takes_from_a_queue_is_named_with_the_user_and_the_connection(vhost, monkeypatch):
    looked_at = Broker(vhost, monkeypatch)
    async with taking_as(vhost, "north-1 consume"), taking_as(vhost, "balancer-1 consume"):
        # Of two balancers both may take from the intake, and of two substations only one from a queue.
        both = "north-1 consume (user 'operator')"
        first = f"others take from queue '{NORTH}', over connections: balancer-1 consume (user 'operator'), {both}"
        await until_told(looked_at, [first])
        async with taking_as(vhost, "a script"):
            strange = "over connections: a script (user 'operator')"
            await until_told(
                looked_at,
                [f"others take from queue 'charge.intake', {strange}", f"others take from queue '{NORTH}', {strange}"],
            )
            [(finding, said, cure), _] = await looked_at.doctor(console=False)
            assert (finding, said) == (Finding.PROBLEM, f"queue '{NORTH}' has 3 consumers, not one")
            assert cure == "close the others' connections: give `--console URL` to have them named"


async def until_told(looked_at, expected):
    """Wait for the console's statistics, which lag."""
    said = None
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(30):
            while said != expected:
                said = sorted(one for _, one, _ in await looked_at.doctor())
    assert said == expected


async def test_without_a_console_the_doctor_says_what_amqp_tells_and_what_it_could_not_look_at(looked_at):
    unseen = "bindings, policies, rights and alarms were not looked at"
    port = looked_at.vhost.broker.ports.amqp
    assert [said for _, said, _ in await looked_at.doctor(console=False)] == [f"answers at 127.0.0.1:{port}", unseen]

    await looked_at.api("DELETE", "exchanges/{vhost}/charge.dead")
    await looked_at.api("DELETE", "queues/{vhost}/charge.graveyard")
    cure = "run `evenload mend --console URL`"
    assert (await looked_at.doctor(console=False))[:2] == [
        (Finding.PROBLEM, "exchange 'charge.dead' is missing", cure),
        (Finding.PROBLEM, "queue 'charge.graveyard' is missing", cure),
    ]


async def test_a_user_who_may_only_look_sees_what_is_missing_and_is_told_what_it_may_not_see(looked_at):
    looked_at.ask_as("monitor", looked_at.vhost.broker.passwords["monitor"])
    _, (finding, said, cure) = await looked_at.doctor()
    assert (finding, cure) == (Finding.NOTE, "set EVENLOAD_CONSOLE_USER to an administrator")
    assert said == "user 'monitor' may not look at permissions, users"

    await looked_at.api("DELETE", "exchanges/{vhost}/charge.events")
    assert (await looked_at.doctor())[0][1] == "exchange 'charge.events' is missing"


@pytest.mark.parametrize(
    ("user", "password", "console", "code", "said"),
    [
        ("monitor", None, None, 2, "user 'monitor' is no administrator at the console at {url}: set EVENLOAD_CONSOLE"),
        ("operator", "wrong", None, 2, "the console at {url} refuses user 'operator' in vhost '{vhost}': set EVENLOAD"),
        ("operator", None, "ftp://127.0.0.1", 2, "an address like http://127.0.0.1:15672 is needed"),
        ("operator", None, "http://127.0.0.1:1", 1, "no console answers at http://127.0.0.1:1"),
    ],
)
async def test_a_console_that_mend_cannot_use_is_told_with_the_cure(
    vhost, monkeypatch, user, password, console, code, said
):
    looked_at = Broker(vhost, monkeypatch)
    looked_at.ask_as(user, password or vhost.broker.passwords[user])
    done = await asyncio.to_thread(CliRunner().invoke, app, ["mend", "--console", console or looked_at.url])

    assert done.exit_code == code
    assert said.format(url=looked_at.url, vhost=vhost.name) in done.stderr
    assert len(done.stderr.splitlines()) == 1


async def test_people_are_shown_each_thing_and_what_became_of_it(looked_at):
    await looked_at.api("DELETE", f"policies/{looked_at.vhost.name}/{quote('charge-work')}")
    done = await asyncio.to_thread(CliRunner().invoke, app, ["mend", "--console", looked_at.url])

    assert done.exit_code == 0
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["policy", "charge-work", "made"] in lines
    assert ["exchange", "charge.requests", "was", "there"] in lines
    assert done.stdout.splitlines()[-1] == "made 1, the rest was there"
