"""A broker that cannot be used ends a service with exit code 2 and one line that names the fault and the cure."""

import uuid

import pytest
from harness.broker import Vhost, api
from harness.refusal import ENDS_WITHIN_S, PASSWORD, SERVICES

from services.broker import topology

pytestmark = pytest.mark.timeout(ENDS_WITHIN_S, func_only=True)


@pytest.mark.parametrize("who", ["balancer", "substations"])
def test_a_broker_that_does_not_answer(refusal, who):
    said = refusal(who)

    assert "EVENLOAD_AMQP_URL: no broker answers at amqp://someone:***@127.0.0.1:1/evenload" in said
    assert "start one there, or correct address, user and vhost" in said


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1", "amqp://", "amqp://someone:secret@a..b/evenload", "127.0.0.1:5672"]
)
def test_what_is_no_address_of_a_broker(refusal, address):
    assert "EVENLOAD_AMQP_URL: an address like amqp://user:password@" in refusal("balancer", EVENLOAD_AMQP_URL=address)


@pytest.mark.parametrize("login", ["", "guest@", "guest:guest@", "someone:@", "someone:changeme@"])
def test_a_password_that_everybody_guesses_for_a_broker_elsewhere(refusal, login):
    said = refusal("gateway", EVENLOAD_AMQP_URL=f"amqp://{login}broker.example/evenload")

    assert "EVENLOAD_AMQP_URL: the password for broker.example is empty or one that everybody guesses" in said


@pytest.fixture(scope="module")
def empty_vhost(broker):
    """A vhost in which every role has all rights, and in which nothing is."""
    name = f"t{uuid.uuid4().hex[:8]}"
    api(broker, "PUT", f"vhosts/{name}")
    for role in topology.ROLES:
        api(broker, "PUT", f"permissions/{name}/{role}", {"configure": ".*", "write": ".*", "read": ".*"})
    yield Vhost(broker, name)
    api(broker, "DELETE", f"vhosts/{name}")


@pytest.mark.parametrize("who", SERVICES)
@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("password", "(ACCESS_REFUSED"),
        ("vhost", "(NOT_ALLOWED - vhost nowhere not found): correct user, password and vhost"),
        ("topology", "is not set up for Evenload (NOT_FOUND - no exchange 'charge."),
    ],
)
def test_a_broker_that_answers_and_refuses(refusal, broker, empty_vhost, who, wrong, told):
    role = who.removesuffix("s")
    right = broker.passwords[role]
    address = (Vhost(broker, "nowhere") if wrong == "vhost" else empty_vhost).amqp_url(role)

    said = refusal(who, EVENLOAD_AMQP_URL=address.replace(right, PASSWORD) if wrong == "password" else address)

    assert "EVENLOAD_AMQP_URL: " in said
    assert told in said
    assert right not in said


@pytest.mark.parametrize(
    ("who", "right", "pattern", "lacking"),
    [
        ("gateway", "write", r"^(charge\.events|amq_.*)$", "write right on exchange 'charge.requests'"),
        ("gateway", "read", r"^amq_.*$", "read right on exchange 'charge.events'"),
        ("gateway", "configure", "^$", "configure right on queue 'amq_"),
        ("gateway", "write", r"^charge\.(requests|events)$", "write right on queue 'amq_"),
        ("gateway", "read", r"^charge\.events$", "read right on queue 'amq_"),
        ("balancer", "write", r"^charge\.(events|dead)$", "write right on exchange 'charge.assignments'"),
        ("balancer", "write", r"^charge\.(assignments|dead)$", "right on exchange 'charge.events'"),
        ("balancer", "write", r"^charge\.(assignments|events)$", "write right on exchange 'charge.dead'"),
        ("balancer", "read", r"^charge\.events$", "read right on queue 'charge.intake'"),
        ("substations", "write", r"^charge\.substation\..*$", "write right on exchange 'charge.dead'"),
        ("substations", "configure", "^$", "configure right on queue 'charge.substation."),
        ("substations", "write", r"^charge\.dead$", "write right on queue 'charge.substation."),
        ("substations", "read", r"^charge\.substation\..*$", "read right on exchange 'charge.assignments'"),
        ("substations", "read", r"^charge\.assignments$", "read right on queue 'charge.substation."),
    ],
)
def test_a_broker_user_with_too_few_rights(refusal, vhost, who, right, pattern, lacking):
    role = who.removesuffix("s")
    rights = topology.ROLES[role]
    all_of_them = {"configure": rights.configure, "write": rights.write, "read": rights.read}
    api(vhost.broker, "PUT", f"permissions/{vhost.name}/{role}", all_of_them | {right: pattern})

    said = refusal(who, EVENLOAD_AMQP_URL=vhost.amqp_url(role))

    assert f"EVENLOAD_AMQP_URL: user '{role}' lacks the " in said
    assert lacking in said
    assert f"in vhost '{vhost.name}': grant it with `rabbitmqctl set_permissions`" in said


@pytest.fixture
def diary(tmp_path):
    """The address of a ledger that is none."""
    path = tmp_path / "diary.sqlite"
    path.write_text("Dear diary, this is no database, but as long as the header of one. " * 9)
    return f"sqlite:///{path}"


def test_a_broker_that_refuses_and_a_ledger_that_cannot_be_used(refusal, broker, diary):
    wrong = Vhost(broker, "nowhere").amqp_url("balancer")

    said = refusal("balancer", EVENLOAD_LEDGER_URL=diary, EVENLOAD_AMQP_URL=wrong)

    assert "is no usable ledger" in said
    assert "(NOT_ALLOWED - vhost nowhere not found)" in said


def test_a_broker_that_is_well_and_a_ledger_that_cannot_be_used(refusal, vhost, diary):
    said = refusal("balancer", EVENLOAD_LEDGER_URL=diary, EVENLOAD_AMQP_URL=vhost.amqp_url("balancer"))

    assert "is no usable ledger" in said
    assert "EVENLOAD_AMQP_URL" not in said
