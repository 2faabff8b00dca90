"""The heartbeat: takes the hosted substations' leases, renews them, and takes over what the ledger thinks.

One transaction per process and beat writes progress, takes grants, and reads back sessions, bays and stops. What the
ledger knows and the process does not is adopted: this repairs lost messages, lost replies, a wiped broker and restarts.
"""

import asyncio
import os
import secrets
import socket
from collections.abc import Callable, Mapping, Sequence

from services.clock import monotonic_s
from services.crash_points import crash_point
from services.errors import LedgerUnavailable, Misconfigured
from services.ledger.leases import Lease, SilenceWatch, silence_s
from services.ledger.records import Beat, Heartbeat, Orders, Registration
from services.ledger.tenancy import Tenancy
from services.logs import get_logger
from substations.worker import Worker

log = get_logger(__name__)

ADOPT_AFTER_MS = 2_000
"""How long an assigned row may wait for its message before the heartbeat brings it."""
LOOK_EVERY_S = 0.25
"""How often a lease is looked at that somebody else holds still, at the least."""
GRANT_BEATS = 3
"""For how many beats a grant lasts: one to come, one that may be late or lost, one to be answered."""


def new_holder(instance: str) -> str:
    """The name of this process in its leases: it tells people who that is, and tells it from every other process."""
    return f"{instance} (process {os.getpid()} on {socket.gethostname()}) #{secrets.token_hex(8)}"


def look_every_s(heartbeat_s: float) -> float:
    """Wall time between two looks at a lease that somebody else holds."""
    return min(LOOK_EVERY_S, heartbeat_s / 2)


class Host:
    """One process's hold on its substations, as `holder`; see `new_holder`."""

    def __init__(
        self,
        workers: Mapping[str, Worker],
        registrations: Sequence[Registration],
        ledger: Tenancy,
        *,
        holder: str,
        lease_s: float,
        heartbeat_s: float,
        is_deaf: Callable[[], bool] = lambda: False,
    ) -> None:
        """`is_deaf` tells that no message can come now: then the beat brings each assignment at once."""
        self._workers = workers
        self._registrations = {one.substation: one for one in registrations}
        self._ledger = ledger
        self._holder = holder
        self._lease_s = lease_s
        self._heartbeat_s = heartbeat_s
        self._is_deaf = is_deaf
        self._watch = SilenceWatch(lease_s)
        self._first_seen: dict[str, Lease] = {}
        self._told_applied: dict[str, Orders | None] = {}
        self.all_held = asyncio.Event()
        """Set once every hosted substation was ours and its lease renewed."""

    async def beat_for_ever(self) -> None:
        """Beat until cancelled; raises `Misconfigured` where another process holds one of the substations."""
        loop = asyncio.get_running_loop()
        while True:
            began_at = loop.time()
            try:
                await self.take()
                await self.beat()
            except LedgerUnavailable as error:
                log.warning("heartbeat_missed", cause=str(error))
            await asyncio.sleep(max(0.0, began_at + self.pause_s - loop.time()))

    def _wanted(self) -> list[str]:
        return [one for one, worker in self._workers.items() if not worker.substation.is_held]

    @property
    def pause_s(self) -> float:
        """Wall time from one beat to the next.

        Shorter while a lease is awaited, or orders were heard whose application has not been told yet.
        """
        hosted = [worker.substation for worker in self._workers.values()]
        is_hurried = any(not one.is_held or one.orders != self._told_applied.get(one.id) for one in hosted)
        return look_every_s(self._heartbeat_s) if is_hurried else self._heartbeat_s

    async def take(self) -> None:
        """Take the leases that are free, or have been silent for long enough; raises as `beat_for_ever`."""
        wanted = self._wanted()
        if not wanted:
            return
        leases = await self._ledger.wait_for(wanted, self._holder)
        silent = self._watch.observe(leases.values(), monotonic_s())
        ready = []
        for one in wanted:
            lease = leases.get(one)
            if lease is not None and lease.holder == self._holder and not lease.is_released:
                self._begin(one, lease.epoch)  # the answer to an earlier try was lost
            elif lease is None or lease.is_free or silent[one] >= silence_s(self._lease_s):
                ready.append(self._registrations[one])
            else:
                self._refuse_living(lease)
        if ready:
            for substation, epoch in (await self._ledger.take(ready, leases, self._holder)).items():
                self._begin(substation, epoch)

    def _begin(self, substation: str, epoch: int) -> None:
        self._first_seen.pop(substation, None)
        self._workers[substation].substation.begin(epoch)
        log.info("substation_taken", substation=substation, epoch=epoch)

    def _refuse_living(self, lease: Lease) -> None:
        """Raise `Misconfigured` where a lease moves under one and the same holder: it lives."""
        first = self._first_seen.get(lease.substation)
        if first is None or first.holder != lease.holder:
            self._first_seen[lease.substation] = lease
            log.info("substation_awaited", substation=lease.substation, holder=_name(lease), lease_s=self._lease_s)
        elif lease.renewals > first.renewals:
            raise Misconfigured(
                f"substation {lease.substation!r} is hosted by {_name(lease)}, which is alive: stop that process, or "
                "start this one with other ids in EVENLOAD_SUBSTATION_IDS, or with none, and it takes one that is free"
            )

    async def beat(self) -> None:
        """Renew what we hold, and take over the ledger's answers; raises `LedgerUnavailable`."""
        told = self._beats()
        if not told:
            return
        crash_point("heartbeat.sent")
        sent_at_s = monotonic_s()
        adopt_after_ms = 0 if self._is_deaf() else ADOPT_AFTER_MS
        answers = {one.substation: one for one in await self._ledger.beat(list(told.values()), adopt_after_ms)}
        crash_point("heartbeat.applied")
        for substation, beat in told.items():
            worker = self._workers[substation]
            if worker.substation.epoch != beat.epoch:
                continue
            if substation in answers:
                worker.substation.renew(sent_at_s, self._lease_s)
                self._told_applied[substation] = beat.applied
                _hear(worker, answers[substation], beat, sent_at_s)
            else:
                log.warning("lease_lost", substation=substation, sessions=len(worker.substation.sessions))
                worker.substation.lose()
        if not self._wanted():
            self.all_held.set()

    async def release(self) -> None:
        """Settle all sessions and let the leases go, so that a successor need not wait; raises `LedgerUnavailable`."""
        released = await self._ledger.release(list(self._beats().values()))
        for substation in released:
            self._workers[substation].substation.lose()
        log.info("leases_released", substations=sorted(released))

    def _beats(self) -> dict[str, Beat]:
        held = [worker.substation for worker in self._workers.values() if worker.substation.is_held]
        return {one.id: one.beat(self._holder) for one in held}


def _hear(worker: Worker, answer: Heartbeat, told: Beat, sent_at_s: float) -> None:
    adopted, stopped = worker.substation.hear(answer, told, sent_at_s)
    if adopted:
        log.info("sessions_adopted", substation=answer.substation, sessions=adopted)
    if stopped:
        log.info("sessions_stopped", substation=answer.substation, sessions=stopped)
    worker.look_after(answer.overdue)


def _name(lease: Lease) -> str:
    return (lease.holder or "").rsplit(" #", maxsplit=1)[0]
