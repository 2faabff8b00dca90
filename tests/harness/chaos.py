"""Breaks a whole stack at random under load, and holds what is left against the promises: `python -m harness.chaos`.

Everything runs on this machine and is private to the run. Exits 1 where a promise was broken or time ran out.
"""

import argparse
import asyncio
import contextlib
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
from harness.chaos_kinds import SPECS, Kind, kinds_for
from harness.chaos_ledgers import LedgerReader, PostgresLedgerReader
from harness.chaos_run import Options, chaos
from harness.chaos_schedule import load_s, schedule
from harness.full_disk import MountedDisk, mounted
from harness.postgres import find_postgres, fresh_database, running_postgres

REQUESTS_PER_S = 13.0
"""What the stack charges for easily, so that a waiting room does not blur the recoveries."""
LEDGER_BYTES = 6_000
"""Of one request, on the small disk."""
SMALLEST_DISK_BYTES = 100_000_000


@contextlib.contextmanager
def ledger_for(name: str, data: Path, requests: int) -> Iterator[LedgerReader]:
    """A ledger of the run's own; a file has a small disk for itself where that can be had."""
    with contextlib.ExitStack() as stack:
        if name == "postgres":
            server = stack.enter_context(running_postgres(find_postgres()))
            yield PostgresLedgerReader(stack.enter_context(fresh_database(server)), server)
            return
        size = SMALLEST_DISK_BYTES + requests * LEDGER_BYTES
        disk = None
        if size < psutil.virtual_memory().available / 4:  # the small disk is memory
            disk = stack.enter_context(mounted(data / "disk", str(size)))
        if isinstance(disk, MountedDisk):
            yield LedgerReader(data / "disk" / "ledger.sqlite", disk)
            for path in (data / "disk").glob("ledger.sqlite*"):
                shutil.copy(path, data)
        else:
            yield LedgerReader(data / "ledger.sqlite")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, each of which may also stand in the environment."""
    parser = argparse.ArgumentParser(
        prog="make chaos", description=f"{__doc__} Each option with a value may also be set as CHAOS_…."
    )

    def option(name: str, kind: type, default: object, words: str, **more: object) -> None:
        variable = f"CHAOS_{name.upper()}"
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=kind, default=os.environ.get(variable, default), help=words, **more)

    option("requests", int, 10_000, "how many clients there are, 10000")
    option("faults", int, 100, "how many faults, 100")
    option("seed", int, random.randrange(1_000_000), "the same seed, the same faults and load; drawn when absent")
    option("over_s", float, None, f"length of the load; as the faults need, and at most {REQUESTS_PER_S:g} requests/s")
    option("longest_s", float, 40.0, "longest freeze or stall, 40")
    option("settle_s", float, 240.0, "most time to end everything afterwards, 240")
    option("clients", int, 2, "processes that send, 2")
    option("patience", float, 1.0, "so many times longer than on an idle machine a recovery may take, 1")
    option("kinds", str, "", "kinds of faults, with commas between them; all where absent")
    option("ledger", str, "sqlite", "the database, one of its own: sqlite", choices=["sqlite", "postgres"])
    option("keep", Path, None, "leave ledger, logs, clients' records and witnesses in this new folder")
    parser.add_argument("--list", action="store_true", help="tell the kinds of faults, and do nothing")
    told = parser.parse_args(arguments)
    if unknown := set(filter(None, told.kinds.split(","))) - set(Kind):
        parser.error(f"--kinds: {', '.join(sorted(unknown))}: see --list for the kinds of faults")
    return told


def main(arguments: Sequence[str] | None = None) -> int:
    """Run once as told; the exit code."""
    told = parse(arguments)
    if told.list:
        print("\n".join(f"{kind:20} {spec.words}{_where(kind)}" for kind, spec in SPECS.items()))
        return 0
    with contextlib.ExitStack() as stack:
        data = told.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="evenload-chaos-")))
        data = data.absolute()
        data.mkdir(parents=True, exist_ok=not told.keep)
        ledger = stack.enter_context(ledger_for(told.ledger, data, told.requests))
        kinds, left_out = kinds_for(told.ledger, has_small_disk=ledger.disk is not None)
        for kind, why in left_out.items():
            print(f"left out: {kind} ({why})")
        wanted = [kind for kind in kinds if not told.kinds or kind in told.kinds.split(",")]
        if not wanted:
            print(f"none of the kinds {told.kinds} can be had here", file=sys.stderr)
            return 2
        least_s = told.over_s or told.requests / REQUESTS_PER_S
        phases = schedule(told.seed, told.faults, wanted, longest_s=told.longest_s, over_s=least_s)
        over_s = told.over_s or max(least_s, load_s(phases))
        replay = {name: getattr(told, name) for name in ("seed", "requests", "faults", "longest_s", "ledger", "over_s")}
        flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in replay.items() if value is not None)
        print(f"seed {told.seed}; replay with {flags} --kinds {','.join(wanted)}")
        print("\n".join(map(str, phases)))
        options = Options(
            told.requests,
            phases,
            told.seed,
            over_s,
            told.settle_s,
            clients=told.clients,
            keep=told.keep is not None,
            patience=told.patience,
        )
        report = asyncio.run(chaos(data, options, ledger, lambda line: print(line, flush=True)))
    print(report)
    return 1 if report.findings else 0


def _where(kind: Kind) -> str:
    ledgers = SPECS[kind].ledgers
    return f" ({', '.join(ledgers)} only)" if len(ledgers) == 1 else ""


if __name__ == "__main__":
    sys.exit(main())
