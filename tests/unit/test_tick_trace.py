"""The checker of tick logs finds each kind of breach, and nothing in a sound log."""

import pytest
from harness.tick_trace import Logged, Tick, breaches, logged, parsed

SPEED = 60

FAST = Logged("a", 1, 7_000, 11_000, 9_000_000, paused=False)
WEAK = Logged("b", 1, 1_000, 1_000, 9_000_000, paused=False)
PAUSED = Logged("c", 1, 0, 11_000, 9_000_000, paused=True)
SOUND = Tick(10.0, 8_000, 3, 1_380, False, [FAST, WEAK, PAUSED])


def doctored(number, **changes):
    sessions = list(SOUND.sessions)
    sessions[number] = sessions[number]._replace(**changes)
    return SOUND._replace(sessions=sessions)


def kinds(*ticks):
    return {line.split(" at ")[0].split(":")[0] for line in breaches(list(ticks), SPEED)}


def test_a_sound_log_has_no_breach():
    later = SOUND._replace(
        at_s=11.0,
        sessions=[
            FAST._replace(owed_j=9_000_000 - 7_000 * SPEED),
            WEAK._replace(owed_j=9_000_000 - 1_000 * SPEED),
            PAUSED,
        ],
    )

    assert breaches([SOUND, later, later._replace(at_s=12.0, sessions=[PAUSED._replace(power_w=8_000, paused=False)])],
                    SPEED) == []  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "tick"),
    [
        ("limit exceeded", SOUND._replace(limit_w=7_999)),
        ("connectors exceeded", SOUND._replace(connectors=2)),
        ("connectors exceeded", doctored(2, request_id="a")),
        ("paused with power", doctored(0, paused=True)),
        ("below the floor", doctored(0, power_w=1_379)._replace(limit_w=2_379)),
        ("below the floor", doctored(1, power_w=999)._replace(limit_w=7_999)),
        ("more than wanted", doctored(1, wanted_w=999)),
        ("idle power while a session wants more", SOUND._replace(limit_w=8_001)),
        ("idle power while a paused session could run", doctored(0, wanted_w=7_000)._replace(limit_w=9_380)),
    ],
)
def test_each_kind_of_breach_in_a_tick_is_found_and_no_other(kind, tick):
    assert kinds(tick) == {kind}


@pytest.mark.parametrize(
    "later",
    [
        SOUND._replace(at_s=10.5, sessions=[FAST._replace(owed_j=9_000_000 - 7_000 * SPEED), WEAK, PAUSED]),
        SOUND._replace(at_s=10.5, sessions=[FAST, WEAK, PAUSED._replace(owed_j=8_999_990)]),
        SOUND._replace(at_s=10.5, sessions=[FAST._replace(owed_j=9_000_001), WEAK, PAUSED]),
    ],
)
def test_more_energy_than_the_power_allowed_and_energy_that_is_taken_back_are_found(later):
    assert kinds(SOUND, later) == {"energy"}


def test_a_clock_that_runs_backwards_is_found():
    assert "clock ran backwards" in kinds(SOUND, SOUND._replace(at_s=9.9))


def test_half_a_line_at_the_end_of_a_killed_processs_log_is_left_out_and_one_in_between_is_not(tmp_path):
    line = (
        '{"at_s":1.5,"limit_w":8000,"connectors":3,"floor_w":1380,"fenced":false,'
        '"sessions":[["a",1,7000,11000,9000,false]]}\n'
    )
    (tmp_path / "north-1-71-0.jsonl").write_text(line + line[:40])

    assert logged(tmp_path) == {
        "north-1": [Tick(1.5, 8_000, 3, 1_380, False, [Logged("a", 1, 7_000, 11_000, 9_000, paused=False)])]
    }
    with pytest.raises(ValueError, match=r"line 1 column"):
        parsed(line[:40] + "\n" + line)


def test_behind_the_fence_everything_stands_still_and_power_lies_idle():
    still = SOUND._replace(fenced=True, sessions=[PAUSED, PAUSED._replace(request_id="other")])

    assert breaches([still], 60.0) == []
    assert "power behind the fence" in breaches([SOUND._replace(fenced=True)], 60.0)[0]
