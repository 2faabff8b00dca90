"""What the tests of refusals share."""

import pytest
from harness.refusal import NO_BROKER, refused


@pytest.fixture
def refusal(tmp_path, port, capfd):
    """Starts a service, or `up`, in this process with wrong settings, and returns the one line that it says."""
    settings = {
        "EVENLOAD_AMQP_URL": NO_BROKER,
        "EVENLOAD_LEDGER_URL": f"sqlite:///{tmp_path / 'ledger.sqlite'}",
        "EVENLOAD_STARTUP_TIMEOUT_S": "0.1",
        "EVENLOAD_DATA_DIR": str(tmp_path / "data"),
        "EVENLOAD_GATEWAY_PORT": str(port),
        "EVENLOAD_PROMETHEUS": "0",
    }
    return lambda who, **wrong: refused(who, settings | wrong, capfd)
