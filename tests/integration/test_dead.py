"""`evenload dead` on a real RabbitMQ: what services quarantined and what the broker gave up, listed and left alone."""

import asyncio
import json
import os

import aio_pika
import pytest
from harness.broker import api
from harness.fake_gateway import fake_gateway
from harness.stack import ROOT, until
from harness.terminal import Terminal
from prometheus_client import CollectorRegistry, Counter
from typer.testing import CliRunner

from services.broker import topology
from services.broker.connection import connected
from services.broker.publisher import Publisher
from services.broker.settle import Consumer
from services.cli.main import app

EVENLOAD = str(ROOT / ".venv/bin/evenload")
HOSTILE = "\x1b[2J\x9b31m\u202e[red]\u0007 no envelope".encode() + b"\xff\x00"
SHOWN = r"\x1b[2J\x9b31m\u202e[red]\x07 no envelope\xff\x00"


def environment(vhost, **more):
    return {
        "EVENLOAD_CONSOLE_USER": "operator",
        "EVENLOAD_CONSOLE_PASSWORD": vhost.broker.passwords["operator"],
        "EVENLOAD_CONSOLE_VHOST": vhost.name,
        "COLUMNS": "160",
        **more,
    }


def run(vhost, *arguments, console=None, **more):
    address = console or vhost.broker.console_url
    return CliRunner(env=environment(vhost, **more)).invoke(app, ["dead", "--console", address, *arguments])


def told(vhost, *arguments):
    done = run(vhost, "--json", *arguments)
    assert done.exit_code == 0, done.output
    (line,) = done.stdout.splitlines()
    return json.loads(line)


async def meet_unreadable(vhost, *bodies):
    """Let a balancer's consumer meet messages that it cannot read."""
    registry = CollectorRegistry()
    settled = Counter("settled", "…", ["queue", "outcome"], registry=registry)
    unreadable = {"queue": topology.INTAKE, "outcome": "quarantined"}
    async with (
        connected(vhost.amqp_url("operator"), "test", 30) as sending,
        connected(vhost.amqp_url("balancer"), "test", 30) as publishing,
        connected(vhost.amqp_url("balancer"), "test", 30) as consuming,
    ):
        sender = Publisher(sending, 100)
        for body in bodies:
            await sender.publish(topology.REQUESTS, "", body, message_type="envelope")
        consumer = Consumer(topology.INTAKE, nobody, Publisher(publishing, 100), settled)
        task = asyncio.create_task(consumer.consume_for_ever(consuming, prefetch=10, tag="test"))
        async with asyncio.timeout(60):
            while (registry.get_sample_value("settled_total", unreadable) or 0) < len(bodies):
                await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def nobody(hints):
    raise AssertionError(f"no hint was readable, but here are {hints}")


async def publish(vhost, body, **properties):
    """Put a message into the graveyard that no service of ours wrote."""
    async with await aio_pika.connect(vhost.amqp_url("operator")) as connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange(topology.DEAD)
        await exchange.publish(aio_pika.Message(body, **properties), "")


def quarantine(vhost, *bodies):
    asyncio.run(meet_unreadable(vhost, *bodies))


def publish_dead(vhost, body, **properties):
    asyncio.run(publish(vhost, body, **properties))


async def return_once_too_often(vhost):
    async with await aio_pika.connect(vhost.amqp_url("operator")) as connection:
        channel = await connection.channel()
        await (await channel.get_exchange(topology.REQUESTS)).publish(aio_pika.Message(b"hint"), "")
        queue = await channel.get_queue(topology.INTAKE)
        async with asyncio.timeout(60):
            for _ in range(topology.DELIVERY_LIMIT + 1):
                while (message := await queue.get(fail=False)) is None:
                    await asyncio.sleep(0.05)
                await message.reject(requeue=True)


def test_where_nothing_lies_it_says_so(vhost):
    assert "nothing lies in charge.graveyard" in run(vhost).stdout
    assert told(vhost) == {"queue": "charge.graveyard", "messages": 0, "items": []}


def test_what_was_quarantined_is_listed_with_its_reason_and_stays(vhost):
    quarantine(vhost, HOSTILE, b"x" * 20_000)

    first = told(vhost)
    second = told(vhost)
    for answer in (first, second):
        for one in answer["items"]:
            assert one.pop("age_s") >= 0
    assert first == second
    assert first["messages"] == 2
    hostile, long = first["items"]
    assert "JSON" in hostile["reason"] or "UTF-8" in hostile["reason"]
    assert "20000 bytes" in long["reason"]
    assert [one["queue"] for one in first["items"]] == [topology.INTAKE] * 2
    assert (hostile["body"], hostile["bytes"]) == (SHOWN, len(HOSTILE))
    assert (long["body"], long["bytes"]) == ("x" * 200, 20_000)
    assert hostile["at"].endswith("Z")


