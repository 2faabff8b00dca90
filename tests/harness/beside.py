"""One more service beside a running stack: on its ledger and broker, but started, told and ended by a test."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from harness.stack import ROOT, Api, Stack, readiness, until

from services.local.ports import free_ports
from services.local.stack import PYTHON_MODULE


def island(stack: Stack, substation: str) -> dict[str, str]:
    """The settings of one more substation, in a zone of its own that has its name."""
    grid = stack.data.parent / f"{substation}.toml"
    grid.write_text(
        f'name = "{substation}"\n[[substation]]\nid = "{substation}"\nzone = "{substation}"\n'
        "rated_kva = 100\nlimit_kw = 80\nconnectors = 10\n"
    )
    return {"EVENLOAD_GRID": str(grid), "EVENLOAD_SUBSTATION_IDS": substation}


class Beside(Api):
    """The process; a gateway can be asked, too."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, admin_port: int) -> None:
        super().__init__(f"http://127.0.0.1:{port}")
        self.process = process
        self.admin_port = admin_port


@contextmanager
def beside(stack: Stack, package: str, **environment: str) -> Iterator[Beside]:
    """Start `package` and wait until it is ready, or has ended; it is gone at the end."""
    port, admin_port = free_ports(2)
    log = stack.data / "logs" / f"beside-{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*PYTHON_MODULE, package],
            cwd=ROOT,
            env={
                **stack.service("substation-north" if package == "substations" else package).environ(),
                "EVENLOAD_INSTANCE": f"beside-{port}",
                "EVENLOAD_ADMIN_PORT": str(admin_port),
                "EVENLOAD_GATEWAY_PORT": str(port),
                **environment,
            },
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        until(lambda: process.poll() is not None or readiness(admin_port)[0] == 200, f"a ready {package}, see {log}")
        yield Beside(process, port, admin_port)
    finally:
        process.kill()
        process.wait(30)
