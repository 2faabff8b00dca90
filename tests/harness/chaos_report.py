"""What a run has shown, in figures and words: outcomes, recovery times, deaths, needs, findings."""

import collections
import contextlib
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from harness.chaos_checker import Finding
from harness.chaos_evidence import Findings
from harness.chaos_kinds import Kind
from harness.chaos_part import Death
from harness.chaos_recovery import Recovery
from harness.chaos_schedule import SERVICES, Phase

RECOVERS_WITHIN_S = {False: 10.0, True: 15.0}
"""Until a request is completed in every zone, by whether the fault ended the broker; on an idle machine."""
MISCONFIGURED = 2
REFUSES_WITHIN_S = 5.0
"""So long after it looked for its ledger a service has ended that did not find it."""
WELL_WITHIN_S = 30.0
"""Until `/readyz`, the broker and the doctor find nothing, likewise."""
TOGETHER = "several at a time"


@dataclass
class Report:
    """A run and its verdict."""

    seed: int
    began_at_s: float
    took_s: float = 0.0
    found: Findings = field(default_factory=Findings)
    deaths: list[Death] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    ledger_away: list[tuple[float, float]] = field(default_factory=list)
    """When it was moved away, and moved back [s]."""
    effects: dict[Kind, list[str]] = field(default_factory=lambda: collections.defaultdict(list))
    """What each fault of a kind was seen to do; an empty text where it did nothing."""
    recoveries: list[tuple[Phase, Recovery]] = field(default_factory=list)
    log_lines: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    needs: dict[str, str] = field(default_factory=dict)

    @property
    def findings(self) -> list[Finding]:
        return self.found.kept

    @contextlib.contextmanager
    def failures_of(self, what: str) -> Iterator[None]:
        """A failure of the judge inside of the block is a finding, not the end of a run of hours."""
        try:
            yield
        except Exception as error:
            self.found.add(Finding("judge failed", what, repr(error)))

    def judge_deaths(self) -> None:
        """A service ends when it was killed, or with 0 when it was told to end.

        By itself it ends only at its start, where its ledger has been moved away: it must not make another one.
        """
        for one in self.deaths:
            has_refused = one.code == MISCONFIGURED and any(
                from_s <= one.at_s <= to_s + REFUSES_WITHIN_S for from_s, to_s in self.ledger_away
            )
            if one.name in SERVICES and not one.is_sound and not has_refused:
                how = "after SIGTERM" if one.was_told else "after SIGKILL" if one.was_killed else "by itself"
                words = f"ended {how} with {one.code}, {one.at_s - self.began_at_s:.1f} s into the run"
                self.found.add(Finding("crashed", one.name, words))

    def judge_load(self, phase: Phase, over_s: float, *, is_over: bool) -> None:
        """The last phase is under load, unless the load was asked to end before it: `over_s` is what was planned."""
        if is_over and over_s >= phase.at_s:
            words = f"all clients were done before the last phase, though the load was to last {over_s:.1f} s"
            self.found.add(Finding("no load", str(phase).strip(), words))

    def judge_effects(self) -> None:
        """A kind of fault that never broke anything shows nothing."""
        for kind, effects in self.effects.items():
            if not any(effects):
                self.found.add(Finding("no effect", kind, f"none of {len(effects)} faults was seen to break anything"))

    def judge_recovery(self, phase: Phase, recovery: Recovery, patience: float) -> None:
        """A single fault must be over in time; after several at a time everything must be well again at all."""
        self.recoveries.append((phase, recovery))
        if recovery.missing:
            self.found.add(Finding("not recovered", str(phase).strip(), recovery.missing))
        if not phase.is_single:
            return
        bounds = (
            (recovery.completed_s, RECOVERS_WITHIN_S[phase.ends_broker], f"a completed request of {recovery.slowest}"),
            (recovery.well_s, WELL_WITHIN_S, f"all was well (last {recovery.last})"),
        )
        for took_s, bound_s, what in bounds:
            if took_s is not None and took_s > bound_s * patience:
                words = f"{took_s:.1f} s until {what}, {bound_s * patience:g} s are sound"
                self.found.add(Finding("slow recovery", str(phase).strip(), words))

    def count_deaths(self) -> None:
        for name, number in sorted(collections.Counter(one.name for one in self.deaths).items()):
            self.counts[f"{name} deaths"] = number

    def __str__(self) -> str:
        faults = sum(len(phase.faults) for phase, _ in self.recoveries)
        lines = [f"seed {self.seed}: {faults} faults in {len(self.recoveries)} phases, took {self.took_s:.0f} s"]
        lines += [f"  {name:32} {number}" for name, number in sorted(self.counts.items())]
        lines += ["faults done, by kind:"]
        lines += [
            f"  {kind:32} {len(effects)}, {sum(map(bool, effects))} with an effect"
            for kind, effects in sorted(self.effects.items())
        ]
        lines += ["recovery after a fault was healed, to a completed request in every zone and until all was well [s]:"]
        lines += [f"  {line}" for line in self._recoveries()]
        lines += ["most lines of a log in one second:"]
        lines += [f"  {name:32} {most} at {second}" for name, (most, second) in self.log_lines.items()]
        lines += [f"  {name:32} {value}" for name, value in self.needs.items()]
        lines += [f"BROKEN {one}" for one in self.findings]
        more = self.found.numbers.total() - len(self.findings)
        lines += [f"BROKEN {more} more like these: {dict(self.found.numbers)}"] if more else []
        return "\n".join(lines if self.findings else [*lines, "no promise was broken"])

    def _recoveries(self) -> list[str]:
        by_kind: dict[str, list[Recovery]] = collections.defaultdict(list)
        for phase, recovery in self.recoveries:
            by_kind[phase.faults[0].kind if phase.is_single else TOGETHER].append(recovery)
        return [
            f"{kind:32} {len(some):3} × {_spread([one.completed_s for one in some])}, "
            f"well {_spread([one.well_s for one in some])}"
            for kind, some in sorted(by_kind.items())
        ]


def _spread(found: Sequence[float | None]) -> str:
    times_s = [one for one in found if one is not None]
    never = f", never {len(found) - len(times_s)} times" if len(times_s) < len(found) else ""
    if not times_s:
        return f"never {len(found)} times"
    return f"median {statistics.median(times_s):.1f}, longest {max(times_s):.1f}{never}"
