"""The live load table as the balancers tell it, kept for those who ask the gateway."""

from typing import Any

from services.clock import wall_ms
from services.timestamps import rfc3339


class LoadView:
    """The newest table; a balancer publishes its own each second."""

    def __init__(self) -> None:
        self._event: dict[str, Any] | None = None

    def take(self, event: dict[str, Any]) -> None:
        """Keep an event unless a newer one is there; raises `KeyError`, `TypeError`, `ValueError` for none."""
        as_of_ms, items = int(event["as_of_ms"]), event["substations"]
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise TypeError("substations must be a list of objects")
        rfc3339(as_of_ms)  # a time that cannot be told is refused here, not at the next question
        if self._event is None or as_of_ms >= self._event["as_of_ms"]:
            self._event = {"as_of_ms": as_of_ms, "balancer": str(event["source"]), "substations": items}

    def table(self) -> dict[str, Any]:
        """The table as the API shows it; `as_of` is null until a balancer was heard."""
        if self._event is None:
            return {"as_of": None, "age_s": None, "balancer": None, "items": []}
        return {
            "as_of": rfc3339(self._event["as_of_ms"]),
            "age_s": round(max(0, wall_ms() - self._event["as_of_ms"]) / 1000, 3),
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
