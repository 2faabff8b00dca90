"""What Prometheus is told of a substation's address."""

import pytest
from prometheus_client import CollectorRegistry

from gateway.targets import target_group
from services.admin import AdminServer
from services.errors import Misconfigured

NORTH = {"__meta_evenload_substations": "north"}


@pytest.mark.parametrize(
    ("address", "target", "labels"),
    [
        ("http://127.0.0.1:8081", "127.0.0.1:8081", {}),
        ("http://127.0.0.1:8081/", "127.0.0.1:8081", {}),
        ("http://0f3c9d:8081", "0f3c9d:8081", {}),
        ("http://[::1]:8081", "[::1]:8081", {}),
        ("http://substations", "substations:80", {}),
        ("https://[2001:db8::7]", "[2001:db8::7]:443", {"__scheme__": "https"}),
        ("https://grid.example:9000/north/", "grid.example:9000",
         {"__scheme__": "https", "__metrics_path__": "/north/metrics"}),
    ],
)  # fmt: skip
def test_an_address_becomes_a_target_with_what_differs_from_prometheus_defaults(address, target, labels):
    assert target_group(address, ["north"]) == {"targets": [target], "labels": NORTH | labels}


def test_a_process_that_hosts_several_is_one_target():
    group = target_group("http://127.0.0.1:8081", ["east", "north"])

    assert group["targets"] == ["127.0.0.1:8081"]
    assert group["labels"] == {"__meta_evenload_substations": "east,north"}


@pytest.mark.parametrize(("host", "begins"), [("127.0.0.1", "127.0.0.1:"), ("::1", "[::1]:")])
async def test_the_address_that_a_process_tells_of_itself_is_one_that_can_be_scraped(host, begins):
    admin = AdminServer(CollectorRegistry())
    try:
        await admin.start(host, None)
    except Misconfigured:
        assert host == "::1", "this machine has no 127.0.0.1"
        return  # nor could anybody serve there
    try:
        [target] = target_group(admin.url, ["north"])["targets"]
        assert target.startswith(begins)
        assert target == admin.url.removeprefix("http://")
    finally:
        await admin.stop()
