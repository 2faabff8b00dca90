"""Encrypted connections to the broker: each fault is named at once, with its cure."""

import asyncio
import contextlib
import ssl
import time

import pytest
from harness.certificates import Authority

from services.broker.connection import connected
from services.errors import Misconfigured

STARTUP_TIMEOUT_S = 600
"""Whatever is named only after it never ends a test."""


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@contextlib.asynccontextmanager
async def encrypted(broker, certificate, *, of_clients=None):
    """An encrypting end before the broker; its port. `of_clients`: whose certificates it asks for."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=of_clients)
    context.load_cert_chain(certificate.file, certificate.key)
    context.verify_mode = ssl.CERT_REQUIRED if of_clients else ssl.CERT_NONE

    async def pass_on(reader, writer):
        with contextlib.suppress(OSError):
            there, back = await asyncio.open_connection("127.0.0.1", broker.ports.amqp)
            await asyncio.gather(pump(reader, back), pump(there, writer))

    async with await asyncio.start_server(pass_on, "127.0.0.1", 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1]


async def pump(source, sink):
    try:
        while data := await source.read(65_536):
            sink.write(data)
            await sink.drain()
    finally:
        sink.close()


def address(vhost, port, options="", host="127.0.0.1", scheme="amqps"):
    url = vhost.amqp_url("balancer").replace(f"127.0.0.1:{vhost.broker.ports.amqp}", f"{host}:{port}")
    return f"{url.replace('amqp://', f'{scheme}://')}{options}"


async def refusal(url):
    async with asyncio.timeout(60):
        with pytest.raises(Misconfigured) as told:
            async with connected(url, "test", STARTUP_TIMEOUT_S):
                pass
    assert "\n" not in str(told.value)
    return str(told.value)


async def test_an_encrypted_connection_that_trusts_its_authority(vhost, authority):
    server = authority.issue("server", "DNS:localhost", "IP:127.0.0.1")
    async with encrypted(vhost.broker, server) as port:
        trusting = f"?cafile={authority.certificate.file}"
        async with connected(address(vhost, port, trusting), "test", STARTUP_TIMEOUT_S) as session:
            await session.channel()


async def test_a_broker_that_asks_for_a_certificate(vhost, authority):
    server = authority.issue("server", "IP:127.0.0.1")
    own = authority.issue("client")
    async with encrypted(vhost.broker, server, of_clients=authority.certificate.file) as port:
        options = f"?cafile={authority.certificate.file}&certfile={own.file}&keyfile={own.key}"
        async with connected(address(vhost, port, options), "test", STARTUP_TIMEOUT_S) as session:
            await session.channel()
        told = await refusal(address(vhost, port, f"?cafile={authority.certificate.file}"))
    assert told.endswith("does it want a certificate (?certfile=, ?keyfile=), or another version of TLS?"), told


async def test_an_authority_that_is_not_trusted(vhost, authority):
    server = authority.issue("server", "IP:127.0.0.1")
    async with encrypted(vhost.broker, server) as port:
        told = await refusal(address(vhost, port))
    assert told == (
        f"EVENLOAD_AMQP_URL: the certificate of the broker at amqps://balancer:***@127.0.0.1:{port}/{vhost.name} is not "
        "trusted (unable to get local issuer certificate): name its authority in ?cafile=, and the host as the "
        "certificate has it"
    )


async def test_a_host_that_the_certificate_does_not_have(vhost, authority):
    server = authority.issue("server", "DNS:broker.example")
    async with encrypted(vhost.broker, server) as port:
        told = await refusal(address(vhost, port, f"?cafile={authority.certificate.file}"))
        assert "is not trusted (IP address mismatch, certificate is not valid for '127.0.0.1')" in told
        nobody_verified = f"?cafile={authority.certificate.file}&no_verify_ssl=1"
        async with connected(address(vhost, port, nobody_verified), "test", STARTUP_TIMEOUT_S) as session:
            await session.channel()


async def test_amqps_on_a_port_that_does_not_encrypt(vhost, authority):
    port = vhost.broker.ports.amqp
    told = await refusal(address(vhost, port, f"?cafile={authority.certificate.file}"))
    assert told == (
        f"EVENLOAD_AMQP_URL: the broker at amqps://balancer:***@127.0.0.1:{port}/{vhost.name} does not encrypt on port "
        f"{port}: name its encrypted port (often 5671), or write amqp://"
    )


async def test_amqp_on_a_port_that_encrypts(vhost, authority):
    async with encrypted(vhost.broker, authority.issue("server", "IP:127.0.0.1")) as port:
        told = await refusal(address(vhost, port, scheme="amqp"))
    assert told == ""


async def test_a_port_at_which_somebody_else_answers(vhost):
    port = vhost.broker.ports.console
    began = time.monotonic()
    told = await refusal(address(vhost, port, scheme="amqp"))
    assert told == f"{began}"
