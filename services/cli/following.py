"""How a command follows something over a gateway that may be away for a while, as it is while it starts again."""

from collections.abc import Awaitable
from typing import TypeVar

from services.cli.client import GatewayUnusable, RequestRefused
from services.clock import monotonic_s

AWAY_MAX_S = 60.0
"""How long a gateway may be away while something is followed: long enough for a restart."""
AWAY = "the gateway is away; asking again"

Answer = TypeVar("Answer")


class Patience:
    """Asks again and again, and gives up only where no answer came for `AWAY_MAX_S`."""

    def __init__(self) -> None:
        self._answered_at_s = monotonic_s()

    async def hear(self, asked: Awaitable[Answer]) -> Answer | None:
        """The answer; None while the gateway is away, or answers that it cannot serve anybody now (5xx).

        Raises `RequestRefused` for any other refusal at once, and what is wrong where the gateway stays away.
        """
        try:
            answer = await asked
        except (GatewayUnusable, RequestRefused) as error:
            is_lasting = isinstance(error, RequestRefused) and error.status < 500
            if is_lasting or monotonic_s() - self._answered_at_s > AWAY_MAX_S:
                raise
            return None
        self._answered_at_s = monotonic_s()
        return answer
