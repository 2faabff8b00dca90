"""What an operator may order of a substation, as bodies, and how the orders are told."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gateway.bodies import Moment, field_problem
from services.ledger.records import OrderState
from services.timestamps import rfc3339

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class LimitOrder(BaseModel):
    """A limit for the power of all sessions together; null gives the substation's own back."""

    model_config = _STRICT

    power_kw: Annotated[float, Field(ge=0, le=100_000)] | None
    until: Moment | None = None
    """When it lapses; without one it stands until the next order."""

    def limit_w(self) -> int | None:
        """The limit [W]."""
        return None if self.power_kw is None else round(self.power_kw * 1000)

    def until_ms(self, now: datetime) -> int | None:
        """When it lapses; raises `Problem` for a time that has passed."""
        if self.until is None:
            return None
        if self.until <= now:
            raise field_problem("until", f"must lie after now, {now.isoformat(timespec='seconds')}")
        return round(self.until.timestamp() * 1000)


class StatusOrder(BaseModel):
    """Whether it takes vehicles, in OCPP's words."""

    model_config = _STRICT

    status: Literal["Operative", "Inoperative"]


def describe(state: OrderState) -> dict[str, Any]:
    """Orders in the API's words and units; `applied_at` is null until the substation does as it was told."""
    return {
        "own_limit_kw": state.own_limit_w / 1000,
        "limit_kw": None if state.asked_limit_w is None else state.asked_limit_w / 1000,
        "until": _told(state.until_ms),
        "status": "Operative" if state.operative else "Inoperative",
        "asked_at": _told(state.asked_at_ms),
        "applied_at": _told(state.applied_at_ms),
    }


def _told(at_ms: int | None) -> str | None:
    return None if at_ms is None else rfc3339(at_ms)
