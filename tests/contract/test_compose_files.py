import base64
import json
import os
import re
import subprocess
import sys
import threading
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from balancer.metrics import BalancerMetrics
from balancer.settings import BalancerSettings
from gateway.metrics import GatewayMetrics
from gateway.settings import GatewaySettings
from services.broker import topology
from services.grid import load_grid
from services.ledger import provision
from services.metrics import ServiceMetrics
from services.settings import FILE_SUFFIX, CommonSettings, LocalSettings, env_names
from substations.collector import SubstationCollector
from substations.settings import SubstationSettings

ROOT = Path(__file__).parents[2]
COMPOSE = (ROOT / "docker-compose.yml").read_text()
DOCKERFILE = (ROOT / "infra/Dockerfile").read_text()
PROVISIONED = (ROOT / "infra/postgres/provision.sql").read_text()
DEFINITIONS = json.loads((ROOT / "infra/rabbitmq/definitions.json").read_text())
COMPOSE_SERVICES = re.findall(
    r"^  ([a-z-]+):$", COMPOSE.split("\nservices:\n")[1].split("\nconfigs:\n")[0], re.MULTILINE
)


def test_the_definitions_file_is_the_topology():
    expected = topology.definitions(dict.fromkeys(topology.ROLES, "any"))
    found = json.loads(json.dumps(DEFINITIONS))
    for user in (*found["users"], *expected["users"]):
        del user["password_hash"]  # salted: the next test looks at it
    assert found == expected, "write it anew: python -m services.broker.topology gateway=… balancer=… …"


@pytest.mark.parametrize("role", topology.ROLES)
def test_the_definitions_have_the_passwords_that_the_compose_file_tells(role):
    told = re.findall(rf"(?:amqp://{role}:|\b{role} / )(demo-[a-z]+)", COMPOSE)
    assert told
    stored = next(user["password_hash"] for user in DEFINITIONS["users"] if user["name"] == role)
    salt = base64.b64decode(stored)[:4]
    for password in told:
        assert topology.password_hash(password, salt) == stored


def test_the_databases_file_is_what_is_provisioned():
    verifier = re.compile(r"SCRAM-SHA-256\$[^']+")  # salted: the next test looks at it
    expected = provision.provision(dict.fromkeys(provision.ROLES, "any"))
    found = PROVISIONED.rstrip("\n")
    assert verifier.sub("", found) == verifier.sub("", expected).rstrip("\n"), (
        "write it anew: python -m services.ledger.provision gateway=… balancer=… substation=…"
    )


@pytest.mark.parametrize("role", provision.ROLES)
def test_the_database_has_the_passwords_that_the_compose_file_tells(role):
    user = f"{provision.PREFIX}{role}"
    [told] = re.findall(rf"postgresql://{user}:(\S+)@", COMPOSE)
    [stored] = re.findall(rf"ALTER ROLE {user} LOGIN PASSWORD '(\S+)';", PROVISIONED)
    salt = base64.b64decode(stored.split("$")[1].split(":")[1])
    assert provision.scram(told, salt) == stored


def test_every_setting_in_the_compose_file_is_one_that_is_read():
    known = env_names([CommonSettings, LocalSettings, GatewaySettings, BalancerSettings, SubstationSettings])
    overlays = "".join(one.read_text() for one in (ROOT / "infra").glob("compose.*.yml"))
    named = set(re.findall(r"\bEVENLOAD_[A-Z_]+", COMPOSE + DOCKERFILE + overlays))
    assert {"EVENLOAD_LEDGER_URL", "EVENLOAD_AMQP_URL_FILE"} <= named
    assert {name.removesuffix(FILE_SUFFIX) for name in named} <= set(known)


def test_every_port_is_published_on_loopback_only():
    blocks = re.findall(r"^    ports:\n((?:      - .*\n)+)", COMPOSE, re.MULTILINE)
    assert len(blocks) == len(re.findall(r"\bports:", COMPOSE)) == 5
    for port in "".join(blocks).splitlines():
        assert re.fullmatch(r'      - "127\.0\.0\.1:\$\{[A-Z]+_PORT:-\d+\}:\d+"', port)
    assert "network_mode" not in COMPOSE


