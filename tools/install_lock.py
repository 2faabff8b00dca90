"""Installs a lock into an environment: `python tools/install_lock.py .venv requirements/runtime.txt`.

The user's variables and files of pip tell it how a package index is reached, and nothing else: whatever else they say
is meant for other projects, and would install other packages, or install them elsewhere.
"""

import os
import subprocess
import sys

from pip._internal.configuration import Configuration

REACHING_AN_INDEX = (
    *("index", "extra-index", "no-index", "find-links", "trusted-host", "no-input", "keyring-provider"),
    *("cert", "client-cert", "use-feature", "use-deprecated"),  # the last two: whose certificates are trusted
    *("proxy", "timeout", "default-timeout", "retries", "cache-dir", "no-cache-dir"),
)
"""Beginnings of the names of options."""
OPTIONS = ("--quiet", "--disable-pip-version-check", "--require-hashes")
SECTIONS = ("global", "install", ":env:")
"""Of pip's files, and what it calls its variables; the later ones have precedence."""


def read_settings() -> dict[str, str]:
    """What sets pip up here, by keys like `global.proxy` and `:env:.cert`; raises `PipError`.

    No command of pip tells it in full: `pip config get` reads a single file, and `pip config list` obeys `quiet`, and
    in new versions does not tell which file has precedence.
    """
    configuration = Configuration(isolated=False)
    configuration.load()
    found: dict[str, str] = {}
    for key, value in configuration.items():
        found |= value if isinstance(value, dict) else {key: value}  # since pip 26 by file
    return found


def install(venv: str, lock: str) -> str:
    """Install; returns why that failed, else nothing."""
    try:
        settings = read_settings()
    except Exception as error:
        return f"pip's settings cannot be read ({' '.join(str(error).split())}): correct them"
    kept = {
        key: settings[key]
        for section in SECTIONS
        for key in sorted(settings)
        if key.rpartition(".")[0] == section and key.rpartition(".")[2].startswith(REACHING_AN_INDEX) and settings[key]
    }
    told = {f"PIP_{key.rpartition('.')[2].upper().replace('-', '_')}": value for key, value in kept.items()}
    foreign = [name for name in os.environ if name.startswith("PIP_") or name == "SSLKEYLOGFILE"]
    others = {name: value for name, value in os.environ.items() if name not in foreign}
    done = subprocess.run(  # noqa: S603 (our own arguments)
        [sys.executable, "-m", "pip", "--python", f"{venv}/bin/python", "install", *OPTIONS, "-r", lock],
        env=others | told | {"PIP_CONFIG_FILE": os.devnull},
        check=False,
    )
    if done.returncode == 0:
        return ""
    return (
        f"installing {lock} failed (see above; pip is set up by: {', '.join(kept) or 'nothing'}): "
        "the Python package index must be reachable, or pip's cache filled"
    )


def main() -> None:
    """Install what is named on the command line; exits with 2 where that fails."""
    _, venv, lock = sys.argv
    print(f"installing {lock}", flush=True)  # noqa: T201
    if fault := install(venv, lock):
        print(fault, file=sys.stderr)  # noqa: T201
        sys.exit(2)


if __name__ == "__main__":
    main()
