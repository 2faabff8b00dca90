"""A whole stack whose broker is killed, alarmed, cut off, frozen, fed poison or wiped: every 202 ends, once.

The numbers are those of the failure model in docs/architecture.md.
"""

import asyncio
import base64
import json
import re
import signal
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import aio_pika
import pytest
from harness.broker import Vhost, api, fresh_vhost, running_node
from harness.stack import Stack, started, until
from harness.tcp_proxy import TcpProxy

from services.broker import topology
from services.broker.connection import connected
from services.broker.publisher import Publisher
from services.errors import BrokerUnavailable
from services.local.ports import free_ports
from services.messages import Hint

SERVICES = ("gateway", "balancer", *(f"substation-{one}" for one in ("north", "east", "south", "west")))
CONNECTIONS = 2 * len(SERVICES)
HEARTBEAT_S = 3
"""A silent connection is given up after 12 s; with the usual heartbeat it would take 33 s."""
AWAY_WITHIN_S = 120.0


@pytest.fixture(scope="module")
def trouble(tmp_path_factory):
    """A stack on a broker of the test's own, and the proxy between them."""
    folder = tmp_path_factory.mktemp("trouble")
    with running_node(folder / "broker") as node, TcpProxy(node.broker.ports.amqp) as proxy:
        url = node.broker.amqp_url("operator").replace(f":{node.broker.ports.amqp}/", f":{proxy.port}/")
        url = f"{url}?heartbeat={HEARTBEAT_S}"
        with started(
            folder / "data",
            free_ports(1)[0],
            EVENLOAD_AMQP_URL=url,
            EVENLOAD_SPEED="600",
            EVENLOAD_BALANCER_SCRAPE_INTERVAL_S="0.5",
            # One request a message, and one message in hand: what is not handled yet stays in the queue.
            EVENLOAD_ENVELOPE_MAX="1",
            EVENLOAD_BALANCER_PREFETCH="1",
        ) as stack:
            yield SimpleNamespace(node=node, proxy=proxy, stack=stack.until_up(), broker=node.broker)


@pytest.fixture
def at_rest(trouble):
    """The stack before, and after, some trouble: all are ready, with two connections each and no more."""
    until_well(trouble)
    yield trouble
    trouble.proxy.heal()
    until_well(trouble)


def until_well(trouble):
    until(lambda: all(readiness(trouble.stack, one)[0] == 200 for one in SERVICES), "all are ready", AWAY_WITHIN_S)
    until(lambda: trouble.proxy.open_connections == CONNECTIONS, "two connections a service", AWAY_WITHIN_S)
    queues = f"queues/{topology.VHOST}"

    def is_consumed() -> bool:
        consumers = {one["name"]: one.get("consumers") for one in api(trouble.broker, "GET", queues)}
        work = (topology.INTAKE, *(topology.substation_queue(one) for one in ("north", "east", "south", "west")))
        return all(consumers.get(one) == 1 for one in work)

    until(is_consumed, "a consumer on every queue", AWAY_WITHIN_S)


def readiness(stack: Stack, service: str) -> tuple[int, str]:
    log = (stack.data / "logs" / f"{service}.log").read_text()
    url = re.findall(r'"admin_url": "(\S+?)"', log)[-1]
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=30) as response:  # noqa: S310
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def logged(stack: Stack, service: str, event: str) -> list[dict]:
    lines = (stack.data / "logs" / f"{service}.log").read_text().splitlines()
    return [entry for line in lines if line.startswith("{") and (entry := json.loads(line))["event"] == event]


def accepted_all(stack: Stack, count: int) -> list[str]:
    """Send requests that must all get their 202, at the first try."""
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda number: stack.post(vehicle_id=f"EV-{number}", energy_kwh=5), range(count)))
    assert {status for status, _ in answers} == {202}
    return [answer["request_id"] for _, answer in answers]


@contextmanager
def stopped(stack: Stack, *services: str):
    """Processes that get no time while the block runs."""
    processes = [stack.service(one) for one in services]
    for one in processes:
        one.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for one in processes:
            one.send_signal(signal.SIGCONT)


def unready_with(stack: Stack, cause: str) -> bool:
    assert readiness(stack, "gateway")[0] == 200, "a gateway goes on accepting without the broker"
    return all(
        code == 503 and "broker connection" in said and cause in said
        for code, said in (readiness(stack, one) for one in SERVICES if one != "gateway")
    )


def test_failure_04_a_broker_killed_under_load_loses_nothing(at_rest):
    stack, node = at_rest.stack, at_rest.node
    with stack.rush(80, over_s=4.0, energy_kwh=5) as rush:
        rush.until_accepted(20)
        node.kill()
        node.start()

    stack.until_ended(rush.ids())

    until(lambda: all(logged(stack, one, "broker_connection_back") for one in SERVICES), "all are back")


