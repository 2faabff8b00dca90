"""Parts that many tests share: one real RabbitMQ and one real PostgreSQL, each started when the first test asks."""

import hypothesis
import pytest
from harness.broker import fresh_vhost, running_broker
from harness.postgres import find_postgres, fresh_database, running_postgres

from services.local.stack import free_ports

# How long an example takes says nothing on a machine where others work too.
hypothesis.settings.register_profile("evenload", deadline=None)
hypothesis.settings.load_profile("evenload")


@pytest.fixture(scope="session")
def broker(tmp_path_factory):
    with running_broker(tmp_path_factory.mktemp("rabbitmq")) as running:
        yield running


@pytest.fixture
def vhost(broker):
    with fresh_vhost(broker) as fresh:
        yield fresh


@pytest.fixture(scope="session")
def postgres():
    with running_postgres(find_postgres()) as running:
        yield running


@pytest.fixture
def postgres_url(postgres):
    with fresh_database(postgres) as url:
        yield url


@pytest.fixture
def port():
    return free_ports(1)[0]
