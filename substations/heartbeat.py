"""The heartbeat: one transaction per process and second writes progress and reads back what the ledger thinks.

What the ledger knows and the process does not is adopted: this repairs lost messages, lost replies and a wiped broker.
"""

import asyncio
from collections.abc import Mapping, Sequence

from services.clock import monotonic_s
from services.errors import LedgerUnavailable, Misconfigured
from services.ledger.charging import Charging
from services.ledger.records import Heartbeat
from services.logs import get_logger
from services.messages import Hint
from substations.worker import Worker

log = get_logger(__name__)

ADOPT_AFTER_MS = 2_000
"""How long an assigned row may wait for its message before the heartbeat brings it."""


async def beat_for_ever(workers: Mapping[str, Worker], ledger: Charging, heartbeat_s: float) -> None:
    """Beat until cancelled; raises `Misconfigured` when another process took a substation over."""
    while True:
        await asyncio.sleep(heartbeat_s)
        in_bays = {substation: tuple(worker.substation.in_bays) for substation, worker in workers.items()}
        asked_at_s = monotonic_s()
        try:
            for answer in await beat(workers, ledger):
                await _reconcile(workers[answer.substation], answer, in_bays[answer.substation], asked_at_s)
        except LedgerUnavailable as error:
            log.warning("heartbeat_missed", cause=str(error))


async def beat(workers: Mapping[str, Worker], ledger: Charging) -> list[Heartbeat]:
    """One heartbeat of all hosted substations; raises `LedgerUnavailable`."""
    epochs = {one.substation.id: one.substation.epoch for one in workers.values()}
    progress = [line for one in workers.values() for line in one.substation.progress()]
    return await ledger.heartbeat(epochs, progress, ADOPT_AFTER_MS)


async def _reconcile(worker: Worker, answer: Heartbeat, in_bays: Sequence[Hint], asked_at_s: float) -> None:
    """Take over what the ledger thinks; `in_bays` is who stood in a bay when it was asked, at `asked_at_s`."""
    substation = worker.substation
    if answer.epoch != substation.epoch:
        raise Misconfigured(
            f"another process hosts substation {substation.id!r} now (epoch {answer.epoch}, ours was "
            f"{substation.epoch}): give each process ids of its own in EVENLOAD_SUBSTATION_IDS"
        )
    adopted = substation.adopt(answer.charging, asked_at_s)
    if adopted:
        log.info("sessions_adopted", substation=substation.id, sessions=adopted)
    stopped = substation.stop(answer.stops_asked)
    if stopped:
        log.info("sessions_stopped", substation=substation.id, sessions=stopped)
    substation.vacate(set(in_bays) - set(answer.assigned))
    forgotten = [hint for hint in answer.overdue if hint not in substation.in_bays]
    if forgotten:
        log.info("assignments_adopted", substation=substation.id, requests=len(forgotten))
        await worker.take_in(forgotten)
    else:
        await worker.serve_bays()