def test_failure_05_a_memory_alarm_refuses_nobody_and_loses_nothing(at_rest):
    stack, node = at_rest.stack, at_rest.node
    with node.alarmed():
        request_ids = accepted_all(stack, 20)
        until(
            lambda: {"blocked"} & {one.get("state") for one in api(at_rest.broker, "GET", "connections")},
            "RabbitMQ shows somebody blocked",
        )
        assert readiness(stack, "gateway")[0] == 200
        request_ids += accepted_all(stack, 20)

    stack.until_ended(request_ids)


async def is_published(publisher: Publisher) -> bool:
    try:
        await publisher.publish_hints(topology.REQUESTS, "", [Hint("a", 0)])
    except BrokerUnavailable:
        return False
    return True


async def eventually(condition, what: str) -> None:
    give_up_at = time.monotonic() + AWAY_WITHIN_S
    while not await condition():
        assert time.monotonic() < give_up_at, what
        await asyncio.sleep(0.1)


async def test_failure_05_a_connection_that_breaks_while_it_is_blocked_comes_back_when_the_alarm_is_over(trouble):
    node, broker = trouble.node, trouble.broker

    async def has_connected_again() -> bool:
        return proxy.accepted >= 2

    with fresh_vhost(broker) as vhost, TcpProxy(broker.ports.amqp) as proxy:
        url = vhost.amqp_url("gateway").replace(f":{broker.ports.amqp}/", f":{proxy.port}/")
        async with connected(url, "gateway test", 30) as connection:
            publisher = Publisher(connection, 100)
            with node.alarmed():
                assert not await is_published(publisher)
                proxy.cut()
                await eventually(has_connected_again, "a new connection")
            await eventually(lambda: is_published(publisher), "a confirmed message")


async def test_failure_05_an_alarm_fails_publishes_at_once_and_makes_nobody_connect_again(trouble, monkeypatch):
    deadline_s = 2.0
    for name, value in {"PROBE_EVERY_S": 0.1, "PROBE_DEADLINE_S": deadline_s}.items():
        monkeypatch.setattr(f"services.broker.session.{name}", value)
    node, broker = trouble.node, trouble.broker
    with fresh_vhost(broker) as vhost, TcpProxy(broker.ports.amqp) as proxy:
        url = vhost.amqp_url("gateway").replace(f":{broker.ports.amqp}/", f":{proxy.port}/")
        async with connected(url, "gateway test", 30) as connection:
            publisher = Publisher(connection, 100)
            assert await is_published(publisher)
            with node.alarmed():
                assert not await is_published(publisher)
                enough_at = time.monotonic() + 2 * deadline_s  # a probe that nobody answers has run late by then
                while time.monotonic() < enough_at:
                    with pytest.raises(BrokerUnavailable, match="the broker takes no messages now"):
                        await publisher.publish_hints(topology.REQUESTS, "", [Hint("a", 0)])
                assert proxy.accepted == 1
            await eventually(lambda: is_published(publisher), "a confirmed message")
            assert proxy.accepted == 1


def test_failure_06_half_open_connections_are_given_up_and_made_again(at_rest):
    stack, proxy = at_rest.stack, at_rest.proxy
    assert {one["timeout"] for one in api(at_rest.broker, "GET", "connections")} == {HEARTBEAT_S}
    proxy.stall()
    request_ids = accepted_all(stack, 20)

    stack.until_ended(request_ids)  # nobody waits for the broker
    until(lambda: unready_with(stack, "no answer in time"), "all say why they are unready", AWAY_WITHIN_S)
    assert all("silent" in logged(stack, one, "broker_connection_lost")[-1]["cause"] for one in SERVICES)
    assert accepted_all(stack, 1)
    # The fixture waits until all is well again.


def test_failure_06_a_frozen_broker_holds_up_nobody_not_even_who_leaves(at_rest):
    stack, node = at_rest.stack, at_rest.node
    lost_before = len(logged(stack, "balancer", "broker_connection_lost"))
    with node.frozen():
        request_ids = accepted_all(stack, 20)
        stack.until_ended(request_ids)
        stack.service("gateway").send_signal(signal.SIGTERM)
        stack.until_said(r"gateway died \(exit code 0\)")
        until(
            lambda: len(logged(stack, "balancer", "broker_connection_lost")) >= lost_before + 2,
            "both its connections are given up",
            AWAY_WITHIN_S,
        )
    until_well(at_rest)

    stack.until_ended(accepted_all(stack, 20))


