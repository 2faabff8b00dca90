"""One run: a whole stack under load is broken phase by phase, and what is left is held against the promises."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from harness import chaos_clients
from harness.chaos_checker import Finding
from harness.chaos_clients import ClientProcess, Figures, Share
from harness.chaos_evidence import Eater, audit, grant_s
from harness.chaos_faults import INFLICT
from harness.chaos_faults_broker import restore_all
from harness.chaos_kinds import Kind
from harness.chaos_ledgers import LedgerReader
from harness.chaos_log_rate import LogRate
from harness.chaos_records import Terms
from harness.chaos_recovery import Doctor, Recoveries, Recovery
from harness.chaos_report import Report
from harness.chaos_schedule import SERVICES, Fault, Phase, length_s
from harness.chaos_segments import Segments
from harness.chaos_stack import ChaosStack, Effect, running
from harness.chaos_store import Store
from harness.chaos_ticks import Site

from services.clock import monotonic_s
from services.grid import load_grid

GRID = Path(__file__).with_name("chaos_grid.toml")
SPEED = 600.0
STARTUP_TIMEOUT_S = 60
WAIT_MAX_S = 24 * 3_600
"""Beyond a run: whoever expires has been forgotten."""
EATS_EVERY_S = 1.0
POLL_S = 0.5


@dataclass(frozen=True)
class Options:
    """How much of everything."""

    requests: int
    phases: Sequence[Phase]
    seed: int
    over_s: float
    """The load is spread over so long."""
    settle_s: float
    """So long after the last fault everything must have ended."""
    clients: int = 2
    """Processes that send."""
    lease_s: float = 3.0
    heartbeat_s: float = 0.5
    keep: bool = False
    """Whether what was read of clients, witnesses and logs stays on disk."""
    patience: float = 1.0
    """So many times longer than on an idle machine a recovery may take."""


async def chaos(data: Path, options: Options, ledger: LedgerReader, say: Callable[[str], None] = print) -> Report:
    """Break a stack in `data`; the verdict."""
    settings = {
        "EVENLOAD_GRID": str(GRID),
        "EVENLOAD_SPEED": f"{SPEED:g}",
        "EVENLOAD_LEASE_S": f"{options.lease_s:g}",
        "EVENLOAD_STARTUP_TIMEOUT_S": f"{STARTUP_TIMEOUT_S}",
        "EVENLOAD_GATEWAY_WAIT_MAX_S": f"{WAIT_MAX_S}",
        "EVENLOAD_SUBSTATION_HEARTBEAT_S": f"{options.heartbeat_s:g}",
        "EVENLOAD_SUBSTATION_WITNESS": str(data / "witness"),
        "EVENLOAD_SUBSTATION_TICK_LOG": str(data / "ticks"),
    }
    report = Report(options.seed, monotonic_s())
    wall_offsets_s = [_wall_offset_s()]
    sites = {one.id: Site(one.limit_w, one.connectors) for one in load_grid(str(GRID)).substation}
    with Store(data / "evidence.sqlite") as store:
        eater = Eater(store, report.found, sites, SPEED)
        answers = Segments(data / "clients", keep=options.keep)
        witnesses = Segments(data / "witness", keep=options.keep)
        ticks = Segments(data / "ticks", keep=options.keep)
        rate = LogRate(data / "logs", SERVICES, keep=options.keep)

        def eat(*, is_last: bool = False) -> None:
            wall_offsets_s[0] = max(wall_offsets_s[0], _wall_offset_s())
            with report.failures_of("what was read"):
                eater.eat_clients(answers, is_last=is_last)
                eater.eat_witnesses(witnesses, is_last=is_last)
                eater.eat_ticks(ticks, is_last=is_last)
                rate.count()

        async with running(data, ledger, settings) as stack, _eating(eat):
            report.began_at_s = monotonic_s()
            faults = sum(len(one.faults) for one in options.phases)
            say(f"the stack is up; {options.requests} requests over {options.over_s:g} s, {faults} faults")
            sending = await _start_clients(stack, options, report)
            async with chaos_clients.client(stack.gateways, data / "clients", "probe") as one:
                recoveries = Recoveries(stack, one, Doctor(stack, settings).ask)
                for phase in options.phases:
                    await asyncio.sleep(max(0.0, report.began_at_s + phase.at_s - monotonic_s()))
                    if phase is options.phases[-1]:
                        report.judge_load(phase, options.over_s, is_over=all(client.is_done for client in sending))
                    await _break(stack, phase, recoveries, report, options.patience, say)
            say(f"{monotonic_s() - report.began_at_s:7.1f} s  everything is healed")
            with report.failures_of("ledger"):
                await _until_ended(sending, ledger, report, options)
            with report.failures_of("clients"):
                await _count_clients(sending, report, options.requests)
            _note_refusals([one.figures], report)
            for name, words in (await stack.stop()).items():
                report.found.add(Finding("bad end", name, words))
            report.deaths = stack.deaths
            report.took_s = monotonic_s() - report.began_at_s
            report.needs |= _needs(data)
        eat(is_last=True)
        began_at_s = monotonic_s()
        terms = Terms(grant_s(options.heartbeat_s, SPEED), options.lease_s, wall_offsets_s[0])
        with report.failures_of("audit"):
            report.counts |= audit(store, ledger, report.found, terms)
        report.needs["time of the audit [s]"] = f"{monotonic_s() - began_at_s:.0f}"
    report.counts["probes"] = recoveries.probes
    report.log_lines = rate.most
    for one in rate.findings():
        report.found.add(one)
    report.judge_deaths()
    report.count_deaths()
    report.judge_effects()
    return report


def _wall_offset_s() -> float:
    return time.time() - monotonic_s()


@contextlib.asynccontextmanager
async def _eating(eat: Callable[[], None]) -> AsyncIterator[None]:
    """Read what is being written, in a thread; what was left unread is read at the end."""
    is_over = asyncio.Event()

    async def eat_until_over() -> None:
        while not is_over.is_set():
            await asyncio.to_thread(eat)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(is_over.wait(), EATS_EVERY_S)

    eating = asyncio.create_task(eat_until_over())
    try:
        yield
    finally:
        is_over.set()
        await eating


async def _start_clients(stack: ChaosStack, options: Options, report: Report) -> list[ClientProcess]:
    return [
        await chaos_clients.start(
            Share(
                stack.gateways,
                str(stack.data / "clients"),
                options.seed,
                options.requests,
                options.over_s,
                report.began_at_s,
                index,
                options.clients,
            ),
            stack.marks,
        )
        for index in range(options.clients)
    ]


async def _break(
    stack: ChaosStack,
    phase: Phase,
    recoveries: Recoveries,
    report: Report,
    patience: float,
    say: Callable[[str], None],
) -> None:
    """Do the faults of a phase, and look how long it takes until all is well again."""

    async def inflict(fault: Fault) -> None:
        await asyncio.sleep(fault.at_s)
        began_at_s = monotonic_s()
        try:
            effect = await INFLICT[fault.kind](stack, fault)
        except Exception as error:  # a run of hours goes on, and fails at its end
            effect = Effect("", f"the fault could not be done: {error!r}")
        report.effects[fault.kind].append(effect.seen)
        if fault.kind is Kind.LEDGER_MOVED:
            report.ledger_away.append((began_at_s, monotonic_s()))
        if effect.fault is not None:
            report.found.add(Finding("bad end", ", ".join(fault.targets), f"{effect.fault}: {fault}"))

    began = f"{monotonic_s() - report.began_at_s:7.1f} s  {' + '.join(map(str, phase.faults))}"
    async with asyncio.TaskGroup() as group:
        for fault in phase.faults:
            group.create_task(inflict(fault))
    recovery = Recovery(missing="the look at it failed")
    with report.failures_of("recovery"):
        recovery = await recoveries.look()
    completed = f"{recovery.completed_s:.1f} s" if recovery.completed_s is not None else "never"
    last = f" (last {recovery.last})" if recovery.last else ""
    well = f"{recovery.well_s:.1f} s{last}" if recovery.well_s is not None else f"never ({recovery.missing})"
    say(f"{began}; healed → completed {completed}, well {well}")
    report.judge_recovery(phase, recovery, patience)
    if recovery.missing:
        with report.failures_of("healing"):
            await stack.heal()
            await restore_all(stack)


async def _until_ended(
    sending: Sequence[ClientProcess], ledger: LedgerReader, report: Report, options: Options
) -> None:
    """Wait until all clients are answered and all requests have ended."""
    load_ends_at_s = report.began_at_s + max(options.over_s, length_s(options.phases))
    give_up_at_s = max(monotonic_s(), load_ends_at_s) + options.settle_s
    while not all(one.is_done for one in sending) or await asyncio.to_thread(ledger.open_requests):
        if monotonic_s() > give_up_at_s:
            left = await asyncio.to_thread(ledger.open_requests)
            words = f"{left} requests had not ended {options.settle_s:g} s after the last fault"
            report.found.add(Finding("time-out", "run", words))
            return
        await asyncio.sleep(POLL_S)


async def _count_clients(sending: Sequence[ClientProcess], report: Report, requests: int) -> None:
    figures = [await one.figures() for one in sending]
    told = sum(one.told for one in figures)
    report.counts |= {"told clients": told, "client retries": sum(one.retries for one in figures)}
    report.counts["refusals"] = sum(one.refusals for one in figures)
    _note_refusals(figures, report)
    if told < requests:
        report.found.add(Finding("time-out", "clients", f"{requests - told} of them got no 202"))


def _note_refusals(figures: Sequence[Figures], report: Report) -> None:
    for words in (words for one in figures for words in one.refused):
        report.found.add(Finding("refused", "client", words))


def _needs(data: Path) -> dict[str, str]:
    """What the run took of the machine."""
    used = 0
    for path in data.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a segment that has just been read
            used += path.stat().st_blocks * 512
    memory = psutil.Process().memory_info().rss
    return {"disk used at the end [MB]": f"{used / 1e6:.0f}", "memory of the checker [MB]": f"{memory / 1e6:.0f}"}
