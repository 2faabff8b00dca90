"""Looks from outside whether a stack has recovered: a request completes, each service is ready, the doctor agrees."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from harness.chaos_clients import JOULES_PER_CENTI_KWH, Client
from harness.chaos_schedule import QUEUES
from harness.chaos_stack import ChaosStack

from services.clock import monotonic_s
from services.local.ports import free_ports
from services.local.stack import PYTHON_MODULE

COMPLETED_WITHIN_S = 60.0
WELL_WITHIN_S = 60.0
DOCTOR_WITHIN_S = 30.0
POLL_S = 0.1
WELL_POLL_S = 0.5
CENTI_KWH = 10
WORDS = 200
ANY_ZONE = "any zone"


@dataclass
class Recovery:
    """How long it took after everything was healed; None where it took too long."""

    completed_s: float | None = None
    """Until a request of each zone, and one of any zone, were completed."""
    slowest: str = ""
    """Which of them was the last."""
    well_s: float | None = None
    missing: str = ""
    """What was not well at the end."""
    last: str = ""
    """What was not well until shortly before everything was."""


class ProbeRefused(Exception):
    """A gateway did not want the probe, which is as sound as all that were accepted."""


class WrongZone(Exception):
    """A request was charged at a substation of another zone."""


class Doctor:
    """`evenload doctor`, asked about a stack that `make run` does not know."""

    def __init__(self, stack: ChaosStack, settings: Mapping[str, str]) -> None:
        [port] = free_ports(1)
        gateway = stack.parts["gateway-1"].spec.environment
        self._url = stack.gateways[0]
        self._environment = {
            **os.environ,
            **stack.marks,
            **settings,
            "EVENLOAD_DATA_DIR": str(stack.data / "doctor"),
            "EVENLOAD_GATEWAY_PORT": str(port),
            **{name: gateway[name] for name in ("EVENLOAD_AMQP_URL", "EVENLOAD_LEDGER_URL")},
        }

    async def ask(self) -> str:
        """What it finds; nothing where all is well."""
        process = await asyncio.create_subprocess_exec(
            *(*PYTHON_MODULE, "services.cli.main", "doctor", "--json", "--url", self._url),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            env=self._environment,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(DOCTOR_WITHIN_S):
                told, _ = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            return f"doctor: it said nothing within {DOCTOR_WITHIN_S:g} s"
        return what_is_wrong(process.returncode, told)


def what_is_wrong(code: int, told: bytes) -> str:
    """What the doctor found, in words; nothing where all is well."""
    if code == 0:
        return ""
    try:
        checks = json.loads(told)["checks"] if told else []
        faults = [f"{one['check']}: {one['said']}" for one in checks if one["finding"] not in ("ok", "note")]
    except (ValueError, KeyError):
        return f"doctor: exit code {code}, and it said {told[:WORDS]!r}"
    return f"doctor: {'; '.join(faults) or f'exit code {code}'}"


class Recoveries:
    """Looks after each phase."""

    def __init__(self, stack: ChaosStack, client: Client, ask_doctor: Callable[[], Awaitable[str]]) -> None:
        self._stack = stack
        self._client = client
        self._ask_doctor = ask_doctor
        self.probes = 0

    async def look(self) -> Recovery:
        """Time requests of any zone and of every zone until all are completed, and then everything else."""
        healed_at_s = monotonic_s()
        recovery = Recovery()
        zones = [None, *sorted(QUEUES)]
        probes = [asyncio.create_task(self._until_completed(zone)) for zone in zones]
        await asyncio.wait(probes, timeout=COMPLETED_WITHIN_S)
        for one in probes:
            one.cancel()
        ends = dict(zip(zones, await asyncio.gather(*probes, return_exceptions=True), strict=True))
        missing = [
            f"a completed request of {zone or ANY_ZONE}{f' ({end!r})' if isinstance(end, Exception) else ''}"
            for zone, end in ends.items()
            if isinstance(end, BaseException)
        ]
        if not missing:
            at_s, recovery.slowest = max((end, zone or ANY_ZONE) for zone, end in ends.items())
            recovery.completed_s = at_s - healed_at_s
        give_up_at_s = max(healed_at_s + WELL_WITHIN_S, monotonic_s() + DOCTOR_WITHIN_S)
        while fault := await self._fault():
            recovery.last = fault
            if monotonic_s() > give_up_at_s:
                missing.append(fault)
                break
            await asyncio.sleep(WELL_POLL_S)
        recovery.missing = "; ".join(missing)
        if not missing:
            recovery.well_s = monotonic_s() - healed_at_s
        return recovery

    async def _until_completed(self, zone: str | None) -> float:
        """When a new request of that zone was seen completed. Raises `ProbeRefused` and `WrongZone`."""
        self.probes += 1
        key = f"probe-{self.probes}"
        body = {"vehicle_id": key, "energy_kwh": CENTI_KWH / 100, "max_power_kw": 22, "priority": 9, "zone": zone}
        request_id = await self._client.submit(key, body, CENTI_KWH * JOULES_PER_CENTI_KWH)
        if request_id is None:
            raise ProbeRefused(self._client.figures.refused)
        while (answer := await self._client.look_up(request_id)).get("status") != "completed":
            await asyncio.sleep(POLL_S)
        if zone not in (None, answer.get("substation")):  # each zone has one substation, of the same name
            raise WrongZone(f"{answer.get('substation')} completed it")
        return monotonic_s()

    async def _fault(self) -> str:
        """What is not well, in words."""
        if unready := await self._stack.not_ready():
            return f"/readyz of {', '.join(sorted(unready))}"
        if missing := await self._stack.missing_at_the_broker():
            return f"at the broker: {', '.join(sorted(missing))}"
        return await self._ask_doctor()
