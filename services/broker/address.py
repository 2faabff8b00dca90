"""The broker's address: what may stand behind its `?`, and the certificates that it names."""

import base64
import binascii
import difflib
import ssl
from collections.abc import Mapping
from pathlib import Path

from yarl import URL

from services.errors import Misconfigured

HEARTBEAT_S = 10
"""Where the address names none."""

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
            hint = f"did you mean {near[0]}?" if near else "remove it"
            raise refused(f"nobody reads the option {name!r}", f"{hint} Those that are read: {', '.join(OPTIONS)}")
        if len(url.query.getall(name)) > 1:
            raise refused(f"the option {name!r} is given twice", "keep one of them")
        if name in TLS_OPTIONS and url.scheme != "amqps":
            raise refused(f"the option {name!r} is for encrypted connections only", "write amqps:// instead of amqp://")
    if url.query.get("auth", "plain") not in MECHANISMS:
        raise refused(f"auth={url.query['auth']} is no way to log in", f"use one of {', '.join(MECHANISMS)}")
    if url.query.get("no_verify_ssl", "0") not in ("0", "1"):
        raise refused(f"no_verify_ssl={url.query['no_verify_ssl']} is neither 0 nor 1", "write 1 to verify nobody")


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


def tls_fault(address: BrokerAddress, error: BaseException) -> Misconfigured | None:
    """Why the two ends cannot talk because of encryption; None for an error of another kind."""
    match error:
        case ssl.SSLCertVerificationError():
            cause = f"the certificate of the broker at {address.text} is not trusted ({error.verify_message})"
            return refused(cause, "name its authority in ?cafile=, and the host as the certificate has it")
        case ssl.SSLError() if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
            cause = f"the broker at {address.text} does not encrypt on port {address.port}"
            return refused(cause, "name its encrypted port (often 5671), or write amqp://")
        case ssl.SSLError():
            cause = f"no encrypted connection to the broker at {address.text} ({error.reason or error})"
            return refused(cause, "does it want a certificate (?certfile=, ?keyfile=), or another version of TLS?")
    return None
