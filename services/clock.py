"""The two clocks of Evenload: one for durations, one for telling people the time."""

import time

# CLOCK_BOOTTIME goes on while the machine is suspended; CLOCK_MONOTONIC stands still there.
_DURATION_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def monotonic_s() -> float:
    """Seconds on a clock that no time step moves, and that counts time spent suspended."""
    return time.clock_gettime(_DURATION_CLOCK)


def wall_ms() -> int:
    """Milliseconds since the Unix epoch; for deadlines and display, never for durations."""
    return time.time_ns() // 1_000_000
