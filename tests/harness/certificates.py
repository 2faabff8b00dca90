"""Certificates of an authority of the tests' own, made by `openssl`."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from services.local.folders import cache_dir
from services.local.packages import PackageSet, copy_dir, libraries, obtain
from services.settings import LocalSettings

MADE_WITHIN_S = 60
CONFIGURATION = """
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[other]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid:always
subjectAltName = {names}
"""
PACKAGES = PackageSet(
    title="OpenSSL",
    package="openssl",
    cures="install OpenSSL (Debian: apt install openssl)",
    own_copies=("openssl",),
    is_wanted=lambda name: name.startswith(("openssl", "libssl")),
)


@dataclass(frozen=True)
class Certificate:
    """The files of a certificate and its key, in PEM."""

    file: Path
    key: Path


class Authority:
    """Signs certificates, which it keeps in a folder."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder = folder
        self._program, self._environment = _find_openssl()
        self.certificate = self._named(name)
        self._run("req", "-x509", "-days", 2, "-extensions", "authority", *self._new_key(name, self.certificate.file))

    def issue(self, name: str, *names: str, days: int = 2) -> Certificate:
        """A certificate for these names, each like `DNS:localhost` or `IP:127.0.0.1`; below 0 `days` it has expired."""
        made, asked = self._named(name), self._folder / f"{name}.csr"
        self._run("req", *self._new_key(name, asked, *names))
        signer = ("-CA", self.certificate.file, "-CAkey", self.certificate.key, "-CAcreateserial")
        extensions = ("-extfile", self._folder / f"{name}.cnf", "-extensions", "other")
        self._run("x509", "-req", "-in", asked, "-days", days, *signer, *extensions, "-out", made.file)
        return made

    def lock(self, key: Path, locked: Path) -> None:
        """Write a key once more, locked with a passphrase."""
        self._run("ec", "-in", key, "-out", locked, "-aes128", "-passout", "pass:secret")

    def _named(self, name: str) -> Certificate:
        return Certificate(self._folder / f"{name}.pem", self._folder / f"{name}.key")

    def _new_key(self, name: str, out: Path, *names: str) -> tuple[object, ...]:
        """Options with which `openssl req` makes a key, and writes what it is asked for to `out`."""
        configuration = self._folder / f"{name}.cnf"
        configuration.write_text(CONFIGURATION.format(names=",".join(names) or "DNS:none"))
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", self._named(name).key)
        return (*key, "-config", configuration, "-subj", f"/CN={name}", "-out", out)

    def _run(self, *arguments: object) -> None:
        command = [self._program, *map(str, arguments)]
        subprocess.run(command, env=self._environment, check=True, capture_output=True, timeout=MADE_WITHIN_S)


def _find_openssl() -> tuple[str, dict[str, str]]:
    installed = shutil.which("openssl")
    if installed is not None:
        return installed, {}
    copy = copy_dir(cache_dir(LocalSettings()), "openssl")
    return str(obtain(PACKAGES, copy, _in, print, {})), {"LD_LIBRARY_PATH": libraries(copy)}


def _in(root: Path) -> Path | None:
    program = root / "usr/bin/openssl"
    return program if program.exists() else None
