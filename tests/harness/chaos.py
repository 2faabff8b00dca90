"""Breaks a whole stack at random under load, and holds what is left against the promises: `python -m harness.chaos`.

Everything runs on this machine and is private to the run. Exits 1 where a promise was broken or time ran out.
"""

import argparse
import asyncio
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.chaos_checker import Finding, Site, findings
from harness.chaos_clients import Clients
from harness.chaos_evidence import LedgerReader, PostgresLedgerReader, evidence
from harness.chaos_report import Report
from harness.chaos_schedule import Fault, Kind, schedule
from harness.chaos_stack import SERVICES, ChaosStack, running
from harness.postgres import find_postgres, fresh_database, running_postgres

from services.clock import monotonic_s
from services.grid import load_grid

SPEED = 600.0
STARTUP_TIMEOUT_S = 60
WAIT_MAX_S = 7_200
"""Far beyond a run: whoever expires has been forgotten."""
BACK_WITHIN_S = 60.0
POLL_S = 0.5


@dataclass(frozen=True)
class Options:
    """How much of everything."""

    requests: int
    faults: Sequence[Fault]
    seed: int
    over_s: float
    """The load is spread over so long."""
    settle_s: float
    """So long after the last fault everything must have ended."""
    lease_s: float = 3.0
    heartbeat_s: float = 0.5


async def chaos(
    data: Path, options: Options, say: Callable[[str], None] = print, ledger: LedgerReader | None = None
) -> Report:
    """One run in `data`, on a ledger of its own there, or on a new one elsewhere; the verdict."""
    ledger = ledger or LedgerReader(data / "ledger.sqlite")
    clients_log, witnesses = data / "clients.jsonl", data / "witness"
    settings = {
        "EVENLOAD_SPEED": f"{SPEED:g}",
        "EVENLOAD_LEASE_S": f"{options.lease_s:g}",
        "EVENLOAD_STARTUP_TIMEOUT_S": f"{STARTUP_TIMEOUT_S}",
        "EVENLOAD_GATEWAY_WAIT_MAX_S": f"{WAIT_MAX_S}",
        "EVENLOAD_SUBSTATION_HEARTBEAT_S": f"{options.heartbeat_s:g}",
        "EVENLOAD_SUBSTATION_WITNESS": str(witnesses),
    }
    report = Report(options.seed, monotonic_s(), list(options.faults))
    wall_offset_s = time.time() - monotonic_s()
    async with running(data, ledger.url, settings) as stack:
        report.began_at_s = monotonic_s()
        say(f"the stack is up; {options.requests} requests over {options.over_s:g} s, {len(report.faults)} faults")
        clients = Clients(
            stack.gateways, clients_log, seed=options.seed, requests=options.requests, over_s=options.over_s
        )
        sending = asyncio.create_task(clients.send_all())
        async with asyncio.TaskGroup() as group:
            for fault in report.faults:
                group.create_task(_inflict(stack, fault, report, say))
        await stack.heal()
        await stack.alarm(on=False)
        say(f"{monotonic_s() - report.began_at_s:7.1f} s  everything is healed")
        await _until_ended(sending, clients, ledger, report, options.settle_s)
        await _until_back(stack, report)
        for name, words in (await stack.stop()).items():
            report.findings.append(Finding("bad end", name, words))
        report.deaths = stack.deaths
    report.took_s = monotonic_s() - report.began_at_s
    report.findings += [Finding("refused", "client", words) for words in clients.refused]
    seen = evidence(
        clients=clients_log,
        witnesses=witnesses,
        ledger=ledger,
        sites={one.id: Site(one.limit_w, one.connectors) for one in load_grid("default").substation},
        speed=SPEED,
        heartbeat_s=options.heartbeat_s,
        wall_offset_s=wall_offset_s,
    )
    report.findings += findings(seen)
    report.judge_deaths()
    report.count(seen, clients.retries)
    report.time_recoveries(seen)
    return report


