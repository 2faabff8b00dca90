"""Settings of a `substations` process; variables `EVENLOAD_SUBSTATION_…`."""

from pathlib import Path

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from services.grid import ALL
from services.settings import SUBSTATION_ID, Settings
from substations.sharing import SharingName


class SubstationSettings(Settings):
    """Which substations the process hosts, how they share their power, and how finely they simulate."""

    model_config = SettingsConfigDict(env_prefix="EVENLOAD_SUBSTATION_")

    ids: str = Field(
        "",
        description="Substations to host: ids separated by commas, or `*` for all of the grid file. A process without "
        "any takes the first that nobody hosts, or one more (`extra-1`, …) when all are taken.",
    )
    sharing: SharingName = Field(
        "max-min",
        description="How sessions share the limit: `max-min` (evenly), `least-laxity` (the most urgent first, where "
        "departures can be trusted) or `first-come`.",
    )
    floor_kw: float = Field(
        1.38,
        ge=0,
        le=1_000,
        description="Least power of a running session (6 A at 230 V; 4.2 where the rule asks it); where the limit does "
        "not reach for all, sessions are paused in turn.",
    )
    tick_s: float = Field(0.1, ge=0.01, le=10, description="Wall time between two steps of the simulation.")
    heartbeat_s: float = Field(1, ge=0.1, le=60, description="Wall time between two writes of progress.")
    tick_log: Path | None = Field(
        None, description="Folder for a line per tick and substation, to check afterwards; none when absent."
    )
    witness: Path | None = Field(
        None,
        description="Folder for a record of every start, stop and piece of energy, on disk at each tick, to check the "
        "promises from outside; none when absent.",
    )
    prefetch: int = Field(8, ge=1, le=1_000, description="Envelopes in hand at once, for each substation.")

    @field_validator("ids")
    @classmethod
    def _sound_ids(cls, value: str) -> str:
        for one in value.split(","):
            if value not in ("", ALL) and not SUBSTATION_ID.match(one.strip()):
                raise ValueError("give ids of letters, digits and hyphens, separated by commas, or * for all")
        return value

    @property
    def floor_w(self) -> int:
        """The floor in W."""
        return round(self.floor_kw * 1000)

    def hosted_ids(self) -> list[str]:
        """The ids as a list; empty means one that is free, `["*"]` all."""
        return [one.strip() for one in self.ids.split(",") if one.strip()]