def test_no_health_check_goes_through_a_proxy_that_docker_gives_the_container():
    asked = [line for line in COMPOSE.splitlines() if "wget" in line]
    assert len(asked) == 2
    assert all("[CMD, env, -u, http_proxy, wget, -q," in line for line in asked)

    [check] = re.findall(r'^        - "(import urllib.*)"$', COMPOSE, re.MULTILINE)
    proxy = {**os.environ, "http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
    with HTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as page:
        threading.Thread(target=page.handle_request).start()
        here = check.replace("8089", str(page.server_port))
        assert subprocess.run([sys.executable, "-c", here], env=proxy, check=False).returncode == 0
    assert subprocess.run([sys.executable, "-c", here], env=proxy, capture_output=True, check=False).returncode == 1
    assert re.search(r"^      NO_PROXY: .*\bprometheus\b", COMPOSE, re.MULTILINE)


def test_every_image_is_pinned():
    images = re.findall(r"^ +image: (\S+)$", COMPOSE, re.MULTILINE)
    images += re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert len(images) == 8
    for image in images:
        assert re.fullmatch(r"[a-z/]+:(v?\d+\.\d+(\.\d+)?(-[a-z-]+)?|\$\{IMAGE_TAG:-0\.1\.0\})", image)


def test_locust_is_the_one_of_the_lock():
    locked = re.search(r"^locust==(\S+)", (ROOT / "requirements/dev.txt").read_text(), re.MULTILINE)
    assert locked
    assert f"image: locustio/locust:{locked[1]}\n" in COMPOSE


def test_a_container_starts_for_each_substation_of_the_default_grid():
    [scale] = re.findall(r"command: \[python, -m, substations\]\n(?:    .*\n)*?    scale: (\d+)\n", COMPOSE)
    assert int(scale) == len(load_grid("default").substation)
    assert "EVENLOAD_SUBSTATION_IDS" not in COMPOSE


def test_prometheus_finds_every_service_of_ours_and_the_broker():
    config = (ROOT / "infra/prometheus/prometheus.yml").read_text()
    admin_port = re.findall(r"EVENLOAD_ADMIN_PORT=(\d+)", DOCKERFILE)
    replicas = re.findall(r"- names: \[(\S+)\]\n +type: A\n +port: (\d+)\n", config)
    assert replicas == [("gateway", *admin_port), ("balancer", *admin_port), ("rabbitmq", "15692")]
    assert re.findall(r"- url: (\S+)", config) == ["http://gateway:8080/targets"]
    statics = re.findall(r"targets: \[(\S+)\]", config)
    assert statics == ["localhost:9090"]
    assert {"gateway", "balancer", "rabbitmq", "prometheus"} <= set(COMPOSE_SERVICES)


def test_every_metric_in_a_dashboard_is_one_that_is_measured():
    measured = measured_names()
    for panel in dashboard_panels():
        for target in panel["targets"]:
            names = set(re.findall(r"\b(?:evenload_\w+|substation_load)\b", target["expr"]))
            others = set(re.findall(r"\b(?:up|rabbitmq_detailed_queue_\w+)\b", target["expr"]))
            assert names | others, f"{target['expr']} shows nothing that is known here"
            assert names <= measured


def test_every_panel_asks_the_provisioned_data_source():
    provisioned = (ROOT / "infra/grafana/provisioning/datasources/prometheus.yml").read_text()
    uid = re.findall(r"^    uid: (\S+)$", provisioned, re.MULTILINE)
    assert len(uid) == 1
    for panel in dashboard_panels():
        for asked in (panel, *panel["targets"]):
            assert asked["datasource"] == {"type": "prometheus", "uid": uid[0]}


def dashboard_panels() -> list[dict]:
    files = list((ROOT / "infra/grafana/dashboards").glob("*.json"))
    panels = [panel for file in files for panel in json.loads(file.read_text())["panels"] if panel["type"] != "row"]
    assert panels
    return panels


def measured_names() -> set[str]:
    registry = CollectorRegistry()
    ServiceMetrics("any", registry)
    GatewayMetrics(registry)
    BalancerMetrics(registry)
    registry.register(SubstationCollector([]))
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    return {family.name + suffix for family in registry.collect() for suffix in suffixes.get(family.type, ("",))}
