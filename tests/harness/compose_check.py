"""`make test-compose`: the compose checks; exit code 3 says that no Docker engine runs and none can be started."""

import signal
import sys
from pathlib import Path

import pytest

CHECKS = Path(__file__).parents[1] / "compose"
LONGEST_S = 2400
"""For one check with what it waits for: the first of them makes all images."""
NO_ENGINE = 3
EXIT_TERMINATED = 143
NO_ENGINE_TO_PYTEST = 33
"""What the checks tell pytest, whose own 3 means that it is broken itself."""


def main(arguments: list[str]) -> int:
    """Run them one after the other and stop at the first failure, which the others stand upon."""
    # Asked to end, it still takes down what it brought up, and puts the machine back as it was.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))
    code = int(pytest.main(["-n", "0", "--exitfirst", "-o", f"timeout={LONGEST_S}", str(CHECKS), *arguments]))
    return {NO_ENGINE_TO_PYTEST: NO_ENGINE, NO_ENGINE: 1}.get(code, code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
