"""The life of a `substations` process: register, resume, then consume; progress is written at the end."""

import asyncio
import contextlib
from contextlib import AsyncExitStack

from services.backends import opened
from services.broker import topology
from services.broker.settle import Consumer
from services.clock import monotonic_s
from services.errors import LedgerUnavailable, Misconfigured
from services.grid import SubstationSpec, load_grid
from services.ledger.charging import LedgerCharging
from services.ledger.records import Registration, Tenure
from services.lifecycle import Life, run
from services.logs import get_logger
from substations.collector import SubstationCollector
from substations.heartbeat import beat, beat_for_ever
from substations.settings import SubstationSettings
from substations.sharing import POLICIES
from substations.substation import Substation
from substations.tick_log import TickLog
from substations.worker import Worker

log = get_logger(__name__)

LAST_WORDS_S = 3.0


async def serve(life: Life, settings: SubstationSettings) -> None:
    """Charge until told to stop; sessions stay in the ledger and go on at the next start."""
    common = life.common
    specs = {spec.id: spec for spec in load_grid(common.grid).pick(settings.hosted_ids())}
    for spec in specs.values():
        if settings.floor_w > spec.limit_w:
            raise Misconfigured(
                f"EVENLOAD_SUBSTATION_FLOOR_KW: {settings.floor_kw:g} kW is above the limit of {spec.id!r}, "
                f"{spec.limit_w / 1000:g} kW, so that no session could run: lower it"
            )
    async with AsyncExitStack() as stack:
        backends = await stack.enter_async_context(opened(life))
        ledger = LedgerCharging(backends.ledger)
        tenures = await ledger.register([_registration(spec, life.admin.url) for spec in specs.values()])
        workers = {}
        for tenure in tenures:
            substation = _resumed(tenure, specs[tenure.substation], common.speed, settings)
            tick_log = None
            if settings.tick_log is not None:
                tick_log = TickLog(settings.tick_log, substation)
                stack.callback(tick_log.close)
            workers[substation.id] = Worker(substation, ledger, tick_log)
        life.metrics.registry.register(SubstationCollector([one.substation for one in workers.values()]))

        async def write_progress() -> None:
            with contextlib.suppress(LedgerUnavailable, TimeoutError):
                async with asyncio.timeout(LAST_WORDS_S):
                    for worker in workers.values():
                        await worker.settle()
                    await beat(workers, ledger)

        stack.push_async_callback(write_progress)
        await stack.enter_async_context(
            life.background(
                *(worker.tick_for_ever(settings.tick_s) for worker in workers.values()),
                beat_for_ever(workers, ledger, settings.heartbeat_s),
            )
        )
        consumers = {
            one: Consumer(
                topology.substation_queue(one), worker.take_in, backends.publisher, life.metrics.messages_settled
            )
            for one, worker in workers.items()
        }
        await stack.enter_async_context(
            life.background(
                *(
                    consumer.consume(
                        backends.consuming,
                        prefetch=settings.prefetch,
                        tag=f"{life.instance} {one}",
                        bind_to=topology.ASSIGNMENTS,
                    )
                    for one, consumer in consumers.items()
                )
            )
        )
        await life.serve_until_stopped()


def _registration(spec: SubstationSpec, metrics_url: str) -> Registration:
    return Registration(spec.id, spec.zone, spec.rated_w, spec.limit_w, spec.connectors, spec.waiting_bays, metrics_url)


def _resumed(tenure: Tenure, spec: SubstationSpec, speed: float, settings: SubstationSettings) -> Substation:
    now_s = monotonic_s()
    substation = Substation(
        id=tenure.substation,
        rated_w=spec.rated_w,
        limit_w=spec.limit_w,
        connectors=spec.connectors,
        bays=spec.waiting_bays,
        epoch=tenure.epoch,
        speed=speed,
        ticked_at_s=now_s,
        floor_w=settings.floor_w,
        sharing=POLICIES[settings.sharing],
    )
    resumed = substation.adopt(tenure.resumed, now_s)
    log.info("substation_registered", substation=tenure.substation, epoch=tenure.epoch, resumed=resumed)
    return substation


def main() -> None:
    """Entry point of `python -m substations`."""
    run("substations", SubstationSettings, serve)
