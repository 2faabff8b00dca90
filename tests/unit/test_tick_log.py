import contextlib
import math
import os
import resource
import shutil

import pytest
from harness.tick_trace import Logged, Tick, logged
from structlog.testing import capture_logs

from services.errors import Misconfigured
from services.ledger.records import Claimed
from substations.substation import Substation
from substations.tick_log import TickLog

KWH_J = 3_600_000


def substation(epoch=1):
    one = Substation("north", 380_000, 1_500, 4, 0, 60.0, 0.0, epoch, math.inf, floor_w=1_380)
    for number, request_id in enumerate(("runs", "waits", "leaves")):
        departs_in_ms = 0 if request_id == "leaves" else None
        one.start(Claimed(request_id, 2, "north", epoch, number, 11_000, KWH_J, 0, KWH_J, departs_in_ms), 0.0)
    return one


def test_a_tick_is_logged_as_it_was_set_for_the_time_to_come(tmp_path):
    one = substation()
    log = TickLog(tmp_path / "new" / "folder")
    for now_s in (1.0, 3.0):
        one.tick(now_s)
        log.write(one)
    log.close()

    runs = Logged("runs", 2, 1_500, 11_000, KWH_J, paused=False)
    others = [
        Logged("waits", 2, 0, 11_000, KWH_J, paused=True),
        Logged("leaves", 2, 0, 0, KWH_J, paused=False),
    ]
    assert logged(tmp_path / "new" / "folder") == {
        "north-1": [
            Tick(1.0, 1_500, 4, 1_380, False, [runs, *others]),
            Tick(3.0, 1_500, 4, 1_380, False, [runs._replace(owed_j=KWH_J - 1_500 * 60 * 2), *others]),
        ]
    }


def test_each_epoch_has_a_file_of_its_own_and_each_line_is_there_at_once(tmp_path):
    for epoch in (1, 2):
        one = substation(epoch)
        log = TickLog(tmp_path)
        one.tick(1.0)
        log.write(one)
        assert len(logged(tmp_path)[f"north-{epoch}"]) == 1
        log.close()


def test_a_file_that_is_long_enough_is_followed_by_the_next_and_no_tick_is_lost(tmp_path):
    one, log = substation(), TickLog(tmp_path, segment_bytes=500)
    for now_s in range(1, 8):
        one.tick(float(now_s))
        log.write(one)
    log.close()

    assert {path.name for path in tmp_path.iterdir()} == {
        f"north-1-{os.getpid()}-{number}.jsonl" for number in range(3)
    }
    assert [tick.at_s for tick in logged(tmp_path)["north-1"]] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]


def test_a_folder_that_cannot_be_used_is_named_with_its_setting(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(Misconfigured, match=r"^EVENLOAD_SUBSTATION_TICK_LOG: .*file.* cannot be used"):
        TickLog(tmp_path / "file")


@contextlib.contextmanager
def room_for(most_bytes):
    """No file of this process may grow beyond it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_ticks_that_a_full_disk_has_no_room_for_are_left_out_whole_and_it_is_said_once(tmp_path):
    one = substation()
    log = TickLog(tmp_path)
    with capture_logs() as said:
        for now_s in range(1, 8):
            one.tick(float(now_s))
            if 3 <= now_s <= 5:
                with room_for((tmp_path / f"north-1-{os.getpid()}-0.jsonl").stat().st_size + 20):
                    log.write(one)
            else:
                log.write(one)
    log.close()

    assert [tick.at_s for tick in logged(tmp_path)["north-1"]] == [1.0, 2.0, 6.0, 7.0]
    assert [line["event"] for line in said] == ["tick_log_interrupted", "tick_log_resumed"]
    assert said[0]["substation"] == "north"


def test_a_new_tenure_whose_file_cannot_be_opened_ends_nobody(tmp_path):
    folder = tmp_path / "ticks"
    log = TickLog(folder)
    log.write(substation())
    shutil.rmtree(folder)

    log.write(substation(epoch=2))
    folder.mkdir()
    log.write(substation(epoch=2))
    log.close()

    assert len(logged(folder)["north-2"]) == 1
