"""The heartbeat: takes the hosted substations' leases, renews them, and takes over what the ledger thinks.

A beat writes progress, takes grants, and reads back sessions, bays and stops. The beats of a process's substations
share a transaction, but each has an answer of its own. What the ledger knows and the process does not is adopted: this
repairs lost messages, lost replies, a wiped broker and restarts.
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
        self._begun: dict[str, int] = {}
        """The last epoch that this process has begun, by substation."""
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
            except LedgerUnavailable as error:  # the leases that we hold must be renewed all the same
                log.warning("lease_not_taken", cause=str(error))
            await self.beat()
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
        asked = await asyncio.gather(*(self._wait_for(one) for one in wanted))
        leases = {one: lease for found in asked for one, lease in found.items() if lease is not None}
        silent = self._watch.observe(leases.values(), monotonic_s())
        ready = []
        for one in (one for found in asked for one in found):
            lease = leases.get(one)
            is_ours = lease is not None and lease.holder == self._holder and not lease.is_released
            if lease is not None and is_ours and lease.epoch != self._begun.get(one):
                self._begin(one, lease.epoch)  # the answer to an earlier try was lost
            elif lease is None or lease.is_free or is_ours or silent[one] >= silence_s(self._lease_s):
                # An epoch that we have lost is never begun again: the ledger may not know all that we delivered in it,
                # and a new epoch counts the open grants as delivered.
                ready.append(self._registrations[one])
            else:
                self._refuse_living(lease)
        if ready:
            for substation, epoch in (await self._ledger.take(ready, leases, self._holder)).items():
                self._begin(substation, epoch)

    async def _wait_for(self, substation: str) -> dict[str, Lease | None]:
        """Its lease, None where it never had one; nothing where the ledger gives no answer."""
        try:
            leases = await self._ledger.wait_for([substation], self._holder)
        except LedgerUnavailable as error:
            log.warning("lease_not_seen", substation=substation, cause=str(error))
            return {}
        return {substation: leases.get(substation)}

    def _begin(self, substation: str, epoch: int) -> None:
        self._first_seen.pop(substation, None)
        self._begun[substation] = epoch
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
        """Renew what we hold, and take over the ledger's answers; a substation without an answer is left as it is."""
        told = self._beats()
        if not told:
            return
        crash_point("heartbeat.sent")
        answered = await asyncio.gather(*(self._beat_for(one) for one in told))
        if all(answered) and not self._wanted():
            self.all_held.set()

    async def _beat_for(self, beat: Beat) -> bool:
        """Beat for one substation; whether the ledger answered.

        Each beat is a call of its own. A beat that fails or is refused says nothing about the lease, nor about others.
        """
        substation = self._workers[beat.substation].substation
        sent_at_s = monotonic_s()
        adopt_after_ms = 0 if self._is_deaf() else ADOPT_AFTER_MS
        try:
            answers = await self._ledger.beat([beat], adopt_after_ms)
        except LedgerUnavailable as error:
            log.warning("heartbeat_missed", substation=beat.substation, cause=str(error))
            return False
        crash_point("heartbeat.applied")
        if substation.epoch != beat.epoch:
            return True
        if answers:
            substation.renew(sent_at_s, self._lease_s)
            self._told_applied[beat.substation] = beat.applied
            _hear(self._workers[beat.substation], answers[0], beat, sent_at_s)
        else:
            log.warning("lease_lost", substation=beat.substation, sessions=len(substation.sessions))
            substation.lose()
        return True

    async def release(self) -> None:
        """Settle all sessions and let the leases go, so that a successor need not wait; raises `LedgerUnavailable`."""
        released = await self._ledger.release(self._beats())
        for substation in released:
            self._workers[substation].substation.lose()
        log.info("leases_released", substations=sorted(released))

    def _beats(self) -> list[Beat]:
        held = [worker.substation for worker in self._workers.values() if worker.substation.is_held]
        return [one.beat(self._holder) for one in held]


def _hear(worker: Worker, answer: Heartbeat, told: Beat, sent_at_s: float) -> None:
    adopted, stopped = worker.substation.hear(answer, told, sent_at_s)
    if adopted:
        log.info("sessions_adopted", substation=answer.substation, sessions=adopted)
    if stopped:
        log.info("sessions_stopped", substation=answer.substation, sessions=stopped)
    worker.look_after(answer.overdue)


def _name(lease: Lease) -> str:
    return (lease.holder or "").rsplit(" #", maxsplit=1)[0]
