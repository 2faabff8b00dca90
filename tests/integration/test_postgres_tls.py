"""A ledger over TLS: what works, and what is told, at once, of each way in which it does not."""

import shutil
import tempfile
from pathlib import Path

import psycopg
import pytest
from harness.certificates import Authority
from harness.ledger import Ledger, opened
from harness.postgres import PASSWORD, find_postgres, fresh_database, give_to_ordinary_user, running_postgres
from harness.refused_ledger import refused

from services.cli.checks import Finding

PATIENCE_S = 60


@pytest.fixture(scope="module")
def folder():
    """Where an ordinary user may read, too."""
    with tempfile.TemporaryDirectory(prefix="evenload-tls-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="module")
def authority(folder):
    return Authority(folder)


@pytest.fixture(scope="module")
def server(authority):
    made = authority.issue("server", "DNS:localhost")
    give_to_ordinary_user(made.key)
    files = {"cert": made.file, "key": made.key, "ca": authority.certificate.file}
    settings = ["ssl=on", *(f"ssl_{name}_file={file}" for name, file in files.items())]
    with running_postgres(find_postgres(), *settings) as one:
        yield one


@pytest.fixture(scope="module")
def url(server):
    """Of a database with a ledger, at a name that the certificate is for."""
    with fresh_database(server) as made:
        yield made.replace("@127.0.0.1", "@localhost")


async def told(url):
    """Cause and cure of a refusal that is told at once."""
    finding, cause, cure = await refused(url, PASSWORD, startup_timeout_s=PATIENCE_S)
    assert finding is Finding.MISCONFIGURED
    assert cause.startswith(url.rpartition("@")[2].partition("?")[0])
    return cause.partition(" ")[2], cure


async def test_a_ledger_is_kept_over_tls_that_was_verified(url, authority):
    async with opened(f"{url}?sslmode=verify-full&sslrootcert={authority.certificate.file}") as connection:
        await Ledger(connection).accepted("a")
        [row] = await connection.read(
            lambda it: it.execute("SELECT bool_and(ssl) AS safe FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) "
                                  "WHERE application_name = 'evenload'")
        )  # fmt: skip
    assert row["safe"] is True


async def test_another_host_name_than_the_certificates(url, authority):
    at_address = url.replace("@localhost", "@127.0.0.1")

    assert await told(f"{at_address}?sslmode=verify-full&sslrootcert={authority.certificate.file}") == (
        'refuses (server certificate for "localhost" (and 1 other name) does not match host name "127.0.0.1")',
        "name the host as its certificate does, or set sslmode to verify-ca",
    )


async def test_a_root_certificate_that_is_not_there_or_is_none(url, folder):
    (folder / "rubbish").write_text("no certificate")
    cure = "let sslrootcert name the file of the CA that signed the server's certificate"

    cause, told_cure = await told(f"{url}?sslmode=verify-full&sslrootcert={folder}/missing")
    assert cause.startswith(f'refuses (root certificate file "{folder}/missing" does not exist')
    assert told_cure == cure
    cause, told_cure = await told(f"{url}?sslmode=verify-ca&sslrootcert={folder}/rubbish")
    assert cause.startswith(f'refuses (could not read root certificate file "{folder}/rubbish"')
    assert told_cure == cure


async def test_a_certificate_that_another_authority_signed(url, folder):
    (folder / "other").mkdir()
    other = Authority(folder / "other").certificate.file

    assert await told(f"{url}?sslmode=verify-ca&sslrootcert={other}") == (
        "refuses (SSL error: certificate verify failed, self-signed certificate in certificate chain)",
        "let sslrootcert name the CA that signed it",
    )


async def test_a_key_of_ours_that_others_may_read_or_that_is_missing(url, authority, folder):
    made = authority.issue("client", "DNS:postgres")
    shutil.copy(made.key, folder / "open.key")
    (folder / "open.key").chmod(0o644)
    cure = "let sslkey name a key that this user may read and nobody else, by chmod 600"

    cause, told_cure = await told(f"{url}?sslmode=require&sslcert={made.file}&sslkey={folder}/open.key")
    assert f'private key file "{folder}/open.key" has group or world access' in cause
    assert told_cure == cure
    cause, told_cure = await told(f"{url}?sslmode=require&sslcert={made.file}&sslkey={folder}/none.key")
    assert f'private key file "{folder}/none.key"' in cause
    assert told_cure == cure


async def test_a_certificate_that_has_expired(server, url, authority, folder):
    made = authority.issue("expired", "DNS:localhost", days=-1)
    shutil.copy(made.file, folder / "server.pem")
    shutil.copy(made.key, folder / "server.key")
    with psycopg.connect(server.url(), autocommit=True) as owner:
        owner.execute("SELECT pg_reload_conf()")

    assert await told(f"{url}?sslmode=verify-full&sslrootcert={authority.certificate.file}") == (
        "refuses (SSL error: certificate verify failed, certificate has expired)",
        "renew the server's certificate",
    )
