"""What a start and the doctor say of a ledger that cannot be used: the same cause, and the same cure."""

import pytest
from harness.ledger import opened

from services.cli.checks import Finding
from services.cli.checks_ledger import check_ledger
from services.errors import Misconfigured

SETTING = "EVENLOAD_LEDGER_URL"


async def refused(url: str, secret: str, *, startup_timeout_s: float = 0.1) -> tuple[Finding, str, str]:
    """The doctor's finding, the cause and the cure; neither text may hold `secret`."""
    with pytest.raises(Misconfigured) as caught:
        async with opened(url, startup_timeout_s=startup_timeout_s):
            pass
    said = str(caught.value)
    [found] = [one for one in check_ledger(url) if one.check == "ledger"]
    assert said == f"{found.said}: {found.cure}"
    assert said.startswith(SETTING)
    assert secret not in said
    assert "\n" not in said
    return found.finding, found.said.removeprefix(SETTING).lstrip(": "), found.cure
