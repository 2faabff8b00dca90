"""The stack ends in order; the last of this folder, so that it takes nothing from the tests after it."""

import signal


def test_a_signal_takes_everything_down_and_leaves_no_process(stack):
    stack.stop(signal.SIGTERM)

    assert "everything is down" in stack.output
    assert stack.processes() == []
