"""What a process lacks at the broker, in words, with the cure of each; pure."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from services.broker import topology

NODES = "start the broker's other nodes, or see its log"
"""The cure of what exists and is away: `evenload mend` would find nothing missing."""
RIVALS = "close the others' connections at the console; `evenload doctor` names them"

_AWAY = re.compile(r"down or inaccessible|stopped by supervisor|no answer in time|time[d ]*out", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Lack:
    """One thing that is missing, refused or away; `hurts` says whether requests need it."""

    cause: str
    cure: str = topology.MEND
    hurts: bool = True


def cure_of(said: str) -> str:
    """The cure of what the broker says of a queue."""
    if "in exclusive use" in said:
        return RIVALS
    return NODES if _AWAY.search(said) else topology.MEND


def told(lacks: Iterable[Lack]) -> str | None:
    """All of them in one line, those with the same cure together; None where there are none."""
    causes: dict[str, list[str]] = {}
    for one in lacks:
        causes.setdefault(one.cure, []).append(one.cause)
    parts = [f"{'; '.join(those)}: {cure}" for cure, those in causes.items()]
    return f"the broker's topology is incomplete: {'; and '.join(parts)}" if parts else None
