"""What a run has shown, in figures and words: outcomes, recovery times, deaths, findings; pure."""

import bisect
import collections
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field

from harness.chaos_checker import Evidence, Finding
from harness.chaos_schedule import BROKER, Fault
from harness.chaos_stack import SERVICES, Death

MISCONFIGURED = 2


@dataclass
class Report:
    """A run and its verdict."""

    seed: int
    began_at_s: float
    faults: list[Fault]
    took_s: float = 0.0
    deaths: list[Death] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    recoveries: list[str] = field(default_factory=list)

    def judge_deaths(self) -> None:
        """A process that nobody killed ends with 0 where it was told to, or because its neighbours are not there."""
        for one in self.deaths:
            if one.name in SERVICES and not one.was_killed and one.code not in (0, MISCONFIGURED, -signal.SIGTERM):
                words = f"ended by itself with {one.code}, {one.at_s - self.began_at_s:.1f} s into the run"
                self.findings.append(Finding("crashed", one.name, words))

    def count(self, seen: Evidence, retries: int) -> None:
        """Figures of a run."""
        outcomes = collections.Counter(row.status for row in seen.rows.values())
        reasons = collections.Counter(line.reason for history in seen.histories.values() for line in history)
        self.counts = {
            "202 told": len(seen.told),
            "client retries": retries,
            "requests": len(seen.rows),
            **{f"ended {name}": number for name, number in sorted(outcomes.items())},
            "starts": len(seen.starts),
            "interruptions": sum(row.interruptions for row in seen.rows.values()),
            **{f"reason {name}": number for name, number in sorted(reasons.items())},
            **{
                f"{name} deaths": number
                for name, number in sorted(collections.Counter(d.name for d in self.deaths).items())
            },
        }

    def time_recoveries(self, seen: Evidence) -> None:
        """From each fault to the first new 202 and the first new start after it."""
        whose = {"202": sorted(one.at_s for one in seen.told), "start": sorted(one.at_s for one in seen.starts)}
        for what, times in whose.items():
            for is_brokers in (True, False):
                waits = sorted(
                    wait
                    for fault in self.faults
                    if (fault.target == BROKER) is is_brokers
                    and (wait := _next_after(times, self.began_at_s + fault.at_s)) is not None
                )
                if waits:
                    self.recoveries.append(
                        f"fault of {'the broker' if is_brokers else 'a service'} → next {what}: "
                        f"median {_quantile(waits, 0.5):.2f} s, p90 {_quantile(waits, 0.9):.2f} s, "
                        f"longest {waits[-1]:.2f} s ({len(waits)} faults)"
                    )

    def __str__(self) -> str:
        lines = [f"seed {self.seed}: {len(self.faults)} faults, took {self.took_s:.0f} s"]
        lines += [f"  {name:32} {number}" for name, number in self.counts.items()]
        lines += [f"  {line}" for line in self.recoveries]
        lines += [f"BROKEN {one}" for one in self.findings] or ["no promise was broken"]
        return "\n".join(lines)


def _next_after(times: Sequence[float], at_s: float) -> float | None:
    place = bisect.bisect_right(times, at_s)
    return times[place] - at_s if place < len(times) else None


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
