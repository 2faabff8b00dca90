"""Encrypted connections to the broker: each fault is named at once, with its cure."""

import asyncio
import contextlib
import select
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness.certificates import Authority

from services.broker.address import BrokerAddress
from services.broker.connection import connected, until_connected
from services.broker.session import running
from services.errors import BrokerUnavailable, Misconfigured

STARTUP_TIMEOUT_S = 600
"""Whatever is named only after it never ends a test."""
IN_THE_END_S = 0.1
"""For what may pass, and is told once the time to start is over."""

ENDS_WITHIN_S = 30


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@contextlib.contextmanager
def encrypted(broker, certificate, *, of_clients=None, at_most="TLSv1_3"):
    """An encrypting end before the broker, in threads; its port. `of_clients`: whose certificates it asks for."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=of_clients)
    context.load_cert_chain(certificate.file, certificate.key)
    context.maximum_version = ssl.TLSVersion[at_most]
    context.verify_mode = ssl.CERT_REQUIRED if of_clients else ssl.CERT_NONE
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=accept, args=(listener, context, broker.ports.amqp))
        accepting.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join(ENDS_WITHIN_S)


def accept(listener, context, port):
    with ThreadPoolExecutor() as pumps:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            pumps.submit(serve, client, context, port)


def serve(client, context, port):
    """Pass on both ways until one end is over; one thread does, because TLS allows no two at once."""
    client.settimeout(ENDS_WITHIN_S)
    with (
        client,
        contextlib.suppress(OSError),
        context.wrap_socket(client, server_side=True) as near,
        socket.create_connection(("127.0.0.1", port)) as far,
    ):
        near.setblocking(False)  # a record that holds no data of AMQP's must not stop the other way
        while ready := select.select([near, far], [], [], ENDS_WITHIN_S)[0]:
            for one in ready:
                with contextlib.suppress(ssl.SSLWantReadError):
                    if not (data := one.recv(65_536)):
                        return
                    (far if one is near else near).sendall(data)


def address(vhost, port, options="", host="127.0.0.1", scheme="amqps"):
    url = vhost.amqp_url("balancer").replace(f"127.0.0.1:{vhost.broker.ports.amqp}", f"{host}:{port}")
    return f"{url.replace('amqp://', f'{scheme}://')}{options}"


async def refusal(url, startup_timeout_s=STARTUP_TIMEOUT_S):
    async with asyncio.timeout(ENDS_WITHIN_S):
        with pytest.raises(Misconfigured) as told:
            async with connected(url, "test", startup_timeout_s):
                pass
    assert "\n" not in str(told.value)
    return str(told.value)


async def test_an_encrypted_connection_that_trusts_its_authority(vhost, authority):
    server = authority.issue("server", "DNS:localhost", "IP:127.0.0.1")
    with encrypted(vhost.broker, server) as port:
        trusting = f"?cafile={authority.certificate.file}"
        async with connected(address(vhost, port, trusting), "test", STARTUP_TIMEOUT_S) as session:
            await session.channel()


async def test_a_broker_that_asks_for_a_certificate(vhost, authority):
    server = authority.issue("server", "IP:127.0.0.1")
    own = authority.issue("client")
    with encrypted(vhost.broker, server, of_clients=authority.certificate.file) as port:
        options = f"?cafile={authority.certificate.file}&certfile={own.file}&keyfile={own.key}"
        async with connected(address(vhost, port, options), "test", STARTUP_TIMEOUT_S) as session:
            await session.channel()
        told = await refusal(address(vhost, port, f"?cafile={authority.certificate.file}"))
    assert "ends the encrypted connection (TLSV13_ALERT_CERTIFICATE_REQUIRED): it may want a certificate" in told


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
async def test_a_certificate_of_ours_that_the_broker_does_not_trust(vhost, authority, tmp_path, version):
    server = authority.issue("server", "IP:127.0.0.1")
    others = Authority(tmp_path).issue("client")
    with encrypted(vhost.broker, server, of_clients=authority.certificate.file, at_most=version) as port:
        options = f"?cafile={authority.certificate.file}&certfile={others.file}&keyfile={others.key}"
        told = await refusal(address(vhost, port, options))
    assert told == (
        f"EVENLOAD_AMQP_URL: the broker at amqps://balancer:***@127.0.0.1:{port}/{vhost.name} does not trust our "
        "certificate (TLSV1_ALERT_UNKNOWN_CA): name one of an authority that it trusts, with its chain, in ?certfile= "
        "and ?keyfile="
    )


async def test_an_authority_that_is_not_trusted(vhost, authority):
    server = authority.issue("server", "IP:127.0.0.1")
    with encrypted(vhost.broker, server) as port:
        told = await refusal(address(vhost, port))
    place = f"amqps://balancer:***@127.0.0.1:{port}/{vhost.name}"
    assert told == (
        f"EVENLOAD_AMQP_URL: the certificate of the broker at {place} is not "
        "trusted (unable to get local issuer certificate): name its authority in ?cafile=, and the host as the "
        "certificate has it"
    )


async def test_a_host_that_the_certificate_does_not_have(vhost, authority):
    server = authority.issue("server", "DNS:broker.example")
    with encrypted(vhost.broker, server) as port:
        told = await refusal(address(vhost, port, f"?cafile={authority.certificate.file}"))
        assert "is not trusted (IP address mismatch, certificate is not valid for '127.0.0.1'): name its" in told
        nobody_verified = f"?cafile={authority.certificate.file}&no_verify_ssl=1"
        async with connected(address(vhost, port, nobody_verified), "test", STARTUP_TIMEOUT_S) as session:
            await session.channel()


async def test_amqps_on_a_port_that_does_not_encrypt(vhost, authority):
    port = vhost.broker.ports.amqp
    told = await refusal(address(vhost, port, f"?cafile={authority.certificate.file}"), IN_THE_END_S)
    assert told == (
        f"EVENLOAD_AMQP_URL: the broker at amqps://balancer:***@127.0.0.1:{port}/{vhost.name} does not encrypt on port "
        f"{port}: name its encrypted port (often 5671), or write amqp://"
    )


async def test_amqp_on_a_port_that_encrypts(vhost, authority):
    with encrypted(vhost.broker, authority.issue("server", "IP:127.0.0.1")) as port:
        told = await refusal(address(vhost, port, scheme="amqp"), IN_THE_END_S)
    place = f"amqp://balancer:***@127.0.0.1:{port}/{vhost.name}"
    cure = "write amqps:// instead of amqp://"
    assert told == f"EVENLOAD_AMQP_URL: the broker at {place} encrypts on port {port}: {cure}"


async def told_of(url):
    """What a gateway logs, and what a process tells at its `/readyz`, once its first attempt has failed."""
    async with asyncio.timeout(ENDS_WITHIN_S), running(BrokerAddress(url), "test") as session:
        with pytest.raises(BrokerUnavailable) as logged:
            await until_connected(session, STARTUP_TIMEOUT_S, unanswered_s=ENDS_WITHIN_S)
        return str(logged.value), session.waiting()


@pytest.mark.parametrize("scheme", ["amqp", "amqps"])
async def test_who_goes_on_without_a_broker_tells_that_encryption_is_why(vhost, authority, scheme):
    with encrypted(vhost.broker, authority.issue("server", "IP:127.0.0.1")) as encrypting:
        port = encrypting if scheme == "amqp" else vhost.broker.ports.amqp
        logged, waits = await told_of(address(vhost, port, scheme=scheme))
    end = f"the broker at {scheme}://balancer:***@127.0.0.1:{port}/{vhost.name}"
    fault = {
        "amqp": f"{end} encrypts on port {port}: write amqps:// instead of amqp://",
        "amqps": f"{end} does not encrypt on port {port}: name its encrypted port (often 5671), or write amqp://",
    }[scheme]
    assert logged == f"{end} cannot be had (EVENLOAD_AMQP_URL: {fault})"
    assert waits == f"waiting for {end}: EVENLOAD_AMQP_URL: {fault}"


PASSING = {
    "a proxy without a broker behind it": b"HTTP/1.1 503 Service Unavailable\r\n\r\n",
    "internal_error": b"\x15\x03\x03\x00\x02\x02\x50",
    "handshake_failure": b"\x15\x03\x03\x00\x02\x02\x28",
}


@contextlib.asynccontextmanager
async def at_first(greeting, port):
    """An end that gives `greeting` to the first two who come, and then leads to `port`; its own port."""
    came = 0

    async def serve_one(reader, writer):
        nonlocal came
        came += 1
        if came <= 2:
            await reader.read(8)
            writer.write(greeting)
        else:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))
        writer.close()

    async def pump(reader, writer):
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                writer.write(data)
            writer.close()

    async with await asyncio.start_server(serve_one, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize("what", PASSING)
@pytest.mark.parametrize("scheme", ["amqps", "amqp"])
async def test_what_may_pass_is_waited_for(vhost, authority, monkeypatch, what, scheme):
    monkeypatch.setattr("services.broker.session.pause_s", lambda _away_s: 0.01)
    server = authority.issue("server", "IP:127.0.0.1")
    with encrypted(vhost.broker, server) as port:
        async with at_first(PASSING[what], port if scheme == "amqps" else vhost.broker.ports.amqp) as passing:
            options = f"?cafile={authority.certificate.file}" if scheme == "amqps" else ""
            async with connected(address(vhost, passing, options, scheme=scheme), "test", ENDS_WITHIN_S) as session:
                await session.channel()


async def test_an_alert_that_may_pass_is_told_in_the_end(vhost, authority):
    async with at_first(PASSING["internal_error"], 1) as port:
        told = await refusal(address(vhost, port), startup_timeout_s=0)
    assert "ends the encrypted connection (TLSV1_ALERT_INTERNAL_ERROR): it may want a certificate" in told


@pytest.mark.parametrize(
    ("greeting", "told"),
    [
        (b"", "the other end closed the connection without a word"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "somebody there does not speak AMQP 0-9-1"),
        (b"AMQP\x00\x01\x00\x00", "somebody there does not speak AMQP 0-9-1"),
    ],
)
async def test_a_port_at_which_somebody_else_answers(vhost, greeting, told):
    async def greet(reader, writer):
        await reader.read(8)
        writer.write(greeting)
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        said = await refusal(address(vhost, port, scheme="amqp"), startup_timeout_s=0.1)
    place = f"amqp://balancer:***@127.0.0.1:{port}/{vhost.name}"
    cure = "start one there, or correct address, user and vhost"
    assert said == f"EVENLOAD_AMQP_URL: no broker answers at {place} ({told}): {cure}"
