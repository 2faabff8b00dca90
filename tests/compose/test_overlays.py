"""The overlays, all at once: passwords in files, and a broker of three nodes that loses one."""

import re
from dataclasses import replace

import pytest
from harness.compose import ended, until, up

OVERLAYS = ("docker-compose.yml", "infra/compose.cluster.yml", "infra/compose.secrets.yml")


@pytest.fixture(scope="module")
def secret(project):
    """The project with passwords drawn by the script, not up yet."""
    project.compose("build", "gateway")
    project.engine.run(str(project.folder / "infra/secrets.sh"), env=project.variables)
    return replace(project, files=OVERLAYS)


@pytest.fixture(scope="module")
def stack(secret):
    with up(secret, "--scale", "substation=2", "--scale", "balancer=1") as running:
        yield running


@pytest.mark.parametrize("files", [OVERLAYS[:1], OVERLAYS[:2], (OVERLAYS[0], OVERLAYS[2]), OVERLAYS])
def test_the_files_are_sound_alone_and_together(secret, files):
    assert replace(secret, files=files).compose("config", "--quiet").stdout == ""


def test_the_secrets_are_drawn_once_and_entered_by_their_owner_only(secret):
    folder = secret.folder / "secrets"
    assert folder.stat().st_mode & 0o777 == 0o700
    again = secret.engine.run(str(secret.folder / "infra/secrets.sh"), env=secret.variables, check=False)
    assert again.returncode == 2
    assert "remove it" in again.stderr


def test_no_demo_password_is_left_in_what_is_started(secret):
    told = secret.compose("config").stdout
    assert not re.search(r"demo-(?!cookie)", told)
    for name in ("gateway_amqp_url", "operator_password"):
        assert (secret.folder / "secrets" / name).read_text().strip() not in told


def test_requests_end_while_a_node_of_the_broker_is_lost(stack):
    password = (stack.folder / "secrets/operator_password").read_text().strip()
    [node] = stack.containers("rabbitmq")
    until(lambda: members(stack, node) == {"charge.intake": 3, **dict.fromkeys(SUBSTATION_QUEUES, 3)}, "three members")
    rush = stack.rush(60, over_s=15, energy_kwh=1)
    until(lambda: sum(one["sessions"] for one in stack.get("/substations")["items"]) > 5, "sessions")
    [lost] = stack.containers("rabbitmq-3")
    stack.kill(lost)
    ended(rush)
    assert password not in stack.inside(node, "env").stdout
    stack.start(lost)
    until(lambda: {tuple(set(one)) for one in stack.health().values()} <= {("healthy",), ("exited 0",)}, "all healthy")
    # The node that came back has read its definitions anew.
    for one in ("rabbitmq", "rabbitmq-3"):
        [node] = stack.containers(one)
        for user in ("operator", "gateway"):
            asked = ("rabbitmqctl", "authenticate_user", user)
            assert stack.inside(node, *asked, f"demo-{user}", check=False).returncode != 0
        assert stack.inside(node, "rabbitmqctl", "authenticate_user", "operator", password).returncode == 0


SUBSTATION_QUEUES = ("charge.substation.north", "charge.substation.east")


def members(stack, node: str) -> dict[str, int]:
    """How many nodes hold each quorum queue."""
    asked = "rabbitmqctl --quiet --vhost evenload list_queues name type members --no-table-headers"
    listed = stack.inside(node, *asked.split())
    lines = [line.split("\t") for line in listed.stdout.splitlines()]
    return {line[0]: line[2].count("rabbit@") for line in lines if line[1] == "quorum"}
