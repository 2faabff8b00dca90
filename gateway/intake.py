"""The gateway's intake: requests gather for 2 ms, commit as one transaction, are answered, then published."""

import asyncio
import contextlib
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from gateway.settings import GatewaySettings
from services.broker import topology
from services.broker.publisher import Publisher
from services.crash_points import crash_point
from services.errors import BrokerUnavailable, LedgerRefused, LedgerUnavailable, Unroutable
from services.ledger.intake import Intake
from services.ledger.records import Accepted, NewRequest, Refused, Unconfirmed
from services.logs import get_logger
from services.messages import Hint

log = get_logger(__name__)

COMMITS_AT_ONCE = 4
PUBLISHES_AT_ONCE = 8
PUBLISHES_MAX = 64
"""Publishes under way or waiting; beyond, the rows are left to the balancers, who look for them."""
ACCEPT_DEADLINE_S = 10.0
DRAIN_DEADLINE_S = 4.0


class Backlogged(Exception):
    """More requests wait to be written than the setting allows; try again later."""


@dataclass(eq=False)
class _Pending:
    new: NewRequest
    answer: asyncio.Future[Accepted]


class IntakeQueue:
    """Turns single requests into commits and envelopes; the ledger's row is the outbox.

    A publish that fails is no error for the client: balancers find the row in the ledger.
    """

    def __init__(self, ledger: Intake, publisher: Publisher, settings: GatewaySettings) -> None:
        self._ledger = ledger
        self._publisher = publisher
        self._settings = settings
        self._pending: asyncio.Queue[_Pending] = asyncio.Queue(settings.backlog_max)
        self._commits = asyncio.Semaphore(COMMITS_AT_ONCE)
        self._publishes = asyncio.Semaphore(PUBLISHES_AT_ONCE)
        self._publishing = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def accept(self, new: NewRequest) -> Accepted:
        """Durable when this returns; raises `Backlogged`, `LedgerRefused` or `LedgerUnavailable`."""
        pending = _Pending(new, asyncio.get_running_loop().create_future())
        try:
            self._pending.put_nowait(pending)
        except asyncio.QueueFull:
            raise Backlogged from None
        try:
            async with asyncio.timeout(ACCEPT_DEADLINE_S):
                return await pending.answer
        except TimeoutError:
            raise LedgerUnavailable(f"no commit within {ACCEPT_DEADLINE_S:g} s") from None

    async def run(self) -> None:
        """Gather and commit until cancelled."""
        while True:
            batch = [await self._pending.get()]
            await asyncio.sleep(self._settings.gather_ms / 1000)
            while len(batch) < self._settings.gather_max and not self._pending.empty():
                batch.append(self._pending.get_nowait())
            await self._commits.acquire()
            # Who gave up while waiting for the commits before has no answer to expect, and gets no request.
            self._spawn(self._commit([one for one in batch if not one.answer.done()]))

    async def drain(self) -> None:
        """Wait until what was accepted is published, but not for ever."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_DEADLINE_S):
                while self._tasks:
                    await asyncio.wait(set(self._tasks))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _commit(self, batch: list[_Pending]) -> None:
        try:
            accepted = await self._ledger.accept([one.new for one in batch])
        except Exception as error:
            for one in batch:
                if not one.answer.done():
                    one.answer.set_exception(error)
            return
        finally:
            self._commits.release()
        crash_point("gateway.committed")
        by_id = {one.asked: one for one in accepted}
        for one in batch:
            if not one.answer.done():
                self._answer(one, by_id[one.new.request_id])
        await asyncio.sleep(0)  # the answers leave first
        crash_point("gateway.replied")
        hints = [Hint(one.asked, 0) for one in accepted if isinstance(one, Accepted) and one.request_id == one.asked]
        if self._publishing >= PUBLISHES_MAX:
            log.warning("publish_left_to_the_ledger", requests=len(hints), cause="publishes are backed up")
            return
        self._publishing += 1
        try:
            async with self._publishes:
                await self._publish(hints)
        finally:
            self._publishing -= 1

    def _answer(self, one: _Pending, answer: Accepted | Refused | Unconfirmed) -> None:
        match answer:
            case Accepted():
                one.answer.set_result(answer)
            case Refused():
                one.answer.set_exception(LedgerRefused("a rule of the database forbids this request", answer.code))
            case Unconfirmed():
                one.answer.set_exception(LedgerUnavailable(f"it is not known to be written: {answer.cause}"))

    async def _publish(self, hints: list[Hint]) -> None:
        try:
            await self._publisher.publish_hints(topology.REQUESTS, "", hints)
            crash_point("gateway.published")
        except (BrokerUnavailable, Unroutable) as error:
            log.warning("publish_left_to_the_ledger", requests=len(hints), cause=str(error))
