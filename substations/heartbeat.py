"""The heartbeat: takes the hosted substations' leases, renews them, and takes over what the ledger thinks.

A beat writes progress, takes grants, and reads back sessions, bays and stops. Each substation of a process has beats of
its own, so that none waits for another. What the ledger knows and the process does not is adopted: this repairs lost
messages, lost replies, a wiped broker and restarts.
"""

import asyncio
import math
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
from services.tasks import run_together
from substations.substation import Substation
from substations.worker import Worker

log = get_logger(__name__)

ADOPT_AFTER_MS = 2_000
"""How long an assigned row may wait for its message before the heartbeat brings it."""
LOOK_EVERY_S = 0.25
"""How often a lease is looked at that somebody else holds still, at the least."""
HELD_OFF_SILENCES = 3
"""For how many silences a lease that was given back is left alone. The sweep needs one to send its sessions on."""
VAIN_RENEWALS_MAX = 3
"""So many renewals in a row may be known too late to charge by. Then the lease is given back: the sessions that stand
still here go on elsewhere."""
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
        self._watches = {one: SilenceWatch(lease_s) for one in workers}
        self._first_seen: dict[str, Lease] = {}
        self._begun: dict[str, int] = {}
        """The last epoch that this process has begun, by substation."""
        self._told_applied: dict[str, Orders | None] = {}
        self._vain: dict[str, set[int]] = {one: set() for one in workers}
        """The renewals that were seen since sessions could run last, by substation."""
        self._held_off_until_s: dict[str, float] = {}
        """When a lease that was given back may be taken again: the sweep has sent its sessions on by then."""
        self.held = {one: asyncio.Event() for one in workers}
        """Each is set once that substation was ours and its lease renewed."""
        self.all_held = asyncio.Event()
        """Set once all of `held` are."""

    async def beat_for_ever(self) -> None:
        """Beat until cancelled; raises `Misconfigured` where another process holds one of the substations."""
        count = len(self._workers)
        parts = [number / count if count > 1 else 0.0 for number in range(1, count + 1)]
        await run_together(*map(self._keep, self._workers, parts))

    async def _keep(self, substation: str, part: float) -> None:
        """Hold one substation, in a loop of its own: a lease that cannot be taken or renewed holds up no other.

        A process writes one transaction at a time, and a call that fails may have taken long, for instance because of a
        locked row. Then the writer is left to the others for a `part` of that time. Each substation has another part:
        calls that fail together must not come together again.
        """
        loop = asyncio.get_running_loop()
        while True:
            began_at = loop.time()
            is_answered = await self._take_and_beat(substation)
            took_s = loop.time() - began_at
            left_to_others_s = 0.0 if is_answered else part * min(took_s, self._lease_s / 2)
            await asyncio.sleep(max(left_to_others_s, self.pause_s(substation) - took_s))

    async def _take_and_beat(self, substation: str) -> bool:
        """Whether the ledger answered."""
        try:
            await self.take(substation)
        except LedgerUnavailable as error:
            log.warning("lease_not_taken", substation=substation, cause=str(error))
            return False
        return await self.beat(substation)

    def pause_s(self, substation: str) -> float:
        """Wall time from one beat to the next.

        Shorter while a lease is awaited, or orders were heard whose application has not been told yet.
        """
        hosted = self._workers[substation].substation
        is_hurried = not hosted.is_held or hosted.orders != self._told_applied.get(substation)
        return look_every_s(self._heartbeat_s) if is_hurried else self._heartbeat_s

    async def take(self, substation: str) -> None:
        """Take a lease that is free, or has been silent for long enough; raises as `beat_for_ever`."""
        if self._workers[substation].substation.is_held:
            return
        if monotonic_s() < self._held_off_until_s.get(substation, -math.inf):
            return
        leases = await self._ledger.wait_for([substation], self._holder)
        silent_s = self._watches[substation].observe(leases.values(), monotonic_s())
        lease = leases.get(substation)
        is_ours = lease is not None and lease.holder == self._holder and not lease.is_released
        if lease is not None and is_ours and lease.epoch != self._begun.get(substation):
            self._begin(substation, lease.epoch)  # the answer to an earlier try was lost
        elif lease is None or lease.is_free or is_ours or silent_s[substation] >= silence_s(self._lease_s):
            # An epoch that we have lost is never begun again: the ledger may not know all that we delivered in it,
            # and a new epoch counts the open grants as delivered.
            taken = await self._ledger.take([self._registrations[substation]], leases, self._holder)
            if substation in taken:
                self._begin(substation, taken[substation])
        else:
            self._refuse_living(lease)

    def _begin(self, substation: str, epoch: int) -> None:
        self._first_seen.pop(substation, None)
        self._begun[substation] = epoch
        self._workers[substation].substation.begin(epoch)
        log.info("substation_taken", substation=substation, epoch=epoch)

    def _refuse_living(self, lease: Lease) -> None:
        """Raise `Misconfigured` where a lease moves under one and the same holder: it lives.

        One that this process gave back may have a new holder, which is no reason to end the others that it hosts.
        """
        was_given_back = lease.substation in self._held_off_until_s and len(self._workers) > 1
        first = self._first_seen.get(lease.substation)
        if first is None or first.holder != lease.holder:
            self._first_seen[lease.substation] = lease
            log.info("substation_awaited", substation=lease.substation, holder=_name(lease), lease_s=self._lease_s)
        elif lease.renewals > first.renewals and not was_given_back:
            raise Misconfigured(
                f"substation {lease.substation!r} is hosted by {_name(lease)}, which is alive: stop that process, or "
                "start this one with other ids in EVENLOAD_SUBSTATION_IDS, or with none, and it takes one that is free"
            )

    async def beat(self, substation: str) -> bool:
        """Renew the lease if it is ours, and take over the ledger's answer; whether there was one.

        Without an answer all is left as it is: that a beat fails or is refused says nothing about the lease.
        """
        worker = self._workers[substation]
        if not worker.substation.is_held:
            return True
        told, sent_at_s = worker.substation.beat(self._holder), monotonic_s()
        adopt_after_ms = 0 if self._is_deaf() else ADOPT_AFTER_MS
        crash_point("heartbeat.sent")
        is_answered = False
        try:
            answers = await self._ledger.beat([told], adopt_after_ms)
        except LedgerUnavailable as error:
            log.warning("heartbeat_missed", substation=substation, cause=str(error))
        else:
            crash_point("heartbeat.applied")
            is_answered = True
            if worker.substation.epoch == told.epoch:
                self._take_over(worker, answers, told, sent_at_s)
        if not worker.substation.is_fenced(monotonic_s()):
            self._vain[substation].clear()
            self.held[substation].set()
            if all(one.is_set() for one in self.held.values()):
                self.all_held.set()
        elif worker.substation.epoch == told.epoch:
            await self._note_in_vain(worker.substation)
        return is_answered

    def _take_over(self, worker: Worker, answers: Sequence[Heartbeat], told: Beat, sent_at_s: float) -> None:
        if answers:
            worker.substation.renew(sent_at_s, self._lease_s)
            self._told_applied[told.substation] = told.applied
            _hear(worker, answers[0], told, sent_at_s)
        else:
            log.warning("lease_lost", substation=told.substation, sessions=len(worker.substation.sessions))
            worker.substation.lose()

    async def _note_in_vain(self, substation: Substation) -> None:
        """Give the lease back where it is renewed again and again, but each answer comes behind the fence, or never.

        To everybody else such a lease looks alive, so that nobody would ever take its sessions over. Where the ledger
        is away, nobody sees a renewal, and the lease is kept.
        """
        vain = self._vain[substation.id]
        try:
            vain.update(one.renewals for one in await self._ledger.leases_of([substation.id]))
        except LedgerUnavailable:
            return
        if len(vain) <= VAIN_RENEWALS_MAX:
            return
        log.warning("lease_given_back", substation=substation.id, sessions=len(substation.sessions))
        try:
            await self._ledger.release([substation.beat(self._holder)])
        except LedgerUnavailable as error:
            log.warning("lease_left_to_the_sweep", substation=substation.id, cause=str(error))
        vain.clear()
        substation.lose()
        self._held_off_until_s[substation.id] = monotonic_s() + HELD_OFF_SILENCES * silence_s(self._lease_s)

    async def release(self) -> None:
        """Settle all sessions and let the leases go, so that a successor need not wait; raises `LedgerUnavailable`."""
        held = [worker.substation for worker in self._workers.values() if worker.substation.is_held]
        released = await self._ledger.release([one.beat(self._holder) for one in held])
        for substation in released:
            self._workers[substation].substation.lose()
        log.info("leases_released", substations=sorted(released))


def _hear(worker: Worker, answer: Heartbeat, told: Beat, sent_at_s: float) -> None:
    adopted, stopped = worker.substation.hear(answer, told, sent_at_s)
    if adopted:
        log.info("sessions_adopted", substation=answer.substation, sessions=adopted)
    if stopped:
        log.info("sessions_stopped", substation=answer.substation, sessions=stopped)
    worker.look_after(answer.overdue)


def _name(lease: Lease) -> str:
    return (lease.holder or "").rsplit(" #", maxsplit=1)[0]
