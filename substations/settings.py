"""Settings of a `substations` process; variables `EVENLOAD_SUBSTATION_…`."""

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from services.settings import SUBSTATION_ID, Settings


class SubstationSettings(Settings):
    """Which substations the process hosts, and how finely they simulate."""

    model_config = SettingsConfigDict(env_prefix="EVENLOAD_SUBSTATION_")

    ids: str = Field("", description="Substations to host, ids separated by commas; all of the grid file when empty.")
    tick_s: float = Field(0.1, ge=0.01, le=10, description="Wall time between two steps of the simulation.")
    heartbeat_s: float = Field(1, ge=0.1, le=60, description="Wall time between two writes of progress.")
    prefetch: int = Field(8, ge=1, le=1_000, description="Envelopes in hand at once, for each substation.")

    @field_validator("ids")
    @classmethod
    def _sound_ids(cls, value: str) -> str:
        for one in value.split(","):
            if value and not SUBSTATION_ID.match(one.strip()):
                raise ValueError("give ids of letters, digits and hyphens, separated by commas")
        return value

    def hosted_ids(self) -> list[str]:
        """The ids as a list; empty means all."""
        return [one.strip() for one in self.ids.split(",") if one.strip()]
