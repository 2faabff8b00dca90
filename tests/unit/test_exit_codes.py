"""The exit code of a service: 0 drained after a signal, 1 crashed, 2 misconfigured."""

import os
import subprocess
import sys

import pytest

ENDS_WITHIN_S = 60
SERVICE = """
import asyncio, os, signal, threading
from gateway.settings import GatewaySettings
from services import lifecycle
from services.errors import Misconfigured

lifecycle.DRAIN_DEADLINE_S = 0.05
STILL = threading.Event().wait
LONG_S = 10  # longer than every deadline here: a service that waits so long ends with an unexpected exit code

def told_to_end(after_s=0):
    asyncio.get_running_loop().call_later(after_s, os.kill, os.getpid(), signal.SIGTERM)

async def serve(life, settings):
    {life}

lifecycle.run("gateway", GatewaySettings, serve)
"""
LIVES = {
    "it drains after a signal": ("told_to_end(); await life.serve_until_stopped()", 0),
    "a signal comes before it is ready": (
        "told_to_end(); await asyncio.sleep(LONG_S); raise RuntimeError('too late')",
        0,
    ),
    "it crashes": ("raise RuntimeError('a bug')", 1),
    "work in the background ends by itself": (
        "told_to_end(LONG_S)\n    async with life.background(asyncio.sleep(0)): await life.serve_until_stopped()",
        1,
    ),
    "it does not drain in time": ("told_to_end(); await life.serve_until_stopped(); await asyncio.sleep(LONG_S)", 1),
    "a thread of it stands still": (
        "told_to_end(); work = asyncio.to_thread(STILL); asyncio.create_task(work); await life.serve_until_stopped()",
        0,
    ),
    "a thread of it stands still before it is ready": (
        "told_to_end(); await asyncio.to_thread(STILL)",
        0,
    ),
    "it finds itself misconfigured": ("raise Misconfigured('no such substation')", 2),
}


def ended(life, **settings):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EVENLOAD_")}
    environment |= {"EVENLOAD_AMQP_URL": "amqp://u:p@127.0.0.1/v", "EVENLOAD_LEDGER_URL": "sqlite:///x", **settings}
    return subprocess.run(
        [sys.executable, "-P", "-c", SERVICE.format(life=life)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=ENDS_WITHIN_S,
        check=False,
    )


@pytest.mark.parametrize("life", LIVES)
def test_the_exit_code_tells_how_a_service_ended(life):
    body, code = LIVES[life]

    process = ended(body)

    assert process.returncode == code, process.stdout + process.stderr


def test_a_wrong_setting_is_told_in_one_line_before_anything_is_served():
    process = ended("print('serves')", EVENLOAD_GATEWAY_PORT="none")

    assert (process.returncode, process.stdout) == (2, "")
    [line] = process.stderr.splitlines()
    assert line.startswith("gateway: EVENLOAD_GATEWAY_PORT")
