"""Settings of the gateway; variables `EVENLOAD_GATEWAY_…`."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.settings import Port, Settings


class GatewaySettings(Settings):
    """Where the gateway listens and how it gathers."""

    model_config = SettingsConfigDict(env_prefix="EVENLOAD_GATEWAY_")

    host: str = Field("127.0.0.1", description="Where the HTTP API is served.")
    port: Port = Field(8080, description="Port of the HTTP API.")
    wait_max_s: float = Field(600, gt=0, le=86_400, description="Longest wait for a place, in wall seconds.")
    gather_ms: float = Field(2, ge=0, le=1_000, description="How long requests gather into one commit.")
    gather_max: int = Field(100, ge=1, le=1_000, description="Most requests in one commit.")
    backlog_max: int = Field(10_000, ge=1, description="Most requests waiting to be written; above it, 503.")
