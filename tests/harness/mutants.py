"""`make mutants`: breaks promise-bearing lines one at a time, and tells which broken line no test notices.

Each mutant in `tests/mutants/*.toml` is a small patch with the tests that ought to notice it. It is applied to a
private copy of the tree. It is caught where one of its tests fails; where all of them pass, it has survived.
"""

import argparse
import asyncio
import re
import sys
import tempfile
import tomllib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from harness.mutant_copy import Copy, Run, Unsound
from harness.servers import serving

ROOT = Path(__file__).parents[2]
DEADLINE_S = 120.0
"""For the tests of one mutant; they take a few seconds, unless the mutant makes one of them hang."""
UNBROKEN_DEADLINE_S = 900.0
FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+::.+?)(?: - .*)?$", re.MULTILINE)


@dataclass(frozen=True)
class Mutant:
    """One broken line, and the tests that ought to notice it."""

    area: str
    """The file that it stands in."""
    name: str
    breaks: str
    """Which promise or behaviour it breaks, in a sentence."""
    file: str
    find: str
    """Stands in the file once."""
    replace: str
    tests: list[str]
    keyword: str = ""
    """Of the tests only those that pytest's `-k` selects by it."""
    guarded_by: str = ""
    """A sentence that names the second guard of the promise; a mutant that has one may survive."""


def all_mutants(root: Path = ROOT) -> list[Mutant]:
    """Every mutant of a tree, area by area."""
    return [
        Mutant(path.stem, **entry)
        for path in sorted((root / "tests/mutants").glob("*.toml"))
        for entry in tomllib.loads(path.read_text())["mutant"]
    ]


class Result(StrEnum):
    """What became of a mutant."""

    CAUGHT = "caught"
    TIMED_OUT = "timed out"
    """Its tests did not end; it counts as caught."""
    HELD = "held"
    """It survived, because a second guard keeps the promise."""
    SURVIVED = "survived"
    UNSOUND = "unsound"
    """Its patch does not fit, or its tests did not run."""


@dataclass(frozen=True)
class Outcome:
    mutant: Mutant
    result: Result
    seconds: float
    told: str
    """Which test caught it, or what went wrong."""


async def try_out(copy: Copy, mutant: Mutant) -> Outcome:
    """Break the line, run the tests, and mend it."""
    try:
        with copy.broken(mutant.file, mutant.find, mutant.replace):
            run = await copy.run(mutant.tests, mutant.keyword, DEADLINE_S, "-x")
    except Unsound as error:
        return Outcome(mutant, Result.UNSOUND, 0.0, str(error))
    result, told = judge(run, mutant)
    return Outcome(mutant, result, run.seconds, told)


def judge(run: Run, mutant: Mutant) -> tuple[Result, str]:
    """What a run of its tests says of a mutant: only a test that failed has caught it."""
    match run.code:
        case None:
            return Result.TIMED_OUT, f"interrupted after {run.seconds:.0f} s"
        case 0:
            return (Result.HELD if mutant.guarded_by else Result.SURVIVED), ""
        case 1 if failed := FAILED.search(run.said):
            return Result.CAUGHT, failed[1].removeprefix("tests/")
        case code:
            return Result.UNSOUND, f"pytest ended with {code}: " + " | ".join(run.said.splitlines()[-5:])