def test_failure_13_poison_is_quarantined_and_its_neighbours_are_served(at_rest):
    stack, broker = at_rest.stack, at_rest.broker
    before = len(dead_letters(broker))
    for exchange, key in ((topology.REQUESTS, ""), (topology.ASSIGNMENTS, "north")):
        for body in (b"\x00\xff\x1b[2J", b"x" * 20_000, b'{"v":99,"hints":[]}'):
            publish(broker, exchange, key, body)
    request_ids = accepted_all(stack, 20)

    stack.until_ended(request_ids)

    until(lambda: len(dead_letters(broker)) == before + 6, "six in the graveyard")


def test_failure_14_a_message_past_its_delivery_limit_is_a_dead_letter_and_its_request_is_served(at_rest):
    stack, broker = at_rest.stack, at_rest.broker
    with stopped(stack, "balancer"):
        request_ids = accepted_all(stack, 5)  # the frozen balancer has one in hand, and cannot say so
        asyncio.run(return_until_dead(broker, topology.INTAKE, 4))

    stack.until_ended(request_ids)


def test_failure_14_a_wiped_broker_costs_no_request(at_rest):
    stack, node = at_rest.stack, at_rest.node
    with stopped(stack, "balancer"):
        request_ids = accepted_all(stack, 10)
        node.kill()
        node.wipe()
        node.start()
    until_well(at_rest)  # by then the balancer sees north and east, and sends somebody there
    with stopped(stack, "substation-north", "substation-east"):
        request_ids += accepted_all(stack, 10)
        until(lambda: any(assigned(stack, one) for one in request_ids), "somebody's message waits for the frozen")
        node.kill()
        node.wipe()
        node.start()

    stack.until_ended(request_ids)


def assigned(stack: Stack, request_id: str) -> bool:
    answer = stack.get(f"/charge-requests/{request_id}")[1]
    return answer["status"] == "assigned" and answer["substation"] in ("north", "east")


def dead_letters(broker) -> list[dict]:
    asked = {"count": 1000, "ackmode": "ack_requeue_true", "encoding": "auto"}
    return api(broker, "POST", f"queues/{topology.VHOST}/{topology.GRAVEYARD}/get", asked)


def publish(broker, exchange: str, key: str, body: bytes) -> None:
    payload = {"payload": base64.b64encode(body).decode(), "payload_encoding": "base64"}
    answer = api(
        broker,
        "POST",
        f"exchanges/{topology.VHOST}/{exchange}/publish",
        {"properties": {}, "routing_key": key, **payload},
    )
    assert answer == {"routed": True}


async def return_until_dead(broker, queue: str, messages: int) -> None:
    """Return every delivery of a queue until `messages` of them have passed their limit."""
    before = len(dead_letters(broker))
    async with await aio_pika.connect(Vhost(broker, topology.VHOST).amqp_url("operator")) as connection:
        channel = await connection.channel()
        await channel.set_qos(prefetch_count=messages)

        async def return_one(message) -> None:
            await message.reject(requeue=True)

        found = await channel.get_queue(queue, ensure=False)
        await found.consume(return_one)

        async def have_died() -> bool:
            return len(await asyncio.to_thread(dead_letters, broker)) >= before + messages

        await eventually(have_died, f"{messages} dead letters")


def deleted(broker, *paths: str) -> None:
    for one in paths:
        api(broker, "DELETE", one)


BINDINGS = [f"bindings/{topology.VHOST}/e/{topology.ASSIGNMENTS}/q/{topology.substation_queue(one)}/{one}"
            for one in ("north", "east", "south", "west")]  # fmt: skip


@pytest.mark.parametrize(
    ("gone", "told"),
    [
        (BINDINGS, None),
        ([f"exchanges/{topology.VHOST}/{topology.ASSIGNMENTS}"], f"exchange '{topology.ASSIGNMENTS}' is missing"),
    ],
    ids=["all bindings", "the exchange of the assignments"],
)
def test_topology_that_is_deleted_under_load_costs_no_request(at_rest, gone, told):
    stack, broker = at_rest.stack, at_rest.broker
    with stack.rush(40, over_s=2.0, energy_kwh=5) as rush:
        rush.until_accepted(10)
        deleted(broker, *gone)
    stack.until_ended(rush.ids())

    if told is not None:
        until(lambda: readiness(stack, "balancer")[0] == 503 and told in readiness(stack, "balancer")[1], told)
        api(broker, "POST", f"definitions/{topology.VHOST}", topology.topology())
    until_well(at_rest)
    stack.until_ended(accepted_all(stack, 8))
