"""A Prometheus that cannot be had, or does not start, keeps no stack from running."""

import shutil

import pytest

from services.local import leftovers
from services.local.plan import make_plan
from services.local.ports import free_ports
from services.local.prometheus import Prometheus, Scraped
from services.local.supervisor import Supervisor
from services.settings import LocalSettings

NOBODY = Scraped("http://127.0.0.1:1", "127.0.0.1:1", "127.0.0.1:1", None)


@pytest.fixture
def start(tmp_path):
    """Starts the Prometheus of a stack that has nothing else; returns its address and what was said."""

    async def start_one(prometheus: str) -> tuple[str | None, list[str]]:
        plan = make_plan(LocalSettings(data_dir=tmp_path / "data", cache_dir=tmp_path / "cache", prometheus=prometheus))
        said: list[str] = []
        supervisor = Supervisor(leftovers.marks(plan.data, plan.run), said.append)
        try:
            async with Prometheus(plan, supervisor, said.append) as one:
                return await one.start(NOBODY, *free_ports(1)), said
        finally:
            await supervisor.stop()

    return start_one


async def test_where_it_cannot_be_had_that_is_said_with_the_cure(start, tmp_path, monkeypatch):
    unreachable = tmp_path / "apt.conf"
    unreachable.write_text(
        'Acquire::http::Proxy "http://127.0.0.1:9"; Acquire::https::Proxy "http://127.0.0.1:9"; '
        'Acquire::Retries::Delay "false";\n'
    )
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("apt-get", "dpkg"):  # and no Prometheus, should one be installed
        (tools / name).symlink_to(shutil.which(name))
    monkeypatch.setenv("APT_CONFIG", str(unreachable))
    monkeypatch.setenv("PATH", str(tools))

    address, said = await start("auto")

    assert address is None
    [told] = [line for line in said if line.startswith("going on without Prometheus")]
    assert "fetching package lists failed" in told
    assert told.endswith("or do without: EVENLOAD_PROMETHEUS=0")


async def test_one_that_does_not_start_is_said(start, tmp_path):
    program = tmp_path / "prometheus"
    program.write_text('#!/bin/sh\ncase "$1" in --version) echo "prometheus, version 9";; *) exit 2;; esac\n')
    program.chmod(0o755)

    address, said = await start(str(program))

    assert address is None
    assert any("going on without Prometheus: prometheus refuses to start" in line for line in said)
