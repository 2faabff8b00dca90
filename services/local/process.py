"""What the supervisor needs to know of a process."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessSpec:
    """A process to keep running: how to start it, where its output goes, when it is ready, how it ends."""

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    """Added to what it inherits."""
    log: Path
    is_ready: Callable[[], Awaitable[bool]]
    cwd: Path | None = None
    ready_within_s: float = 40
    stops_within_s: float = 8
    """After SIGTERM; then it is killed."""
    is_optional: bool = False
    """Whether the stack goes on without it."""
    inherits: frozenset[str] | None = None
    """Which variables of this process it gets; all of them when None."""

    def environment_in(self, own: Mapping[str, str]) -> dict[str, str]:
        """Its whole environment, where the process that starts it has `own`."""
        kept = {name: value for name, value in own.items() if self.inherits is None or name in self.inherits}
        return kept | dict(self.environment)