async def _inflict(stack: ChaosStack, fault: Fault, report: Report, say: Callable[[str], None]) -> None:
    await asyncio.sleep(max(0.0, report.began_at_s + fault.at_s - monotonic_s()))
    say(str(fault))
    part, proxy = stack.parts[fault.target], stack.proxies.get(fault.target)
    match fault.kind:
        case Kind.KILL:
            part.signal(signal.SIGKILL)
        case Kind.FREEZE:
            part.signal(signal.SIGSTOP)
            await asyncio.sleep(fault.for_s)
            part.signal(signal.SIGCONT)
        case Kind.LEAVE:
            words = await part.leave() if proxy is not None else await part.leave(within_s=40)
            if words is not None and proxy is not None:
                report.findings.append(Finding("bad end", fault.target, f"{words}: {fault}"))
            await asyncio.sleep(fault.for_s)
            part.come()
        case Kind.CUT:
            await asyncio.to_thread(proxy.cut)
        case Kind.STALL:
            await asyncio.to_thread(proxy.stall)
            await asyncio.sleep(fault.for_s)
            await asyncio.to_thread(proxy.heal)
        case Kind.ALARM:
            await stack.alarm(on=True)
            await asyncio.sleep(fault.for_s)
            await stack.alarm(on=False)


async def _until_ended(
    sending: asyncio.Task[None], clients: Clients, ledger: LedgerReader, report: Report, within_s: float
) -> None:
    """Wait until all clients are answered and all requests have ended."""
    give_up_at_s = monotonic_s() + within_s
    while not sending.done() or await asyncio.to_thread(ledger.open_requests):
        if monotonic_s() > give_up_at_s:
            left = await asyncio.to_thread(ledger.open_requests)
            words = f"{left} requests had not ended {within_s:g} s after the last fault"
            report.findings.append(Finding("time-out", "run", words))
            break
        await asyncio.sleep(POLL_S)
    if not sending.done():
        sending.cancel()
        unanswered = clients.requests - len(clients.told)
        report.findings.append(Finding("time-out", "clients", f"{unanswered} of them got no 202"))
    with contextlib.suppress(asyncio.CancelledError):
        await sending


async def _until_back(stack: ChaosStack, report: Report) -> None:
    """Wait until every service has its connections and consumers again: the ledger hides it where one has not."""
    give_up_at_s = monotonic_s() + BACK_WITHIN_S
    while missing := await stack.missing_at_the_broker():
        if monotonic_s() > give_up_at_s:
            report.findings += [
                Finding("not back", one, f"{BACK_WITHIN_S:g} s after all was healed") for one in missing
            ]
            return
        await asyncio.sleep(POLL_S)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run once as told; the exit code."""
    parser = argparse.ArgumentParser(
        prog="make chaos", description=f"{__doc__} Each option may also be set as CHAOS_…."
    )

    def option(name: str, kind: type, default: object, words: str) -> None:
        variable = f"CHAOS_{name.upper()}"
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=kind, default=os.environ.get(variable, default), help=words
        )

    option("requests", int, 10_000, "how many clients there are, 10000")
    option("faults", int, 100, "how many faults, 100")
    option("seed", int, random.randrange(1_000_000), "the same seed, the same faults and load; drawn when absent")
    option("over_s", float, 780.0, "length of the load, 780")
    option("longest_s", float, 40.0, "longest freeze or stall, 40")
    option("settle_s", float, 240.0, "most time to end everything afterwards, 240")
    parser.add_argument("--ledger", choices=["sqlite", "postgres"], default=os.environ.get("CHAOS_LEDGER", "sqlite"),
                        help="the database, one of its own: sqlite")  # fmt: skip
    option("keep", Path, None, "leave ledger, logs and witnesses in this new folder")
    told = parser.parse_args(arguments)
    faults = schedule(told.seed, told.faults, told.over_s, SERVICES, told.longest_s)
    print(f"seed {told.seed}; replay with --seed {told.seed} --requests {told.requests} --faults {told.faults} "
          f"--over-s {told.over_s:g} --longest-s {told.longest_s:g} --ledger {told.ledger}")  # fmt: skip
    print("\n".join(map(str, faults)))
    options = Options(told.requests, faults, told.seed, told.over_s, told.settle_s)
    with contextlib.ExitStack() as stack:
        data = told.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="evenload-chaos-")))
        ledger = None
        if told.ledger == "postgres":
            server = stack.enter_context(running_postgres(find_postgres()))
            ledger = PostgresLedgerReader(stack.enter_context(fresh_database(server)))
        report = asyncio.run(chaos(data.absolute(), options, lambda line: print(line, flush=True), ledger))
    print(report)
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
