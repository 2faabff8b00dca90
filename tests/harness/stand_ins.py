"""Stand-ins for upstream's images where none can be pulled: Debian's packages under upstream's names and manners.

They show that the compose files fit together and that our own image works; what upstream ships, they cannot show. They
are made of Debian's next release, whose major versions are those of the compose files, but for Prometheus.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness.docker_engine import Engine
from harness.docker_programs import NEXT_RELEASE

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "tests/compose/stand_ins"
BASE = f"evenload-stand-in:{NEXT_RELEASE}"
PYTHON = "python"
MADE_WITHIN_S = 900
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")


def make_stand_ins(engine: Engine, images: Iterable[str]) -> None:
    """Make an image under each of these names (`prom/prometheus:v3.10.0`), unless the engine has it.

    Asserts that there is a recipe for each. Docker's own cache makes a second time short.
    """
    assert engine.is_ours, "stand-ins would take the names of real images in somebody's engine"
    kinds = {re.split(r"[/:]", image.split(":")[0])[-1]: image for image in images}
    assert set(kinds) <= {one.name for one in RECIPES.iterdir()}, kinds
    _make_base(engine)
    locked = re.search(r"^locust==(\S+)", (ROOT / "requirements/dev.txt").read_text(), re.MULTILINE)
    options = {"locust": ("--build-arg", f"PYTHON={kinds[PYTHON]}", "--build-arg", f"LOCUST={locked[1]}")}

    def make(kind: str) -> None:
        engine.run(
            *("docker", "build", "--tag", kinds[kind], *options.get(kind, ()), str(RECIPES / kind)),
            timeout_s=MADE_WITHIN_S,
        )

    make(PYTHON)
    with ThreadPoolExecutor(2) as side_by_side:
        list(side_by_side.map(make, sorted(set(kinds) - {PYTHON})))


def _make_base(engine: Engine) -> None:
    if engine.run("docker", "image", "inspect", BASE, check=False).returncode == 0:
        return
    with tempfile.TemporaryDirectory(prefix="evenload-base-") as folder:
        root = Path(folder) / "root"
        made = subprocess.run(
            ["debootstrap", "--variant=minbase", "--include=ca-certificates", NEXT_RELEASE, root, engine.archive],
            env={**os.environ, **engine.debootstrap},
            capture_output=True,
            text=True,
            timeout=MADE_WITHIN_S,
            check=False,
        )
        assert made.returncode == 0, made.stdout[-3000:] + made.stderr[-3000:]
        # A machine behind an inspecting proxy has that proxy's authority here; who installs packages needs it, too.
        if AUTHORITIES.exists():
            shutil.copy(AUTHORITIES, root / AUTHORITIES.relative_to("/"))
        tar = Path(folder) / "base.tar"
        subprocess.run(["tar", "-C", root, "--exclude=./var/cache/apt/*", "-cf", tar, "."], check=True)
        variables = [f"{name}={AUTHORITIES}" for name in ("PIP_CERT", "SSL_CERT_FILE")]
        changes = [word for one in variables for word in ("--change", f"ENV {one}")]
        engine.run("docker", "import", *changes, "--change", 'CMD ["bash"]', str(tar), BASE)
