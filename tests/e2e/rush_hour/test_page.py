"""Locust's own page with our additions, in a real browser against a running stack."""

import contextlib
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from harness.chromium import find_chromium, running_chromium
from harness.stack import ROOT, until
from playwright.sync_api import expect

from services.local.ports import free_ports

LOCUST = [str(Path(sys.executable).parent / "locust"), "-f", str(ROOT / "locustfiles"), "--class-picker"]
SHOWN_WITHIN_MS = 30_000
SUBSTATIONS = ("north", "east", "south", "west")


@contextlib.contextmanager
def locust_page(host, log):
    """Locust with its page; yields the page's address."""
    [page_port] = free_ports(1)
    command = [*LOCUST, "--web-host", "127.0.0.1", "--web-port", str(page_port), "--host", host]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LOCUST_")}
    with log.open("w") as output:
        process = subprocess.Popen(command, env=clean, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    address = f"http://127.0.0.1:{page_port}/"
    try:
        until(lambda: urllib.request.urlopen(address, timeout=5).close() is None, "locust's page")
        yield address
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def page():
    """A page of a browser; what its console complains about is a failure."""
    with running_chromium(find_chromium(), viewport={"width": 1280, "height": 1000}) as browser:
        page = browser.new_page()
        complaints = []
        page.on("console", lambda line: complaints.append(line.text) if line.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.set_default_timeout(SHOWN_WITHIN_MS)
        yield page
        assert complaints == []


def test_a_rush_is_started_on_the_page_and_its_distribution_shown(stack, tmp_path, page):
    with locust_page(stack.url, tmp_path / "locust.log") as address:
        page.goto(address)
        expect(page.get_by_label("Host", exact=True)).to_have_value(stack.url)
        for drivers in ("PrivateDrivers", "PublicDrivers", "WorkplaceDrivers"):
            expect(page.get_by_role("cell", name=drivers)).to_be_visible()
        expect(page.get_by_label("Shape Class").locator("option")).to_have_text(
            ["Default", "RushHour", "Spike", "Steady"]
        )
        page.get_by_label("Shape Class").select_option("RushHour")
        page.get_by_text("Custom parameters").click()
        expect(page.get_by_label("Rush Speed (")).to_have_value("300")

        page.get_by_label("Vehicles (").fill("0")
        page.get_by_role("button", name="Start").click()
        expect(page.get_by_role("alert")).to_have_text("vehicles: 0 does not lie between 1 and 1,000,000")
        page.get_by_label("Vehicles (").fill("120")
        page.get_by_label("Rush Speed (").fill("1800")
        page.get_by_label("Longest Minutes (").fill("2")
        page.get_by_role("button", name="Start").click()

        page.get_by_role("tab", name="Substations").click()
        for substation in SUBSTATIONS:
            expect(page.get_by_role("row", name=re.compile(rf"^{substation} [1-9]"))).to_be_visible()
        expect(page.get_by_role("row", name=re.compile(r"^all \(max ÷ mean\) \d+ 1\.\d\d$"))).to_be_visible()
        page.get_by_role("tab", name="Statistics").click()
        expect(page.get_by_role("row", name=re.compile(r"^E2E accepted → charging \d+ 0 "))).to_be_visible()
        expect(page.get_by_role("row", name=re.compile(r"^E2E accepted → ended \d+ 0 "))).to_be_visible()
        # Without users left the run goes on until everything has ended.
        expect(page.get_by_role("button", name="New")).to_be_visible(timeout=2 * SHOWN_WITHIN_MS)

        page.goto(f"{address}stats/report")
        expect(page.get_by_role("heading", name="Substations")).to_be_visible()
        expect(page.locator("#substations tbody tr")).to_have_count(len(SUBSTATIONS) + 1)


def test_the_page_tells_that_no_gateway_answers(tmp_path, port, page):
    with locust_page(f"http://127.0.0.1:{port}", tmp_path / "locust.log") as address:
        page.goto(address)
        page.get_by_label("Shape Class").select_option("Steady")
        page.get_by_role("button", name="Start").click()
        expect(page.get_by_role("alert")).to_contain_text(f"no gateway answers at http://127.0.0.1:{port}")
