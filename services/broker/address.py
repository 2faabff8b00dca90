"""The broker's address: what its options say, and the certificates that they name."""

import asyncio
import base64
import binascii
import difflib
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path

from aio_pika.exceptions import AMQPConnectionError, ProtocolSyntaxError
from yarl import URL

from services.broker_address import HEARTBEAT_S, OPTIONS, TLS_OPTIONS, broker_host, broker_options, refuse_heartbeat
from services.errors import Misconfigured
from services.signs import path_fault
from services.text_files import HEAD_BYTES, mark_fault

SETTING = "EVENLOAD_AMQP_URL"
LOOK_DEADLINE_S = 3.0
NEXT_ADDRESS_AFTER_S = 0.25
"""How long one address of a host may take before the next one is tried as well."""
WANTS_CERTIFICATE = "TLSV13_ALERT_CERTIFICATE_REQUIRED"
DISTRUSTS_CERTIFICATE = ("TLSV1_ALERT_UNKNOWN_CA", "SSLV3_ALERT_BAD_CERTIFICATE")
"""What OpenSSL calls the alerts of a broker that does not trust our certificate."""
MECHANISMS = ("plain", "external")


class BrokerAddress:
    """`EVENLOAD_AMQP_URL`, read as a whole before anybody connects."""

    def __init__(self, url: str) -> None:
        """Raises `Misconfigured` for what is no address, an option that nobody reads, and unusable certificates."""
        try:
            broker_host(url)
            refuse_heartbeat(broker_options(url))
        except ValueError as error:
            raise Misconfigured(f"{SETTING}: {error}") from None
        given = URL(url)
        options = _known_options(given.scheme, broker_options(url))
        plain = {name: value for name, value in options.items() if name not in TLS_OPTIONS}
        self.url = given.with_query({"heartbeat": str(HEARTBEAT_S)} | plain)
        self.tls = _context(options) if given.scheme == "amqps" else None
        self.text = redacted(given)
        """The address for people, without its password."""
        self.port: int = given.port or (5671 if self.tls else 5672)


def redacted(url: URL) -> str:
    """The address without its password and its options."""
    bare = url.with_query(None)
    return str(bare.with_password("***")) if bare.password else str(bare)


def refused(cause: str, cure: str) -> Misconfigured:
    """What is raised for a wrong address."""
    return Misconfigured(f"{SETTING}: {cause}: {cure}")


def _known_options(scheme: str, pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    names, options = [name for name, _ in pairs], dict(pairs)
    for name in names:
        if name not in OPTIONS:
            near = difflib.get_close_matches(name, OPTIONS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"use only {', '.join(OPTIONS)}"
            raise refused(f"nobody reads the option {name!r}", hint)
        if names.count(name) > 1:
            raise refused(f"the option {name!r} is given twice", "keep one of them")
        if name in TLS_OPTIONS and scheme != "amqps":
            raise refused(f"the option {name!r} is for encrypted connections only", "write amqps:// instead of amqp://")
    if options.get("auth", "plain") not in MECHANISMS:
        raise refused(f"auth={options['auth']} is no way to log in", f"use one of {', '.join(MECHANISMS)}")
    if options.get("no_verify_ssl", "0") not in ("0", "1"):
        raise refused(
            f"no_verify_ssl={options['no_verify_ssl']} is neither 0 nor 1",
            "write 0 to verify the broker's certificate, 1 not to",
        )
    return options


def _context(options: Mapping[str, str]) -> ssl.SSLContext:
    for name in ("cafile", "certfile", "keyfile"):
        if path := options.get(name):
            _refuse_other_path(name, path)
            _refuse_unreadable(name, path)
    if path := options.get("capath"):
        _refuse_other_path("capath", path)
        if not Path(path).is_dir():
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


def _refuse_other_path(name: str, path: str) -> None:
    if fault := path_fault(path):
        raise Misconfigured(f"{SETTING}: {name}: {path}: {fault}")


def _refuse_unreadable(name: str, path: str) -> None:
    try:
        with Path(path).open("rb") as file:
            fault = mark_fault(file.read(HEAD_BYTES))
    except OSError as error:
        raise refused(
            f"{name}: {path} cannot be read ({error.strerror})", "name a file that this user may read"
        ) from None
    if fault:  # OpenSSL would pass over the certificate that begins in the first line
        raise Misconfigured(f"{SETTING}: {name}: {path} {fault}")


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


def is_distrust(error: BaseException) -> bool:
    """Whether one of the two ends does not trust the other, or wants a certificate: no waiting cures that.

    Other ends of an encrypted connection pass: a proxy's broker may be away, or a certificate that has expired about to
    be renewed.
    """
    cause = _ssl_error(error)
    return isinstance(cause, ssl.SSLCertVerificationError) or (
        isinstance(cause, ssl.SSLError) and cause.reason in (WANTS_CERTIFICATE, *DISTRUSTS_CERTIFICATE)
    )


def _ssl_error(error: BaseException) -> BaseException | None:
    return error if isinstance(error, ssl.SSLError) else error.__cause__


async def tls_fault(address: BrokerAddress, error: BaseException) -> Misconfigured | None:
    """Why the two ends cannot talk because of encryption; None where that is not the fault."""
    end = f"the broker at {address.text}"
    match _ssl_error(error):
        case ssl.SSLCertVerificationError() as cause:
            told = cause.verify_message.rstrip(".")
            cure = "name its authority in ?cafile=, and the host as the certificate has it"
            return refused(f"the certificate of {end} is not trusted ({told})", cure)
        case ssl.SSLError(reason="WRONG_VERSION_NUMBER" | "RECORD_LAYER_FAILURE"):
            cure = "name its encrypted port (often 5671), or write amqp://"
            return refused(f"{end} does not encrypt on port {address.port}", cure)
        case ssl.SSLError(reason=reason) if reason in DISTRUSTS_CERTIFICATE:
            cure = "name one of an authority that it trusts, with its chain, in ?certfile= and ?keyfile="
            return refused(f"{end} does not trust our certificate ({reason})", cure)
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
            _, writer = await asyncio.open_connection(
                address.url.host, address.port, ssl=context, happy_eyeballs_delay=NEXT_ADDRESS_AFTER_S
            )
    except (OSError, TimeoutError):
        return False
    writer.transport.abort()
    return True
