"""A certificate authority of the tests' own, and what it signs, made by the openssl command."""

import subprocess
from pathlib import Path

from harness.postgres import give_to_ordinary_user


def make_authority(folder: Path) -> Path:
    """A new authority in `folder`; the file of its certificate."""
    _openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
             "-subj", "/CN=tests", "-keyout", folder / "ca.key", "-out", folder / "ca.crt")  # fmt: skip
    return folder / "ca.crt"


def sign(authority: Path, name: str, host: str, *, days: int = 2) -> tuple[Path, Path]:
    """Files of a certificate for `host` and of its key; with `days` below 0 the certificate has expired."""
    folder = authority.parent
    key, asked, certificate, extension = (folder / f"{name}.{end}" for end in ("key", "csr", "crt", "ext"))
    extension.write_text(f"subjectAltName=DNS:{host}\n")
    _openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={host}",
             "-keyout", key, "-out", asked)  # fmt: skip
    _openssl("x509", "-req", "-in", asked, "-CA", authority, "-CAkey", folder / "ca.key", "-CAcreateserial",
             "-days", days, "-extfile", extension, "-out", certificate)  # fmt: skip
    give_to_ordinary_user(key)
    key.chmod(0o600)
    return certificate, key


def _openssl(*arguments: object) -> None:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
