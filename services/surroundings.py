"""Variables that libraries obey the moment they are imported: settled before the imports of each program."""

import os
import sys
from pathlib import Path

_KEY_LOG = "SSLKEYLOGFILE"
_SHARED_METRICS = ("PROMETHEUS_MULTIPROC_DIR", "prometheus_multiproc_dir")


def settle(program: str) -> None:
    """Call it before the imports; exits with code 2 where a variable asks for what cannot be had."""
    # The metrics' library would add up what several processes count. Each of ours is scraped on its own.
    for name in _SHARED_METRICS:
        os.environ.pop(name, None)
    _refuse_key_log(program)


def _refuse_key_log(program: str) -> None:
    """Exit with code 2 where the file that SSLKEYLOGFILE names cannot be written.

    Python opens it whenever TLS is set up. A library that we import does so at once, so call it before the imports.
    """
    name = os.environ.get(_KEY_LOG)
    if not name:
        return
    try:
        Path(name).open("a").close()
    except OSError as error:
        said = f"{program}: {_KEY_LOG}: {name!a} cannot be written ({error.strerror})"
        print(f"{said}: name a file that this user may write, or unset it", file=sys.stderr)  # noqa: T201
        sys.exit(2)
