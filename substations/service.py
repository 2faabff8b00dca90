"""The life of a `substations` process: take the leases, resume, consume; settle and release at the end."""

import asyncio
import contextlib
import math
from collections.abc import Sequence
from contextlib import AsyncExitStack

from services.backends import broker_opened, ledger_opened
from services.broker import topology
from services.broker.settle import Consumer
from services.clock import monotonic_s
from services.crash_points import crash_point
from services.errors import LedgerUnavailable, Misconfigured
from services.grid import Grid, SubstationSpec, load_grid
from services.ledger.charging import LedgerCharging
from services.ledger.records import Registration
from services.ledger.tenancy import LedgerTenancy, Tenancy
from services.lifecycle import Life, run
from substations.choice import Chooser
from substations.collector import SubstationCollector
from substations.heartbeat import GRANT_BEATS, Host, look_every_s, new_holder
from substations.search import Search
from substations.settings import SubstationSettings
from substations.sharing import POLICIES
from substations.substation import Substation
from substations.tick_log import TickLog
from substations.witness import Witness
from substations.worker import Worker

LAST_WORDS_S = 3.0


async def serve(life: Life, settings: SubstationSettings) -> None:
    """Charge until told to stop; sessions stay in the ledger and go on at the next start."""
    common = life.common
    _refuse_slow_beats(settings.heartbeat_s, common.lease_s)
    grid = load_grid(common.grid)
    specs = grid.pick(settings.hosted_ids())
    _refuse_high_floor(settings, specs or grid.substation)
    holder = new_holder(life.instance)
    async with AsyncExitStack() as stack:
        connection = await stack.enter_async_context(ledger_opened(life))
        if not specs:
            spec = await _take_one(life, settings, grid, LedgerTenancy(connection), holder)
            if spec is None:
                return
            specs = [spec]
        broker = await stack.enter_async_context(broker_opened(life))
        ledger = LedgerCharging(connection)
        workers = {}
        for spec in specs:
            substation = _substation(spec, common.speed, settings)
            tick_log, witness = _records(settings, stack)
            workers[spec.id] = Worker(substation, ledger, tick_log=tick_log, witness=witness)
        life.metrics.registry.register(SubstationCollector([one.substation for one in workers.values()]))
        host = Host(
            workers,
            [_registration(spec, life.admin.url) for spec in specs],
            LedgerTenancy(connection),
            holder=holder,
            lease_s=common.lease_s,
            heartbeat_s=settings.heartbeat_s,
            is_deaf=lambda: broker.consuming.is_deaf,
        )

        async def settle_and_release() -> None:
            for worker in workers.values():
                worker.leave()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_S):
                    await asyncio.gather(*(worker.settle() for worker in workers.values()))
            crash_point("substation.settled")
            with contextlib.suppress(LedgerUnavailable, TimeoutError):
                async with asyncio.timeout(LAST_WORDS_S):
                    await host.release()

        stack.push_async_callback(settle_and_release)
        life.has_begun = True
        await stack.enter_async_context(
            life.background(
                *(worker.tick_for_ever(settings.tick_s) for worker in workers.values()), host.beat_for_ever()
            )
        )

        async def consume_once_held(one: str, worker: Worker) -> None:
            """Until then the messages are for whoever holds it still."""
            await broker.usable.wait()
            await host.held[one].wait()
            queue = topology.substation_queue(one)
            consumer = Consumer(queue, worker.take_in, broker.publisher, life.metrics.messages_settled)
            await consumer.consume_for_ever(
                broker.consuming, prefetch=settings.prefetch, tag=f"{life.instance} {one}", bind_to=topology.ASSIGNMENTS
            )

        await stack.enter_async_context(life.background(*(consume_once_held(*one) for one in workers.items())))
        for awaited in (broker.usable, host.all_held):
            if not await life.wait_for(awaited.wait()):
                return
        await life.serve_until_stopped()


async def _take_one(
    life: Life, settings: SubstationSettings, grid: Grid, ledger: Tenancy, holder: str
) -> SubstationSpec | None:
    """Take a substation that is free, and a name from it unless one was given; None where a signal came first."""
    chooser = Chooser(grid, lease_s=life.common.lease_s, heartbeat_s=settings.heartbeat_s)
    search = Search(ledger, chooser, lambda one: _registration(grid.spec(one), life.admin.url), holder)
    async with broker_opened(life) as broker:
        # A process that could not serve a substation must not hold one.
        if not await life.wait_for(broker.usable.wait()):
            return None
        taken = await life.wait_for(search.until_taken(look_every_s(settings.heartbeat_s)))
    if taken is None:
        return None
    if life.common.instance is None:
        life.rename(f"substation-{taken}")  # the broker, which shows connections by name, is connected to anew
    return grid.spec(taken)


def _records(settings: SubstationSettings, stack: AsyncExitStack) -> tuple[TickLog | None, Witness | None]:
    """What is written down of one substation for checks from outside, closed with `stack`."""
    tick_log = TickLog(settings.tick_log) if settings.tick_log is not None else None
    witness = Witness(settings.witness) if settings.witness is not None else None
    for one in (tick_log, witness):
        if one is not None:
            stack.callback(one.close)
    return tick_log, witness


def _registration(spec: SubstationSpec, metrics_url: str) -> Registration:
    return Registration(spec.id, spec.zone, spec.rated_w, spec.limit_w, spec.connectors, spec.waiting_bays, metrics_url)


def _refuse_high_floor(settings: SubstationSettings, specs: Sequence[SubstationSpec]) -> None:
    for spec in specs:
        if settings.floor_w > spec.limit_w:
            raise Misconfigured(
                f"EVENLOAD_SUBSTATION_FLOOR_KW: {settings.floor_kw:g} kW is above the limit of {spec.id!r}, "
                f"{spec.limit_w / 1000:g} kW, so that no session could run: lower it"
            )


def _refuse_slow_beats(heartbeat_s: float, lease_s: float) -> None:
    if heartbeat_s >= lease_s / 2:
        raise Misconfigured(
            f"EVENLOAD_SUBSTATION_HEARTBEAT_S: {heartbeat_s:g} s is not below half of the lease, EVENLOAD_LEASE_S = "
            f"{lease_s:g} s, so that one late beat would lose it: beat more often, or make the lease longer"
        )


def _substation(spec: SubstationSpec, speed: float, settings: SubstationSettings) -> Substation:
    return Substation(
        id=spec.id,
        rated_w=spec.rated_w,
        limit_w=spec.limit_w,
        connectors=spec.connectors,
        bays=spec.waiting_bays,
        speed=speed,
        ticked_at_s=monotonic_s(),
        grant_s=math.ceil(GRANT_BEATS * settings.heartbeat_s * speed),
        floor_w=settings.floor_w,
        sharing=POLICIES[settings.sharing],
    )


def main() -> None:
    """Entry point of `python -m substations`."""
    run("substations", SubstationSettings, serve)
