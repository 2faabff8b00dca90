"""What the doctor says of a stack that no `make run` of this folder started, such as compose's."""

from types import SimpleNamespace

from harness import fake_gateway as fake
from harness.commands import told


def service(name: str, *causes: str) -> dict:
    return {"service": "substations", "name": name, "ready": not causes, "causes": list(causes)}


def doctor(port: str, code: int, tmp_path, **more: str) -> list[dict]:
    here = SimpleNamespace(data=tmp_path / "data", port=port, speed="60")
    return told(here, "doctor", code=code, **more)["checks"]


def problems(checks: list[dict]) -> set[str]:
    return {one["check"] for one in checks if one["finding"] == "problem"}


def found(checks: list[dict], name: str) -> dict:
    return next(one for one in checks if one["check"] == name)


def serving(gateway: fake.FakeGateway, *services: dict) -> str:
    """Let the gateway tell of a well grid and of these services; its port."""
    gateway.answers["GET", "/substations"] = (200, fake.load_table(fake.line()))
    gateway.answers["GET", "/services"] = (200, {"items": list(services)})
    return gateway.url.rpartition(":")[2]


def test_a_stack_of_several_hosts_is_judged_without_what_only_a_local_one_needs(vhost, postgres_url, tmp_path):
    shared = {
        "EVENLOAD_LEDGER_SHARED": "1",
        "EVENLOAD_LEDGER_URL": postgres_url,
        "EVENLOAD_AMQP_URL": vhost.amqp_url("gateway"),
    }
    with fake.fake_gateway() as gateway:
        checks = doctor(serving(gateway, service("north")), 1, tmp_path, **shared)
        names = {one["check"] for one in checks}
        assert {"broker", "ledger", "gateway", "balancer", "substations", "services"} <= names
        assert not {"data folder", "disk", "port", "stack", "rabbitmq", "prometheus"} & names
        assert problems(checks) == {"broker"}  # no balancer is there

        lacking = service("north", "the queue charge.substation.north is missing")
        checks = doctor(serving(gateway, lacking), 1, tmp_path, **shared)
        assert found(checks, "services")["said"] == "substations north: the queue charge.substation.north is missing"
    assert "gateway" in problems(doctor("1", 1, tmp_path, **shared))


def test_a_gateway_of_another_stack_has_the_port_and_is_no_fault(tmp_path):
    with fake.fake_gateway() as gateway:
        port = serving(gateway, service("north"))
        line = found(doctor(port, 0, tmp_path), "port")
    assert (line["finding"], line["said"]) == ("note", f"{port} has the gateway of another stack, perhaps of compose")
    assert line["cure"].startswith("to `make run`, stop it, or set EVENLOAD_GATEWAY_PORT=")