def test_nothing_in_a_message_steers_a_terminal(vhost):
    quarantine(vhost, HOSTILE)
    forged = {"queue": "\x1b]0;owned\x07", "fault": "\x1b[31mred", "at_ms": 10**30, "bytes": [], "body": {"\x9b": 1}}
    publish_dead(vhost, json.dumps(forged).encode())
    publish_dead(vhost, HOSTILE, headers={"x-death": [{"reason": "\x1b[7m", "queue": "q\x08", "time": "noon"}]})
    publish_dead(vhost, b"\x80" * 100_000, headers={"x-death": "none"})

    shown = run(vhost)
    terminal = Terminal(
        [EVENLOAD, "dead", "--console", vhost.broker.console_url], {**os.environ, **environment(vhost)}, 160
    )

    assert (shown.exit_code, terminal.wait()) == (0, 0)
    for text in (shown.stdout, terminal.text):
        assert r"\x1b[2J\x9b31m\u202e[red]\x07" in text
        assert r"\x1b[31mred" in text
        assert "4 in charge.graveyard" in text
        assert not [sign for sign in text.replace("\r", "").replace("\n", "") if not sign.isprintable()]
    assert told(vhost)["messages"] == 4
    assert [one["reason"] for one in told(vhost)["items"][2:]] == [r"\x1b[7m", "unknown"]


def test_what_the_broker_gave_up_is_told_with_its_reason(vhost):
    asyncio.run(return_once_too_often(vhost))

    items = until(lambda: told(vhost)["items"], "a dead letter")
    assert items[0]["reason"] == "returned more often than the delivery limit allows"
    assert (items[0]["queue"], items[0]["body"], items[0]["bytes"]) == (topology.INTAKE, "hint", 4)
    assert items[0]["age_s"] >= 0


def test_the_oldest_are_shown_where_there_are_more(vhost):
    for number in range(5):
        publish_dead(vhost, b"%d" % number)

    answer = told(vhost, "--limit", "2")

    assert (answer["messages"], [one["body"] for one in answer["items"]]) == (5, ["0", "1"])
    assert "5 in charge.graveyard, of which the 2 oldest are shown" in run(vhost, "--limit", "2").stdout


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            {"EVENLOAD_CONSOLE_PASSWORD": "wrong"},
            "set EVENLOAD_CONSOLE_USER, EVENLOAD_CONSOLE_PASSWORD and EVENLOAD_CONSOLE_VHOST",
        ),
        ({"EVENLOAD_CONSOLE_VHOST": "nowhere"}, "in vhost 'nowhere': set EVENLOAD_CONSOLE_"),
        ({"console": "http://127.0.0.1:1"}, "no console answers at http://127.0.0.1:1"),
        ({"console": "http://someone:secret@127.0.0.1"}, "an address like http://127.0.0.1:15672"),
        ({"console": "ftp://127.0.0.1"}, "an address like http://127.0.0.1:15672"),
    ],
)
def test_a_console_that_cannot_be_used_is_told_with_the_cure(vhost, more, said):
    done = run(vhost, **more)

    assert done.exit_code == 1
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "secret" not in done.stderr


def test_a_user_without_the_consoles_tag_is_told_so(vhost):
    done = run(vhost, EVENLOAD_CONSOLE_USER="gateway", EVENLOAD_CONSOLE_PASSWORD=vhost.broker.passwords["gateway"])

    assert done.exit_code == 1
    assert "EVENLOAD_CONSOLE_USER" in done.stderr or "tag `management`" in done.stderr


def test_a_vhost_without_a_graveyard_is_told_so(vhost):
    api(vhost.broker, "DELETE", f"queues/{vhost.name}/{topology.GRAVEYARD}")

    assert "has no queue 'charge.graveyard' in vhost" in run(vhost).stderr


@pytest.mark.parametrize("answer", [b"<html>", {"not": "a list"}, [1]])
def test_what_is_no_console_is_told_so(vhost, answer):
    with fake_gateway() as other:
        other.answers["POST", f"/api/queues/{vhost.name}/charge.graveyard/get"] = (200, answer)
        done = run(vhost, console=other.url)

    assert done.exit_code == 1
    assert "is no RabbitMQ console: correct --console" in done.stderr


def test_without_a_stack_it_says_how_to_name_a_console(tmp_path):
    done = CliRunner(env={"EVENLOAD_DATA_DIR": str(tmp_path)}).invoke(app, ["dead"])

    assert done.exit_code == 1
    assert "start one with `make run`, or give --console" in done.stderr
