"""`make test-compose`: the compose checks; exit code 3 says that no Docker engine runs and none can be started."""

import sys
from pathlib import Path

import pytest

CHECKS = Path(__file__).parents[1] / "compose"
NO_ENGINE = 3
NO_ENGINE_TO_PYTEST = 33
"""What the checks tell pytest, whose own 3 means that it is broken itself."""


def main(arguments: list[str]) -> int:
    """Run them one after the other and stop at the first failure, which the others stand upon."""
    code = int(pytest.main(["-n", "0", "--exitfirst", str(CHECKS), *arguments]))
    return {NO_ENGINE_TO_PYTEST: NO_ENGINE, NO_ENGINE: 1}.get(code, code)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
