"""One engine for all compose checks, and the images that their files name."""

import re
import tempfile
import uuid
from pathlib import Path

import pytest
from harness.compose import PORTS, ROOT, Project, copy_of_the_checkout
from harness.compose_check import NO_ENGINE_TO_PYTEST
from harness.docker_engine import NoEngine, running_engine
from harness.stand_ins import make_stand_ins

from services.local.folders import cache_dir
from services.local.ports import free_ports
from services.settings import LocalSettings


@pytest.fixture(scope="session")
def engine():
    with tempfile.TemporaryDirectory(prefix="evenload-docker-") as folder:
        try:
            with running_engine(Path(folder), cache_dir(LocalSettings()) / "docker-images") as running:
                if running.is_ours:
                    make_stand_ins(running, {one for one in images() if not one.startswith(("evenload:", "grafana/"))})
                yield running
        except NoEngine as error:
            pytest.exit(f"the compose check needs a Docker engine: {error}", returncode=NO_ENGINE_TO_PYTEST)


@pytest.fixture(scope="module")
def project(engine, tmp_path_factory):
    """A project that is not up yet."""
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    checkout = copy_of_the_checkout(tmp_path_factory.mktemp("checkout"))
    name = f"evenload-check-{uuid.uuid4().hex[:8]}"
    return Project(engine, checkout, name, ("docker-compose.yml",), ports)


def images() -> set[str]:
    """The images that the compose file and the Dockerfile name."""
    compose = (ROOT / "docker-compose.yml").read_text()
    dockerfile = (ROOT / "infra/Dockerfile").read_text()
    named = re.findall(r"^ +image: (\S+)$", compose, re.MULTILINE)
    return {*named, *re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)}
