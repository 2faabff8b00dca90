"""Each service works with nothing but the rights of its role at the broker."""

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from harness.refusal import SERVICES
from harness.stack import until

from services.local.ports import free_ports

READY_WITHIN_S = 60
ENDS_WITHIN_S = 60


@pytest.mark.parametrize("who", SERVICES)
def test_the_rights_of_its_role_are_all_that_a_service_needs(vhost, tmp_path, who):
    admin, gateway = free_ports(2)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("EVENLOAD_")}
    settings = {
        "EVENLOAD_AMQP_URL": vhost.amqp_url(who.removesuffix("s")),
        "EVENLOAD_LEDGER_URL": f"sqlite:///{tmp_path / 'ledger.sqlite'}",
        "EVENLOAD_ADMIN_PORT": str(admin),
        "EVENLOAD_GATEWAY_PORT": str(gateway),
    }
    log = tmp_path / "log"
    with log.open("wb") as said:
        service = subprocess.Popen([sys.executable, "-P", "-m", who], env=kept | settings, stdout=said, stderr=said)
    try:
        until(lambda: service.poll() is not None or is_ready(admin), "it is ready", READY_WITHIN_S)
        assert service.poll() is None, log.read_text()
        service.send_signal(signal.SIGTERM)
        assert service.wait(ENDS_WITHIN_S) == 0, log.read_text()
    finally:
        service.kill()
        service.wait()


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10) as response:
            return response.status == 200
    except urllib.error.HTTPError as error:
        error.close()
        return False
    except (urllib.error.URLError, ConnectionError):
        return False
