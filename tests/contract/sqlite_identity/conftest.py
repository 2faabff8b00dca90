import pytest
from harness.ledger import MANY, Ledger, opened


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data" / "ledger.sqlite"


@pytest.fixture
async def ledger(path):
    async with opened(path) as connection:
        one = Ledger(connection)
        await one.accepted("first")
        yield one


@pytest.fixture
async def other(tmp_path):
    """Another ledger, whose history got further."""
    async with opened(tmp_path / "other.sqlite") as connection:
        await Ledger(connection).accepted(*MANY)
    return tmp_path / "other.sqlite"
