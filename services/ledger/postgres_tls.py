"""Finds out what is wrong with a PostgreSQL server's certificate, which libpq does not tell."""

import contextlib
import socket
import ssl
import struct

import psycopg

_SSL_REQUEST = struct.pack("!ii", 8, 80_877_103)
_ACCEPTED = b"S"
_WITHIN_S = 3.0


def certificate_fault(conninfo: str) -> str | None:
    """Why the certificate of the first host of `conninfo` cannot be verified, in OpenSSL's words; None where it can.

    Nothing is sent but the request for TLS, so no password is.
    """
    given = psycopg.conninfo.conninfo_to_dict(conninfo)
    host, port = (str(given.get(name) or default).split(",")[0] for name, default in (("host", ""), ("port", 5432)))
    try:
        context = ssl.create_default_context(cafile=str(given["sslrootcert"]))
        context.check_hostname = False
        with contextlib.closing(socket.create_connection((host, int(port)), _WITHIN_S)) as connection:
            connection.sendall(_SSL_REQUEST)
            if connection.recv(1) == _ACCEPTED:
                context.wrap_socket(connection).close()
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    except (OSError, KeyError):
        return None
    return None
