"""The private copy of Prometheus: whole enough to serve its pages, and no more than that."""

import re

import aiohttp

from services.local import leftovers, prometheus_programs
from services.local.ports import free_ports
from services.local.prometheus import Scraped, configuration, process
from services.local.supervisor import Supervisor

NOBODY = Scraped("http://127.0.0.1:1", "127.0.0.1:1", "127.0.0.1:1", None)
BYTES_MAX = 150 * 2**20


async def test_a_fresh_copy_serves_its_pages_with_all_that_they_ask_for_and_is_small(tmp_path, monkeypatch):
    cache = tmp_path / "a cache's José"
    monkeypatch.setattr(prometheus_programs, "find_program", lambda *_: None)
    unpacked = prometheus_programs.find_prometheus("auto", cache, print)
    files = [one for one in cache.rglob("*") if one.is_file() and not one.is_symlink()]
    assert {unpacked.program, unpacked.program.with_name("promtool")} <= set(files)
    assert sum(one.stat().st_blocks * 512 for one in files) < BYTES_MAX

    [port] = free_ports(1)
    own = f"127.0.0.1:{port}"
    (tmp_path / "prometheus.yml").write_text(configuration(NOBODY, own))
    supervisor = Supervisor(leftovers.marks(tmp_path, "any"), print)
    try:
        await supervisor.start(process(unpacked, tmp_path, own, tmp_path / "log"))
        async with aiohttp.ClientSession(f"http://{own}") as http:
            async with http.get("/") as response:
                page = await response.text()
            parts = re.findall(r"""<(?:script|link)[^>]* (?:src|href)="(/[^"]+)\"""", page)
            assert len(parts) > 5, page
            for part in parts:
                async with http.get(part) as response:
                    assert (part, response.status) == (part, 200)
    finally:
        await supervisor.stop()
