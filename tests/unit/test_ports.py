import fcntl
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from services.local.ports import PORTS, free_ports

LOWEST_OUTGOING = 32_768
"""Linux's default."""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The place of the file that holds the next port."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_ports_are_different_and_below_those_of_outgoing_connections():
    found = free_ports(5) + free_ports(3)

    assert len(set(found)) == 8
    assert all(one in PORTS for one in found)
    assert PORTS.stop < LOWEST_OUTGOING


def test_a_taken_port_is_left_out(folder, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        monkeypatch.setattr("services.local.ports.PORTS", range(port, port + 40))
        (folder / f"evenload-next-port-{os.getuid()}").write_text(str(port))
        found = free_ports(3)
    assert port not in found
    assert all(port < one < port + 40 for one in found)


def test_processes_that_choose_at_the_same_time_choose_different_ports(folder):
    command = [sys.executable, "-c", "from services.local.ports import free_ports; print(*free_ports(20))"]
    with ThreadPoolExecutor(4) as pool:
        said = pool.map(
            lambda _: subprocess.run(
                command, env={**os.environ, "TMPDIR": str(folder)}, capture_output=True, text=True, check=True
            ).stdout.split(),
            range(4),
        )
        found = [port for ports in said for port in ports]

    assert len(found) == len(set(found)) == 80


@pytest.mark.parametrize("content", ["", "31999", "32000", "70000", "-5", "ten", "123456789"])
def test_whatever_the_file_holds_ports_are_found(folder, content):
    (folder / f"evenload-next-port-{os.getuid()}").write_text(content)

    assert all(one in PORTS for one in free_ports(3))


def test_where_the_file_cannot_be_used_ports_are_found_all_the_same(folder):
    (folder / f"evenload-next-port-{os.getuid()}").symlink_to("/dev/null")

    assert all(one in PORTS for one in free_ports(3))


def test_a_process_that_stands_still_with_the_file_holds_nobody_up(folder, monkeypatch):
    monkeypatch.setattr("services.local.ports.LOCK_TRIES", 3)
    with (folder / f"evenload-next-port-{os.getuid()}").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert all(one in PORTS for one in free_ports(3))