async def try_all(root: Path, mutants: Sequence[Mutant], jobs: int, home: Path) -> list[Outcome]:
    """Try each mutant; before and after, all tests run with nothing broken. Raises `Unsound` where these fail."""
    copies: asyncio.Queue[Copy] = asyncio.Queue()
    for number in range(jobs):
        copies.put_nowait(Copy(root, home / str(number)))

    async def lend(work: Callable[[Copy], Awaitable[None]]) -> None:
        copy = await copies.get()
        await work(copy)
        copies.put_nowait(copy)

    async def run_unbroken(copy: Copy, keyword: str) -> None:
        tests = dict.fromkeys(test for one in mutants if one.keyword == keyword for test in one.tests)
        run = await copy.run(list(tests), keyword, UNBROKEN_DEADLINE_S)
        if run.code != 0:
            raise Unsound(f"with nothing broken the tests do not pass:\n{run.said}")

    async def run_all_unbroken(when: str) -> None:
        print(f"running the tests with nothing broken {when}", flush=True)
        async with asyncio.TaskGroup() as group:
            for keyword in dict.fromkeys(one.keyword for one in mutants):
                group.create_task(lend(lambda copy, keyword=keyword: run_unbroken(copy, keyword)))

    outcomes: list[Outcome] = []

    async def tell(copy: Copy, mutant: Mutant) -> None:
        outcomes.append(one := await try_out(copy, mutant))
        name = f"{mutant.area}/{mutant.name}"
        done = f"[{len(outcomes):{len(str(len(mutants)))}}/{len(mutants)}]"
        print(f"{done} {one.result:9} {one.seconds:5.1f} s  {name:50} {one.told}".rstrip(), flush=True)

    await run_all_unbroken("first")
    async with asyncio.TaskGroup() as group:
        for mutant in mutants:
            group.create_task(lend(lambda copy, mutant=mutant: tell(copy, mutant)))
    # Had a server that all of them share gone away meanwhile, every mutant after that would look caught.
    await run_all_unbroken("once more")
    return outcomes


def conclude(outcomes: Sequence[Outcome]) -> int:
    """Tell what needs a look, and how many there were of each; the exit code."""
    by_result = {result: [one for one in outcomes if one.result is result] for result in Result}
    caught = [*by_result[Result.CAUGHT], *by_result[Result.TIMED_OUT]]
    for one in by_result[Result.HELD]:
        print(f"held by a second guard: {one.mutant.name}: {one.mutant.guarded_by}")
    for one in caught:
        if one.mutant.guarded_by:
            print(f"caught after all, so that `guarded_by` may go: {one.mutant.name}")
    for one in by_result[Result.UNSOUND]:
        print(f"UNSOUND: {one.mutant.name}: {one.told}")
    for one in by_result[Result.SURVIVED]:
        print(f"SURVIVED: {one.mutant.name}: {one.mutant.breaks} Unnoticed by: {', '.join(one.mutant.tests)}")
    sums = [
        f"{len(caught)} caught",
        *(f"{len(ones)} of them timed out" for ones in [by_result[Result.TIMED_OUT]] if ones),
        f"{len(by_result[Result.HELD])} held by a second guard",
        f"{len(by_result[Result.SURVIVED])} survived",
        *(f"{len(ones)} unsound" for ones in [by_result[Result.UNSOUND]] if ones),
    ]
    print(f"{len(outcomes)} mutants: {', '.join(sums)}")
    return 1 if by_result[Result.SURVIVED] or by_result[Result.UNSOUND] else 0


def main(arguments: Sequence[str] | None = None, root: Path = ROOT) -> int:
    """Try the mutants that are asked for; the exit code."""
    parser = argparse.ArgumentParser(prog="make mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="only mutants whose area/name contains one of these")
    parser.add_argument("--list", action="store_true", help="only tell the mutants, and what each breaks")
    parser.add_argument("--jobs", type=int, default=2, help="how many are tried at once (default: 2)")
    options = parser.parse_args(arguments)
    mutants = [
        one
        for one in all_mutants(root)
        if not options.names or any(name in f"{one.area}/{one.name}" for name in options.names)
    ]
    if not mutants:
        parser.error("there is no such mutant: --list tells them all")
    if options.list:
        for one in mutants:
            print(f"{one.area}/{one.name}: {one.breaks}")
        return 0
    code = 1
    with tempfile.TemporaryDirectory(prefix="evenload-mutants-") as home, serving(for_children=True):
        try:
            code = conclude(asyncio.run(try_all(root, mutants, options.jobs, Path(home))))
        except* Unsound as errors:
            for error in errors.exceptions:
                print(error, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
