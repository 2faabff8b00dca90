"""Settings of the balancer; variables `EVENLOAD_BALANCER_…`."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from balancer.policies import PolicyName
from services.settings import Settings


class BalancerSettings(Settings):
    """How the balancer looks at the substations and chooses among them."""

    model_config = SettingsConfigDict(env_prefix="EVENLOAD_BALANCER_")

    policy: PolicyName = Field(
        "least-utilisation", description="How a substation is chosen: `least-utilisation` or `least-load-scraped`."
    )
    scrape_interval_s: float = Field(1, ge=0.1, le=3_600, description="Time between two scrapes of a substation.")
    prefetch: int = Field(32, ge=1, le=1_000, description="Envelopes in hand at once.")
    retention_days: float = Field(
        30, ge=0.01, le=36_500, description="How long an ended request, its history and its Idempotency-Key are kept."
    )
    seed: int | None = Field(None, description="Seed for breaking ties; random when absent.")
