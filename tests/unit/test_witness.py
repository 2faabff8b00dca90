import json
import math
import os
from dataclasses import replace

import pytest

from services.errors import Misconfigured
from services.ledger.records import Claimed, Ending
from services.ledger.states import Reason, Status
from substations.substation import Substation
from substations.witness import Witness

CLAIMED = Claimed("r", 2, "north", 3, 1, 11_000, 36_000_000, 500, 36_000_000)


def substation():
    return Substation("north", 380_000, 304_000, 4, 0, 60.0, 0.0, 3, math.inf)


def lines(folder):
    return [json.loads(line) for file in sorted(folder.iterdir()) for line in file.read_text().splitlines()]


def test_a_session_is_on_disk_from_its_start_to_its_stop_with_all_of_its_energy(tmp_path):
    one, witness = substation(), Witness(tmp_path / "new")
    one.start(CLAIMED, 0.0)
    for at_s in (1.0, 2.0, 2.5):
        one.tick(at_s)
        witness.write(one)
    one.finish(Ending("r", 2, "north", 3, Status.COMPLETED, Reason.ENERGY_LIMIT_REACHED, 0), 2.5, counts=True)
    one.tick(3.0)
    witness.write(one)

    whose = {"substation": "north", "request_id": "r", "attempt": 2, "epoch": 3}
    assert lines(tmp_path / "new") == [
        {"event": "start", "at_s": 1.0, **whose},
        {"event": "energy", "from_s": 1.0, "to_s": 2.0, "energy_j": 660_000, **whose},
        {"event": "energy", "from_s": 2.0, "to_s": 2.5, "energy_j": 330_000, **whose},
        {"event": "stop", "at_s": 3.0, **whose},
    ]


def test_each_tenure_has_a_file_of_its_own(tmp_path):
    one, witness = substation(), Witness(tmp_path)
    one.start(CLAIMED, 0.0)
    one.tick(1.0)
    witness.write(one)
    one.begin(4)
    one.renew(1.0, 100.0)
    one.start(replace(CLAIMED, epoch=4), 1.0)
    one.tick(2.0)
    witness.write(one)

    assert [(line["event"], line["epoch"]) for line in lines(tmp_path)] == [("start", 3), ("start", 4), ("stop", 3)]
    assert len([*tmp_path.iterdir()]) == 2


def test_a_file_that_is_long_enough_is_followed_by_the_next_and_no_line_is_lost_or_cut(tmp_path):
    one, witness = substation(), Witness(tmp_path, segment_bytes=300)
    one.start(CLAIMED, 0.0)
    for at_s in (1.0, 2.0, 3.0, 4.0, 5.0):
        one.tick(at_s)
        witness.write(one)

    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"north-3-{os.getpid()}-{number}.jsonl" for number in range(2)]
    assert [line.get("from_s") for line in lines(tmp_path)] == [None, 1.0, 2.0, 3.0, 4.0]
    one.begin(4)
    one.renew(5.0, 100.0)
    one.start(replace(CLAIMED, epoch=4), 5.0)
    one.tick(6.0)
    witness.write(one)
    assert (tmp_path / f"north-4-{os.getpid()}-0.jsonl").exists(), "each tenure counts from 0"


def test_nothing_is_written_where_nothing_happened(tmp_path):
    one, witness = substation(), Witness(tmp_path)
    one.tick(1.0)
    witness.write(one)

    assert [*tmp_path.iterdir()] == []


def test_a_folder_that_cannot_be_used_is_refused(tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(Misconfigured, match="EVENLOAD_SUBSTATION_WITNESS"):
        Witness(tmp_path / "file")
