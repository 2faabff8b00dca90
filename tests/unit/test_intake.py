"""The gateway's intake: nobody is answered and nothing is published before the commit."""

import asyncio
import contextlib

import pytest
from harness.ledger import new_request

from gateway.intake import COMMITS_AT_ONCE, PUBLISHES_AT_ONCE, PUBLISHES_MAX, Backlogged, IntakeQueue
from gateway.settings import GatewaySettings
from services.broker import topology
from services.errors import BrokerUnavailable, LedgerRefused, LedgerUnavailable, Unroutable
from services.ledger.records import Accepted, Refused, Unconfirmed
from services.messages import Hint

PATIENCE_S = 10


class Ledger:
    """Commits as soon as the test lets it, or fails."""

    def __init__(self):
        self.batches = []
        """The ids of each commit that was asked for."""
        self.may_commit = asyncio.Event()
        self.may_commit.set()
        self.fault = None
        self.first_of_key = {}
        self.refused = set()
        self.unconfirmed = set()

    async def accept(self, requests):
        self.batches.append([one.request_id for one in requests])
        await self.may_commit.wait()
        if self.fault:
            raise self.fault
        return [
            Refused(one.request_id, "23514")
            if one.request_id in self.refused
            else Unconfirmed(one.request_id, "connection lost")
            if one.request_id in self.unconfirmed
            else Accepted(
                one.request_id, self.first_of_key.get(one.idempotency_key, one.request_id), 1_000, 2_000, None
            )
            for one in requests
        ]

    @property
    def asked_for(self):
        return [request_id for batch in self.batches for request_id in batch]


class Publisher:
    """Confirms as soon as the test lets it, or fails."""

    def __init__(self):
        self.published = []
        self.may_confirm = asyncio.Event()
        self.may_confirm.set()
        self.fault = None

    async def publish_hints(self, exchange, routing_key, hints):
        assert (exchange, routing_key) == (topology.REQUESTS, "")
        self.published += hints
        await self.may_confirm.wait()
        if self.fault:
            raise self.fault


class Parts:
    def __init__(self, **settings):
        self.ledger, self.publisher = Ledger(), Publisher()
        self.intake = IntakeQueue(self.ledger, self.publisher, GatewaySettings(**{"gather_ms": 0, **settings}))

    def ask(self, request_id, **changes):
        """A caller of its own that asks for a request."""
        return asyncio.create_task(self.intake.accept(new_request(request_id, **changes)))

    async def ask_in_a_commit_of_its_own(self, request_id):
        before = len(self.ledger.batches)
        caller = self.ask(request_id)
        await until(lambda: len(self.ledger.batches) > before)
        return caller


@contextlib.asynccontextmanager
async def running(**settings):
    parts = Parts(**settings)
    gathering = asyncio.create_task(parts.intake.run())
    try:
        yield parts
    finally:
        gathering.cancel()
        await asyncio.gather(gathering, return_exceptions=True)


@pytest.fixture
async def parts():
    async with running() as one:
        yield one


async def until(condition):
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0)


