"""The live load table as the balancers tell it, kept for those who ask the gateway."""

from dataclasses import dataclass
from typing import Any

from services.clock import monotonic_s, wall_ms
from services.timestamps import rfc3339

PASSED_OVER_S = 3.0
"""How long after a table an older one counts as late; after that, its teller's wall clock was set back."""
FORGET_AFTER_S = 60.0
"""A balancer that left is not told of for ever."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What a balancer told last of itself: when, on this process's clock, and why it was not ready."""

    at_s: float
    causes: tuple[str, ...]


class LoadView:
    """The newest table, and when each balancer was heard; a balancer publishes its own table each second."""

    def __init__(self) -> None:
        self._event: dict[str, Any] | None = None
        self._balancers: dict[str, Heard] = {}
        self._heard_at_s = 0.0
        self._age_when_heard_s = 0.0

    def take(self, event: dict[str, Any]) -> None:
        """Keep an event unless a newer one is there; raises `KeyError`, `TypeError`, `ValueError` for none."""
        as_of_ms, items = int(event["as_of_ms"]), event["substations"]
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise TypeError("substations must be a list of objects")
        rfc3339(as_of_ms)  # a time that cannot be told is refused here, not at the next question
        self._note(str(event["source"]), event.get("causes", []))
        now_s = monotonic_s()
        is_late = self._event is not None and as_of_ms < self._event["as_of_ms"]
        if is_late and now_s - self._heard_at_s < PASSED_OVER_S:
            return
        self._event = {"as_of_ms": as_of_ms, "balancer": str(event["source"]), "substations": items}
        self._heard_at_s, self._age_when_heard_s = now_s, max(0, wall_ms() - as_of_ms) / 1000

    def _note(self, balancer: str, causes: object) -> None:
        now_s = monotonic_s()
        told = tuple(str(cause) for cause in causes) if isinstance(causes, list) else ()
        self._balancers[balancer] = Heard(now_s, told)
        self._balancers = {one: it for one, it in self._balancers.items() if now_s - it.at_s <= FORGET_AFTER_S}

    def balancers(self) -> dict[str, Heard]:
        """When each balancer was heard last, by its name; one that was silent for a minute is forgotten."""
        now_s = monotonic_s()
        return {one: it for one, it in sorted(self._balancers.items()) if now_s - it.at_s <= FORGET_AFTER_S}

    def table(self) -> dict[str, Any]:
        """The table as the API shows it; `as_of` is null until a balancer was heard."""
        if self._event is None:
            return {"as_of": None, "age_s": None, "balancer": None, "items": []}
        return {
            "as_of": rfc3339(self._event["as_of_ms"]),
            "age_s": round(self._age_when_heard_s + monotonic_s() - self._heard_at_s, 3),
            "balancer": self._event["balancer"],
            "items": self._event["substations"],
        }

    def in_service(self) -> frozenset[str] | None:
        """Substations that can take vehicles, as far as the balancer can see; None until a balancer was heard."""
        if self._event is None:
            return None
        return frozenset(
            str(item.get("substation"))
            for item in self._event["substations"]
            if item.get("fresh") and item.get("has_lease") and item.get("status") == "Operative"
        )

    def substation(self, substation: str) -> dict[str, Any] | None:
        """One substation's line, with the table's time; None for a stranger."""
        table = self.table()
        for item in table["items"]:
            if item.get("substation") == substation:
                return {**item, "as_of": table["as_of"], "age_s": table["age_s"], "balancer": table["balancer"]}
        return None
