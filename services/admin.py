"""The admin port of a process: `/healthz`, `/readyz`, `/metrics`."""

import socket
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.aiohttp import make_aiohttp_handler

from services.errors import Misconfigured

KEEP_ALIVE_S = 60.0
"""How long a connection may be idle, or take for the head of a request; it holds a file descriptor meanwhile."""


class AdminServer:
    """Tells whether the process lives and is ready, and what it measures."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.ready = False
        self.faults: list[Callable[[], str | None]] = []
        """Each tells why the process cannot do its work now, or None; asked whenever somebody asks `/readyz`."""
        self.degradations: list[Callable[[], str | None]] = []
        """As `faults`, of what a process can do its work without: it stays ready, and tells the cause all the same."""
        app = web.Application()
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        app.router.add_get("/metrics", make_aiohttp_handler(registry))
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, keepalive_timeout=KEEP_ALIVE_S)
        self._url = ""

    @property
    def url(self) -> str:
        """The address under which other processes reach this port."""
        return self._url

    async def start(self, host: str, port: int | None) -> None:
        """Serve on `port`, or on a free one; raises `Misconfigured` when it is taken."""
        await self._runner.setup()
        bound = await bind(self._runner, host, port, "EVENLOAD_ADMIN_PORT")
        reachable = socket.gethostname() if host in ("0.0.0.0", "::") else host
        self._url = f"http://[{reachable}]:{bound}" if ":" in reachable else f"http://{reachable}:{bound}"

    async def stop(self) -> None:
        """Close the port."""
        await self._runner.cleanup()

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    def causes(self) -> list[str]:
        """Why the process cannot do its work now; empty where it can."""
        return [cause for fault in self.faults if (cause := fault())]

    def degraded(self) -> list[str]:
        """What the process must do without; empty where it has everything."""
        return [cause for fault in self.degradations if (cause := fault())]

    async def _readyz(self, _request: web.Request) -> web.Response:
        causes = self.causes()
        if not self.ready:
            causes += self.degraded()  # what a process cannot do without while it starts
        if causes or not self.ready:
            told = f": {'; '.join(causes)}" if causes else ""
            return web.Response(text=f"not ready{told}\n", status=503)
        degraded = "".join(f"degraded: {cause}\n" for cause in self.degraded())
        return web.Response(text=f"ready\n{degraded}")


def free_port(host: str) -> int:
    """A TCP port that is free on `host` now; raises `OSError` where that is no address of this machine."""
    family, _, _, _, address = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    with socket.socket(family) as probe:
        probe.bind(address)
        port: int = probe.getsockname()[1]
        return port


async def bind(runner: web.AppRunner, host: str, port: int | None, setting: str) -> int:
    """Listen on `port` (None: any free one) and return it.

    Raises `Misconfigured`, naming the port, the setting and a free port, when it cannot be had.
    """
    try:
        site = web.TCPSite(runner, host, port or 0)
        await site.start()
    except (OSError, UnicodeError) as error:  # UnicodeError: no host can have that name
        raise Misconfigured(port_taken(host, port, setting, error)) from None
    bound: int = runner.addresses[-1][1]
    return bound


def port_taken(host: str, port: int | None, setting: str, error: OSError | UnicodeError) -> str:
    """What to tell somebody whose port is in use, or whose host is not this machine; `setting` is the port's."""
    cause = getattr(error, "strerror", None) or error
    try:
        free = free_port(host)
    except (OSError, UnicodeError):
        return f"{setting.removesuffix('PORT')}HOST: {host!r} is not this machine ({cause}): set it to 127.0.0.1"
    return f"port {port} on {host} cannot be used ({cause}): stop what uses it, or set {setting}={free}, which is free"