async def nothing_more_happens():
    """Nothing here waits for a clock, so a few rounds of the loop are enough for all that can happen."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_nobody_is_answered_and_nothing_is_published_before_the_commit(parts):
    parts.ledger.may_commit.clear()
    caller = parts.ask("a")
    await until(lambda: parts.ledger.batches)
    await nothing_more_happens()

    assert not caller.done()
    assert parts.publisher.published == []

    parts.ledger.may_commit.set()
    assert await caller == Accepted("a", "a", 1_000, 2_000, None)
    await parts.intake.drain()
    assert parts.publisher.published == [Hint("a", 0)]


async def test_the_answer_does_not_wait_for_the_broker(parts):
    parts.publisher.may_confirm.clear()

    assert (await parts.ask("a")).request_id == "a"

    await until(lambda: parts.publisher.published)


@pytest.mark.parametrize("fault", [LedgerUnavailable("locked"), RuntimeError("a bug")])
async def test_a_commit_that_fails_is_told_to_all_its_callers_and_nothing_of_it_is_published(parts, fault):
    parts.ledger.fault = fault
    callers = [parts.ask(one) for one in "ab"]

    assert await asyncio.gather(*callers, return_exceptions=True) == [fault, fault]

    parts.ledger.fault = None
    await parts.ask("c")
    await parts.intake.drain()
    assert parts.publisher.published == [Hint("c", 0)]


async def test_a_ledger_that_answers_too_late_is_told_as_unavailable(parts, monkeypatch):
    monkeypatch.setattr("gateway.intake.ACCEPT_DEADLINE_S", 0.01)
    parts.ledger.may_commit.clear()

    with pytest.raises(LedgerUnavailable, match="no commit within"):
        await parts.ask("a")


async def test_who_gives_up_before_its_commit_has_begun_gets_no_request(parts):
    parts.ledger.may_commit.clear()
    busy = [await parts.ask_in_a_commit_of_its_own(f"busy-{number}") for number in range(COMMITS_AT_ONCE)]
    gone, stays = parts.ask("gone"), parts.ask("stays")
    await nothing_more_happens()

    gone.cancel()
    await asyncio.wait({gone})
    parts.ledger.may_commit.set()
    await asyncio.gather(stays, *busy)

    assert "stays" in parts.ledger.asked_for
    assert "gone" not in parts.ledger.asked_for


async def test_who_gives_up_while_its_commit_is_under_way_keeps_nobody_else_from_an_answer(parts):
    parts.ledger.may_commit.clear()
    gone, stays = parts.ask("gone"), parts.ask("stays")
    await until(lambda: parts.ledger.asked_for == ["gone", "stays"])

    gone.cancel()
    await asyncio.wait({gone})
    parts.ledger.may_commit.set()

    assert (await stays).request_id == "stays"
    await parts.intake.drain()
    assert parts.publisher.published == [Hint("gone", 0), Hint("stays", 0)]


async def test_requests_that_come_together_are_one_commit_of_bounded_size():
    async with running(gather_max=3) as parts:
        await asyncio.gather(*(parts.ask(one) for one in "abcde"))

    assert parts.ledger.batches == [["a", "b", "c"], ["d", "e"]]


async def test_beyond_the_backlog_callers_are_sent_away():
    parts = Parts(backlog_max=2)  # nobody gathers
    waiting = [parts.ask(one) for one in "ab"]
    await nothing_more_happens()

    with pytest.raises(Backlogged):
        await parts.ask("c")

    for one in waiting:
        one.cancel()


async def test_only_so_many_commits_run_at_once(parts):
    parts.ledger.may_commit.clear()
    callers = [await parts.ask_in_a_commit_of_its_own(f"r{number}") for number in range(COMMITS_AT_ONCE)]
    callers.append(parts.ask("one more"))
    await nothing_more_happens()

    assert len(parts.ledger.batches) == COMMITS_AT_ONCE

    parts.ledger.may_commit.set()
    await asyncio.gather(*callers)


@pytest.mark.parametrize("fault", [BrokerUnavailable("no confirm"), Unroutable("no queue")])
async def test_a_publish_that_fails_is_no_error_for_the_client(parts, fault):
    parts.publisher.fault = fault

    assert (await parts.ask("a")).request_id == "a"
    await parts.intake.drain()
    assert (await parts.ask("b")).request_id == "b"


async def test_what_an_earlier_call_accepted_under_the_same_key_is_answered_and_not_published_again(parts):
    parts.ledger.first_of_key = {"k": "first"}

    answer = await parts.ask("again", idempotency_key="k", body_hash="h")
    await parts.intake.drain()

    assert (answer.asked, answer.request_id) == ("again", "first")
    assert parts.publisher.published == []


async def test_of_a_commit_that_was_half_done_the_durable_half_is_answered_and_published(parts):
    parts.ledger.unconfirmed = {"b"}

    a, b = await asyncio.gather(parts.ask("a"), parts.ask("b"), return_exceptions=True)

    assert a.request_id == "a"
    assert (type(b), str(b)) == (LedgerUnavailable, "it is not known to be written: connection lost")
    await parts.intake.drain()
    assert parts.publisher.published == [Hint("a", 0)]


async def test_a_drain_waits_until_what_was_accepted_is_published(parts):
    parts.publisher.may_confirm.clear()
    await parts.ask("a")
    draining = asyncio.create_task(parts.intake.drain())
    await nothing_more_happens()
    assert not draining.done()

    parts.publisher.may_confirm.set()
    await draining


async def test_publishes_that_are_backed_up_are_left_to_the_ledger(parts):
    parts.publisher.may_confirm.clear()
    for number in range(PUBLISHES_MAX + 1):
        await parts.ask(f"r{number}")
        await nothing_more_happens()
    assert len(parts.publisher.published) == PUBLISHES_AT_ONCE

    parts.publisher.may_confirm.set()
    await parts.intake.drain()

    assert parts.publisher.published == [Hint(f"r{number}", 0) for number in range(PUBLISHES_MAX)]


async def test_a_request_that_the_database_forbids_fails_alone_and_is_not_published(parts):
    parts.ledger.refused = {"b"}

    a, b, c = await asyncio.gather(*(parts.ask(one) for one in "abc"), return_exceptions=True)

    assert (a.request_id, c.request_id) == ("a", "c")
    assert (type(b), b.code) == (LedgerRefused, "23514")
    await parts.intake.drain()
    assert parts.publisher.published == [Hint("a", 0), Hint("c", 0)]
