"""The doctor's look at each service: whether it is ready, and in its own words why it is not."""

import asyncio

import aiohttp

from services.cli.checks import Check, note, ok, problem
from services.cli.client import connected
from services.errors import EvenloadError
from services.local.ports import HOST
from services.local.running import RunningStack

WITHIN_S = 3.0
DEGRADED = "degraded: "
CURE = "mend what it names, and it goes on by itself; its log tells more"


async def check_services(url: str, stack: RunningStack | None) -> list[Check]:
    """One line for each thing that a service lacks; those of a local stack are asked without its gateway."""
    try:
        causes = await (_of_stack(stack) if stack is not None else _of_gateway(url))
    except EvenloadError:
        return [note("services", "unknown: only a gateway that answers can tell of them")]
    unready = [problem("services", f"{name}: {cause}", CURE) for name, told in causes.items() for cause in told]
    return unready or [ok("services", f"ready: {', '.join(causes)}")]


async def _of_gateway(url: str) -> dict[str, list[str]]:
    """What the gateway knows of the services: names, and what each lacks."""
    async with connected(url) as gateway:
        items = await gateway.services()
    return {f"{one['service']} {one['name']}": [str(cause) for cause in one["causes"]] for one in items}


async def _of_stack(stack: RunningStack) -> dict[str, list[str]]:
    """What each service of a local stack says at its own admin port."""
    ports = {name: stack.environment(name).get("EVENLOAD_ADMIN_PORT") for name in stack.services}
    asked = {name: port for name, port in ports.items() if port}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=WITHIN_S)) as http:
        told = await asyncio.gather(*(_ask(http, port) for port in asked.values()))
    return dict(zip(asked, told, strict=True))


async def _ask(http: aiohttp.ClientSession, port: str) -> list[str]:
    """Why the process behind an admin port is not ready, or what it must do without; empty where all is well."""
    try:
        async with http.get(f"http://{HOST}:{port}/readyz") as response:
            told = (await response.text()).strip()
    except TimeoutError:
        return [f"it does not answer within {WITHIN_S:g} s"]
    except aiohttp.ClientError as error:
        return [f"it does not answer ({error})"]
    if response.status != 200:
        return [told.removeprefix("not ready: ")]
    return [line.removeprefix(DEGRADED) for line in told.splitlines() if line.startswith(DEGRADED)]
