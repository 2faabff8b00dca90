"""One stack for all files of this folder, on which locust plays rush hours."""

import pytest
from harness.broker import fresh_vhost
from harness.stack import started

from services.local.ports import free_ports


@pytest.fixture(scope="session")
def stack(broker, tmp_path_factory):
    data = tmp_path_factory.mktemp("rush-hour") / "data"
    with (
        fresh_vhost(broker) as vhost,
        started(data, free_ports(1)[0], EVENLOAD_AMQP_URL=vhost.amqp_url("operator")) as running,
    ):
        yield running.until_up()
