"""What many tests share: the run's RabbitMQ and PostgreSQL, and a place of its own on each for every test."""

from contextlib import ExitStack

import hypothesis
import pytest
from harness.broker import fresh_vhost
from harness.postgres import LedgerDatabases, fresh_database
from harness.servers import STARTS, announce, obtain, serving
from xdist.scheduler import LoadFileScheduling

from services.local.ports import free_ports

# How long an example takes says nothing on a machine where others work too.
hypothesis.settings.register_profile("evenload", deadline=None)
hypothesis.settings.load_profile("evenload")

ADDRESS = pytest.StashKey[str]()


def pytest_configure(config):
    """The process that begins the run serves the servers; its workers are told where."""
    address = getattr(config, "workerinput", {}).get("servers")
    if address is None:
        stack = ExitStack()
        address = stack.enter_context(serving())
        config.add_cleanup(stack.close)
    config.stash[ADDRESS] = address


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    node.workerinput["servers"] = node.config.stash[ADDRESS]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return SharedStackScheduling(config, log) if config.getvalue("dist") == "loadfile" else None


class SharedStackScheduling(LoadFileScheduling):
    """The tests of a file run in one process, and so do those of a folder below `e2e`, which share one stack."""

    def _split_scope(self, nodeid):
        file = nodeid.partition("::")[0]
        folder = file.rpartition("/")[0]
        return folder if folder.startswith("tests/e2e/") else file


def pytest_collection_finish(session):
    """Have the servers that these tests need started while the first of them run."""
    if session.config.option.collectonly:
        return
    needed = {name for item in session.items for name in item.fixturenames} & STARTS.keys()
    for name in needed:
        announce(session.config.stash[ADDRESS], name)


@pytest.fixture(scope="session")
def broker(pytestconfig):
    return obtain(pytestconfig.stash[ADDRESS], "broker")


@pytest.fixture(scope="session")
def postgres(pytestconfig):
    return obtain(pytestconfig.stash[ADDRESS], "postgres")


@pytest.fixture
def vhost(broker):
    with fresh_vhost(broker) as fresh:
        yield fresh


@pytest.fixture(scope="module")
def module_vhost(broker):
    """One vhost for all tests of a file."""
    with fresh_vhost(broker) as fresh:
        yield fresh


@pytest.fixture(scope="session")
def ledger_databases(postgres):
    with ExitStack() as made:
        yield LedgerDatabases(postgres, made)


@pytest.fixture
def postgres_url(postgres):
    """An empty database."""
    with fresh_database(postgres) as url:
        yield url


@pytest.fixture
def port():
    return free_ports(1)[0]
