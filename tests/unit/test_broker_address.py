"""What a broker's address may say, and what is refused before anybody connects."""

import base64
import os

import pytest
from harness.certificates import Authority

from services.broker.address import OPTIONS, BrokerAddress
from services.errors import Misconfigured

PLAIN = "amqp://someone:secret@127.0.0.1:5672/evenload"
ENCRYPTED = "amqps://someone:secret@127.0.0.1:5671/evenload"
PEM = "name the authority's certificates in PEM (cadata: in DER, as base64)"


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


def refusal(url):
    with pytest.raises(Misconfigured) as told:
        BrokerAddress(url)
    said = str(told.value)
    assert "secret" not in said
    return said.removeprefix("EVENLOAD_AMQP_URL: ")


SECONDS = "a whole number of seconds from 0 to 600"
HEARTBEAT = "write for example heartbeat=10, or 0 to turn it off"


@pytest.mark.parametrize(
    ("url", "told"),
    [
        (
            f"{ENCRYPTED}?cacertfile=/ca.pem",
            "nobody reads the option 'cacertfile': did you mean certfile?",
        ),
        (f"{PLAIN}?frame_max=1", f"nobody reads the option 'frame_max': use only {', '.join(OPTIONS)}"),
        *(
            (f"{PLAIN}?heartbeat={one}", f"its heartbeat must be {SECONDS}, and is {one!r}: {HEARTBEAT}")
            for one in ("5s", "-1", "601", "70000", "1.5", "٥", "0x5", "")
        ),
        (f"{PLAIN}?heartbeat=5&heartbeat=6", "the option 'heartbeat' is given twice: keep one of them"),
        (
            f"{PLAIN}?cafile=/ca.pem",
            "the option 'cafile' is for encrypted connections only: write amqps:// instead of amqp://",
        ),
        (f"{PLAIN}?auth=kerberos", "auth=kerberos is no way to log in: use one of plain, external"),
        (
            f"{ENCRYPTED}?no_verify_ssl=false",
            "no_verify_ssl=false is neither 0 nor 1: write 0 to verify the broker's certificate, 1 not to",
        ),
        (
            f"{ENCRYPTED}?cafile=/nowhere/ca.pem",
            "cafile: /nowhere/ca.pem cannot be read (No such file or directory): name a file that this user may read",
        ),
        (f"{ENCRYPTED}?cafile=/", "cafile: / cannot be read (Is a directory): name a file that this user may read"),
        (
            f"{ENCRYPTED}?certfile=/none/own.pem",
            "certfile: /none/own.pem cannot be read (No such file or directory): name a file that this user may read",
        ),
        (
            f"{ENCRYPTED}?capath=/nowhere",
            "capath: /nowhere is no folder: name the folder that holds the authorities' certificates",
        ),
        (f"{ENCRYPTED}?cafile={os.devnull}", f"cafile: {os.devnull} holds no certificate: {PEM}"),
        (f"{ENCRYPTED}?cadata=%25", f"cadata holds no certificate: {PEM}"),
        (
            f"{ENCRYPTED}?cadata={base64.b64encode(b'none').decode().rstrip('=')}",
            f"cadata holds no certificate: {PEM}",
        ),
    ],
)
def test_an_address_that_nobody_can_use(url, told):
    assert refusal(url) == told


@pytest.mark.parametrize("name", ["cafile", "capath", "certfile", "keyfile"])
@pytest.mark.parametrize(("path", "sign"), [("~/own.pem", "~"), ("$HOME/own.pem", "$H"), ('"/etc/own.pem"', '"')])
def test_a_path_that_only_a_shell_would_change(name, path, sign):
    told = refusal(f"{ENCRYPTED}?{name}={path}")

    cure = "write the path in full, without ~, quotes, variables and backslashes"
    assert told == f"{name}: {path}: no shell reads it, so {sign!r} would become a part of a name: {cure}"


@pytest.mark.parametrize(
    ("mark", "encoding", "told"),
    [
        ("\ufeff", "utf-8", "begins with a byte order mark: save it without one"),
        ("", "utf-16", "is UTF-16, as programs on Windows may write it: save it as plain text in ASCII or UTF-8"),
    ],
)
@pytest.mark.parametrize("name", ["cafile", "certfile", "keyfile"])
def test_a_certificate_that_openssl_would_pass_over(authority, tmp_path, name, mark, encoding, told):
    file = tmp_path / "own.pem"
    file.write_bytes((mark + authority.certificate.file.read_text()).encode(encoding))

    assert refusal(f"{ENCRYPTED}?{name}={file}") == f"{name}: {file} {told}"


@pytest.mark.parametrize("encoded", ["c++ of me@corp", "c%2B%2B%20of%20me%40corp"])
def test_a_path_keeps_its_signs(authority, tmp_path, encoded):
    folder = tmp_path / "c++ of me@corp"
    folder.mkdir()
    (folder / "ca.pem").write_bytes(authority.certificate.file.read_bytes())

    assert BrokerAddress(f"{ENCRYPTED}?cafile={tmp_path}/{encoded}/ca.pem").tls is not None
    assert refusal(f"{ENCRYPTED}?cafile={tmp_path}/{encoded}/none.pem").startswith(f"cafile: {folder}/none.pem cannot ")


def test_what_is_no_address_is_told_also_where_no_settings_were_read():
    assert refusal("amqp://someone:secret[@h/v").startswith("a user, password or vhost holds a sign")
    assert refusal("amqp://someone:secret@::1/v").startswith("its host is an IPv6 address without brackets: ")


def test_a_key_without_its_certificate(authority):
    told = refusal(f"{ENCRYPTED}?keyfile={authority.certificate.key}")

    assert told == "keyfile is given without certfile: name the certificate that the key belongs to"


def test_a_key_that_belongs_to_another_certificate(authority):
    one, other = authority.issue("one"), authority.issue("other")

    told = refusal(f"{ENCRYPTED}?certfile={one.file}&keyfile={other.key}")

    cure = "name a certificate in PEM with its chain, and the key that belongs to it"
    assert told == f"certfile: {one.file} and its key cannot be used (KEY_VALUES_MISMATCH): {cure}"


def test_a_key_that_is_locked_asks_nobody(authority):
    one = authority.issue("locked")
    locked = one.key.with_suffix(".locked")
    authority.lock(one.key, locked)

    told = refusal(f"{ENCRYPTED}?certfile={one.file}&keyfile={locked}")

    assert told == f"the key in {locked} is locked with a passphrase: name one that is not"


def test_an_address_has_a_heartbeat_and_keeps_its_paths_to_itself(authority):
    address = BrokerAddress(f"{ENCRYPTED}?cafile={authority.certificate.file}")

    assert str(address.url) == f"{ENCRYPTED}?heartbeat=10"
    assert address.text == "amqps://someone:***@127.0.0.1:5671/evenload"
    assert address.tls is not None


def test_a_heartbeat_that_is_turned_off_reaches_the_library_as_that():
    assert str(BrokerAddress(f"{PLAIN}?heartbeat=0").url) == f"{PLAIN}?heartbeat=0"


def test_an_address_without_a_port_has_the_usual_one():
    assert [BrokerAddress(f"{scheme}://127.0.0.1/evenload").port for scheme in ("amqp", "amqps")] == [5672, 5671]
