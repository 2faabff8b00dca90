"""What one process witnessed is judged tick by tick, and pieces that follow each other become one."""

import pytest
from harness.chaos_records import Busy, Holder, Piece, Start
from harness.chaos_ticks import Site, Tenure

NORTH = Holder("north", 3, "71")
SITE = Site(limit_w=20_000, connectors=2)


class Read:
    def __init__(self):
        self.records = []
        self.found = []
        self.tenure = Tenure(NORTH, SITE, 600.0, self, self.found.append)

    def add(self, record):
        self.records.append(record)

    def take(self, event, request_id="a", **what):
        self.tenure.take({"event": event, "request_id": request_id, "attempt": 1, **what})

    def energy(self, request_id, from_s, to_s, energy_j):
        self.take("energy", request_id, from_s=from_s, to_s=to_s, energy_j=energy_j)

    def kinds(self):
        return [one.kind for one in self.found]


def test_pieces_without_a_gap_become_one_and_a_pause_parts_them():
    read = Read()
    read.take("start", at_s=1.0)
    for from_s in (1.0, 2.0, 4.0):
        read.energy("a", from_s, from_s + 1, 5)
    read.take("stop", at_s=5.0)
    read.tenure.end()
    assert read.records == [
        Start("a", 1, NORTH, 1.0), Piece("a", 1, NORTH, 1.0, 3.0, 10), Piece("a", 1, NORTH, 4.0, 5.0, 5),
        Busy(NORTH, 1.0, 3.0), Busy(NORTH, 4.0, 5.0),
    ]  # fmt: skip
    assert (read.kinds(), read.tenure.held) == ([], 0)


def test_a_session_of_a_killed_writer_is_whole_once_nothing_more_will_come():
    read = Read()
    read.energy("a", 1.0, 2.0, 5)
    assert read.records == []
    read.tenure.end()
    assert read.records == [Piece("a", 1, NORTH, 1.0, 2.0, 5), Busy(NORTH, 1.0, 2.0)]


@pytest.mark.parametrize(("more_j", "kinds"), [(0, []), (4, ["limit exceeded"])])
def test_a_tick_above_the_limit_is_found_to_the_joule(more_j, kinds):
    """Each of two sessions may bring a fraction of a joule from the tick before, and rounding one more."""
    read = Read()
    read.energy("a", 1.0, 1.1, 600_000)
    read.energy("b", 1.0, 1.1, 600_000 + more_j)
    assert read.kinds() == [], "the tick may go on in the next segment"
    read.energy("a", 1.1, 1.2, 1)
    assert read.kinds() == kinds
    read.tenure.end()
    assert read.kinds() == kinds


def test_more_sessions_than_connectors_are_found():
    read = Read()
    for request_id in ("a", "b", "c"):
        read.energy(request_id, 1.0, 1.1, 1)
    read.tenure.end()
    assert read.kinds() == ["connectors exceeded"]
