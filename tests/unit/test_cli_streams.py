"""What commands write is the same data on every stream, and never a trace."""

import json
import os
import subprocess
import sys

import pytest
from harness.fake_gateway import fake_gateway, line, load_table, request

VEHICLE = "Zoë 🚗 \x7f\x9b2J\u202e"
STREAMS = {
    "ASCII": {"PYTHONIOENCODING": "ascii"},
    "Latin-1": {"PYTHONIOENCODING": "latin-1"},
    "the C locale": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "UTF-8": {"PYTHONUTF8": "1"},
}


@pytest.fixture(scope="module")
def gateway():
    with fake_gateway() as one:
        one.answers["GET", "/charge-requests/r-1"] = (200, request(vehicle_id=VEHICLE))
        one.answers["GET", "/substations"] = (200, load_table(line("north", zone="Süd – 7")))
        yield one


def evenload(gateway, *arguments, redirect="", **environment):
    """A command on a stream that only the environment and the shell say something of."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "PYTHON", "LANG"))}
    command = [sys.executable, "-m", "services.cli", *arguments, "--url", gateway.url]
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirect}', "sh", *command],
        env={**kept, **environment}, capture_output=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("environment", STREAMS.values(), ids=STREAMS)
def test_json_is_the_same_data_on_every_stream_and_steers_no_terminal(gateway, environment):
    done = evenload(gateway, "status", "r-1", "--json", **environment)

    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout) == request(vehicle_id=VEHICLE)
    assert all(0x20 <= sign < 0x7F for sign in done.stdout.removesuffix(b"\n"))


@pytest.mark.parametrize(
    ("environment", "zone"),
    [
        (STREAMS["ASCII"], b"S\\xfcd \\u2013 7"),
        (STREAMS["Latin-1"], b"S\xfcd \\u2013 7"),
        (STREAMS["the C locale"], b"S\\xfcd \\u2013 7"),
        (STREAMS["UTF-8"], "Süd – 7".encode()),
    ],
    ids=STREAMS,
)
def test_text_that_a_stream_cannot_encode_is_escaped(gateway, environment, zone):
    done = evenload(gateway, "substations", **environment)

    assert (done.returncode, done.stderr) == (0, b"")
    assert zone in done.stdout


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "JSON"])
def test_a_command_without_an_output_does_its_work_without_a_trace(gateway, options):
    done = evenload(gateway, "substations", *options, redirect=">&-")

    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "JSON"])
def test_an_output_on_a_full_disk_is_told_in_one_line(gateway, options):
    done = evenload(gateway, "substations", *options, redirect="> /dev/full")

    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == (
        b"evenload: standard output cannot be written (No space left on device): free some room there\n"
    )


def test_an_id_that_is_no_text_is_unknown_like_any_other(gateway):
    done = evenload(gateway, "status", b"\xff", LC_ALL="C.UTF-8")

    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"evenload: ")
    assert gateway.asked[-1][1] == "/charge-requests/%FF"


@pytest.mark.parametrize("redirect", [">&-", "<&- >&- 2>&-"])
def test_a_service_without_standard_streams_ends_with_its_own_exit_code(redirect):
    command = ["sh", "-c", f"exec {sys.executable} -m gateway {redirect}"]
    done = subprocess.run(command, env={"EVENLOAD_LEDGER_URL": "sqlite:///x"}, capture_output=True, check=False)

    assert done.returncode == 2
    assert done.stderr in (b"", b"gateway: EVENLOAD_AMQP_URL: is not set, and has no default\n")


def test_what_a_command_meets_on_its_way_is_no_line_beside_its_json(gateway, tmp_path):
    away = {"EVENLOAD_AMQP_URL": "amqp://user:word@127.0.0.1:1/evenload", "EVENLOAD_DATA_DIR": str(tmp_path)}

    done = evenload(gateway, "doctor", "--json", **away)

    assert done.stderr == b""
    assert "no broker answers at amqp://user:***@127.0.0.1:1/evenload" in {
        one["said"].partition(" (")[0] for one in json.loads(done.stdout)["checks"]
    }
