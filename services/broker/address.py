"""The broker's address: what may stand behind its `?`, and the certificates that it names."""

import asyncio
import base64
import binascii
import difflib
import ssl
from collections.abc import Mapping
from pathlib import Path

from aio_pika.exceptions import AMQPConnectionError, ProtocolSyntaxError
from yarl import URL

from services.errors import Misconfigured

HEARTBEAT_S = 10
"""Where the address names none."""

LOOK_DEADLINE_S = 3.0
TLS_OPTIONS = ("cafile", "capath", "cadata", "certfile", "keyfile", "no_verify_ssl")
OPTIONS = ("heartbeat", "auth", *TLS_OPTIONS)
MECHANISMS = ("plain", "external")


class BrokerAddress:
    """`EVENLOAD_AMQP_URL`, read as a whole before anybody connects."""

    def __init__(self, url: str) -> None:
        """Raises `Misconfigured` for an option that nobody reads, and for certificates that cannot be used."""
        given = URL(url)
        _refuse_unknown(given)
        options = {name: value for name, value in given.query.items() if name not in TLS_OPTIONS}
        self.url = given.with_query({"heartbeat": str(HEARTBEAT_S)} | options)
        self.tls = _context(given.query) if given.scheme == "amqps" else None
        self.text = redacted(given)
        """The address for people, without its password."""
        self.port: int = given.port or (5671 if self.tls else 5672)


def redacted(url: URL) -> str:
    """The address without its password and its options."""
    bare = url.with_query(None)
    return str(bare.with_password("***")) if bare.password else str(bare)


def refused(cause: str, cure: str) -> Misconfigured:
    """What is raised for a wrong address."""
    return Misconfigured(f"EVENLOAD_AMQP_URL: {cause}: {cure}")


def _refuse_unknown(url: URL) -> None:
    for name in url.query:
        if name not in OPTIONS:
            near = difflib.get_close_matches(name, OPTIONS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"use only {', '.join(OPTIONS)}"
            raise refused(f"nobody reads the option {name!r}", hint)
        if len(url.query.getall(name)) > 1:
            raise refused(f"the option {name!r} is given twice", "keep one of them")
        if name in TLS_OPTIONS and url.scheme != "amqps":
            raise refused(f"the option {name!r} is for encrypted connections only", "write amqps:// instead of amqp://")
    if url.query.get("auth", "plain") not in MECHANISMS:
        raise refused(f"auth={url.query['auth']} is no way to log in", f"use one of {', '.join(MECHANISMS)}")
    if url.query.get("no_verify_ssl", "0") not in ("0", "1"):
        raise refused(
            f"no_verify_ssl={url.query['no_verify_ssl']} is neither 0 nor 1",
            "write 0 to verify the broker's certificate, 1 not to",
        )


def _context(options: Mapping[str, str]) -> ssl.SSLContext:
    for name in ("cafile", "certfile", "keyfile"):
        if path := options.get(name):
            _refuse_unreadable(name, path)
    if (path := options.get("capath")) and not Path(path).is_dir():
        raise refused(f"capath: {path} is no folder", "name the folder that holds the authorities' certificates")
    context = _trusting(options)
    if "keyfile" in options and "certfile" not in options:
        raise refused("keyfile is given without certfile", "name the certificate that the key belongs to")
    if "certfile" in options:
        _add_own_certificate(context, options["certfile"], options.get("keyfile"))
    if options.get("no_verify_ssl") == "1":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _refuse_unreadable(name: str, path: str) -> None:
    try:
        with Path(path).open("rb"):
            pass
    except OSError as error:
        raise refused(
            f"{name}: {path} cannot be read ({error.strerror})", "name a file that this user may read"
        ) from None


def _trusting(options: Mapping[str, str]) -> ssl.SSLContext:
    try:
        data = base64.b64decode(options["cadata"], validate=True) if "cadata" in options else None
        return ssl.create_default_context(cafile=options.get("cafile"), capath=options.get("capath"), cadata=data)
    except (ssl.SSLError, binascii.Error):
        name = "cadata" if "cadata" in options else f"cafile: {options.get('cafile')}"
        cure = "name the authority's certificates in PEM (cadata: in DER, as base64)"
        raise refused(f"{name} holds no certificate", cure) from None


def _add_own_certificate(context: ssl.SSLContext, certfile: str, keyfile: str | None) -> None:
    def refuse_to_ask() -> str:
        raise refused(f"the key in {keyfile or certfile} is locked with a passphrase", "name one that is not")

    try:
        context.load_cert_chain(certfile, keyfile, refuse_to_ask)
    except ssl.SSLError as error:
        cause = f"certfile: {certfile} and its key cannot be used ({error.reason or error})"
        raise refused(cause, "name a certificate in PEM with its chain, and the key that belongs to it") from None


async def tls_fault(address: BrokerAddress, error: BaseException) -> Misconfigured | None:
    """Why the two ends cannot talk because of encryption; None where that is not the fault."""
    end = f"the broker at {address.text}"
    match error if isinstance(error, ssl.SSLError) else error.__cause__:
        case ssl.SSLCertVerificationError() as cause:
            told = cause.verify_message.rstrip(".")
            cure = "name its authority in ?cafile=, and the host as the certificate has it"
            return refused(f"the certificate of {end} is not trusted ({told})", cure)
        case ssl.SSLError(reason="WRONG_VERSION_NUMBER" | "RECORD_LAYER_FAILURE"):
            cure = "name its encrypted port (often 5671), or write amqp://"
            return refused(f"{end} does not encrypt on port {address.port}", cure)
        case ssl.SSLError() as cause:
            cure = "it may want a certificate (?certfile= and ?keyfile=), or another version of TLS"
            return refused(f"{end} ends the encrypted connection ({cause.reason or cause})", cure)
    is_answered = isinstance(error, AMQPConnectionError | ProtocolSyntaxError)
    if is_answered and address.tls is None and await _encrypts(address):
        return refused(f"{end} encrypts on port {address.port}", "write amqps:// instead of amqp://")
    return None


async def _encrypts(address: BrokerAddress) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        async with asyncio.timeout(LOOK_DEADLINE_S):
            _, writer = await asyncio.open_connection(address.url.host, address.port, ssl=context)
    except (OSError, TimeoutError):
        return False
    writer.transport.abort()
    return True
