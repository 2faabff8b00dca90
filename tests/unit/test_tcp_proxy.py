"""The tests' own TCP proxy does to connections what it says."""

import asyncio
import socket
import socketserver
import threading
import time
from contextlib import contextmanager

import pytest
from harness.tcp_proxy import HOST, Direction, TcpProxy

DEADLINE_S = 30
BRIEFLY_S = 0.3


class Echo(socketserver.BaseRequestHandler):
    """Sends back what it gets, and says goodbye when the client has said all."""

    def handle(self):
        try:
            while data := self.request.recv(65_536):
                self.server.pieces.append(data)
                self.request.sendall(data)
            self.request.sendall(b"bye")
        except ConnectionError as error:
            self.server.errors.append(error)


class EchoServer(socketserver.ThreadingTCPServer):
    def __init__(self):
        super().__init__((HOST, 0), Echo)
        self.pieces = []
        self.errors = []


@pytest.fixture
def echo():
    with EchoServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(echo):
    with TcpProxy(echo.server_address[1]) as one:
        yield one


@contextmanager
def client(proxy):
    with socket.create_connection((HOST, proxy.port), DEADLINE_S) as one:
        yield one


def answer(one, size):
    got = b""
    while len(got) < size and (data := one.recv(size - len(got))):
        got += data
    return got


def silent(one):
    """Nothing comes for a while; a proxy that lets it through would be quicker by far."""
    one.settimeout(BRIEFLY_S)
    try:
        return not one.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return True
    finally:
        one.settimeout(DEADLINE_S)


def eventually(condition, what):
    give_up_at = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < give_up_at, what
        time.sleep(0.01)


def test_it_passes_everything_on_both_ways_up_to_the_end(proxy):
    blob = bytes(range(256)) * 8_000
    with client(proxy) as one:
        sender = threading.Thread(target=lambda: (one.sendall(blob), one.shutdown(socket.SHUT_WR)))
        sender.start()
        assert answer(one, len(blob) + 4) == blob + b"bye"
        sender.join()
    eventually(lambda: proxy.open_connections == 0, "the connection is over")
    assert proxy.accepted == 1


@pytest.mark.parametrize("directions", [(), (Direction.TO_TARGET,), (Direction.FROM_TARGET,)])
def test_what_a_stall_holds_back_flows_on_after_healing(proxy, echo, directions):
    with client(proxy) as one:
        one.sendall(b"before")
        assert answer(one, 6) == b"before"
        proxy.stall(*directions)
        one.sendall(b"during")
        assert silent(one)
        if directions == (Direction.FROM_TARGET,):
            eventually(lambda: b"".join(echo.pieces) == b"beforeduring", "the target got it")
        else:
            assert b"".join(echo.pieces) == b"before"
        proxy.heal()
        assert answer(one, 6) == b"during"


def test_a_stall_holds_new_connections_and_the_end_of_old_ones_too(proxy, echo):
    with client(proxy) as old:
        old.sendall(b"old")
        assert answer(old, 3) == b"old"
        proxy.stall()
    with client(proxy) as new:
        new.sendall(b"new")
        assert silent(new)
        assert proxy.open_connections == 2
        proxy.heal()
        assert answer(new, 3) == b"new"
    eventually(lambda: proxy.open_connections == 0, "both are over")


def test_a_cut_resets_both_sides_and_new_connections_are_taken(proxy, echo):
    with client(proxy) as one:
        one.sendall(b"x")
        assert answer(one, 1) == b"x"
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            one.recv(1)
    eventually(lambda: echo.errors, "the target's side was reset, too")
    assert proxy.open_connections == 0
    with client(proxy) as one:
        one.sendall(b"y")
        assert answer(one, 1) == b"y"


def test_it_refuses_new_connections_while_open_ones_go_on(proxy):
    with client(proxy) as one:
        one.sendall(b"x")
        assert answer(one, 1) == b"x"
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HOST, proxy.port), DEADLINE_S)
        one.sendall(b"y")
        assert answer(one, 1) == b"y"
    proxy.heal()
    with client(proxy) as one:
        one.sendall(b"z")
        assert answer(one, 1) == b"z"


def test_it_delays_and_slices(proxy, echo):
    proxy.delay(BRIEFLY_S)
    proxy.slice(1)
    with client(proxy) as one:
        asked_at = time.monotonic()
        one.sendall(b"0123456789")
        assert answer(one, 10) == b"0123456789"
        assert time.monotonic() - asked_at >= 2 * BRIEFLY_S  # once each way: it must not be quicker
    assert b"".join(echo.pieces) == b"0123456789"
    assert len(echo.pieces) > 1


def test_a_reset_of_the_target_reaches_the_client():
    with socket.create_server((HOST, 0)) as server, TcpProxy(server.getsockname()[1]) as proxy, client(proxy) as one:
        served, _ = server.accept()
        served.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        served.close()
        with pytest.raises(ConnectionResetError):
            one.recv(1)


def test_where_nobody_is_behind_it_the_client_is_reset():
    with socket.create_server((HOST, 0)) as gone:
        port = gone.getsockname()[1]
    with TcpProxy(port) as proxy, pytest.raises(ConnectionResetError), client(proxy) as one:
        one.recv(1)


async def test_it_serves_the_event_loop_that_controls_it(echo):
    with TcpProxy(echo.server_address[1]) as proxy:
        reader, writer = await asyncio.open_connection(HOST, proxy.port)
        writer.write(b"x")
        assert await asyncio.wait_for(reader.readexactly(1), DEADLINE_S) == b"x"
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.readexactly(1), DEADLINE_S)
        writer.close()
