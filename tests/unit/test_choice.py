"""The choice of a process without an id, look by look on its own clock."""

from dataclasses import replace

import pytest

from services.grid import load_grid
from services.ledger.leases import Lease
from substations.choice import Chooser, Standing

LEASE_S, SILENCE_S, BEAT_S, LOOK_S = 5.0, 6.0, 1.0, 0.25
GRID = ["north", "east", "south", "west"]
DEFAULT = load_grid("default")
NEVER = float("inf")


class World:
    """Leases whose holders beat every second until they die, and a process that looks at them four times a second."""

    def __init__(self, *held, dies_at_s=None):
        self.now_s = 1_000.0
        self.leases = {one: Lease(one, 3, 7, f"holder of {one}", is_released=False) for one in held}
        self.dies_at_s = dict.fromkeys(held, NEVER) | (dies_at_s or {})
        self._began_s = self.now_s
        self.chooser = Chooser(DEFAULT, lease_s=LEASE_S, heartbeat_s=BEAT_S)

    def look(self, after_s=LOOK_S):
        self.now_s += after_s
        age_s = self.now_s - self._began_s
        for one, lease in self.leases.items():
            if not lease.is_free:
                beats = int(min(age_s, self.dies_at_s.get(one, NEVER)) / BEAT_S)
                self.leases[one] = replace(lease, renewals=7 + beats)
        return self.chooser.choose(list(self.leases.values()), self.now_s)

    def until_free(self, within_s=20.0):
        """The choice that ends the search, and after how long [s]."""
        began_s = self.now_s
        while not (choice := self.look()).standing.is_free:
            assert self.now_s - began_s < within_s, choice
        return choice.substation, choice.standing, self.now_s - began_s

    def change(self, one, **changes):
        self.leases[one] = replace(self.leases[one], **changes)


def test_the_first_process_of_all_takes_the_first_of_the_grid_file_at_once():
    assert World().until_free() == ("north", Standing.NEW, LOOK_S)


def test_one_that_is_alive_is_passed_by_as_soon_as_it_was_seen_to_beat():
    taken, standing, after_s = World("north").until_free()

    assert (taken, standing) == ("east", Standing.NEW)
    assert after_s <= BEAT_S + LOOK_S


@pytest.mark.parametrize(
    ("changes", "standing"), [({"is_released": True}, Standing.LEFT), ({"holder": None}, Standing.LOST)]
)
def test_one_that_its_holder_left_or_lost_is_taken_at_once(changes, standing):
    world = World(*GRID)
    world.change("north", **changes)

    assert world.until_free() == ("north", standing, LOOK_S)


def test_one_that_is_silent_is_taken_after_lease_and_margin_and_not_before():
    world = World(*GRID, dies_at_s={"north": 0})

    taken, standing, after_s = world.until_free()

    assert (taken, standing) == ("north", Standing.SILENT)
    assert after_s == pytest.approx(SILENCE_S + LOOK_S)


def test_nothing_further_down_is_taken_before_one_is_decided():
    world = World("north", dies_at_s={"north": 0})  # nobody ever held the others

    assert world.until_free()[:2] == ("north", Standing.SILENT)


def test_an_extra_one_is_registered_only_when_all_are_seen_alive():
    world = World(*GRID)

    taken, standing, after_s = world.until_free()

    assert (taken, standing) == ("extra-1", Standing.EXTRA)
    assert after_s <= BEAT_S + LOOK_S


def test_no_extra_one_while_the_last_of_the_list_may_be_dead():
    world = World(*GRID, dies_at_s={"west": 0})

    assert world.until_free()[:2] == ("west", Standing.SILENT)


def test_who_falls_silent_after_it_was_seen_alive_is_waited_for_again():
    world = World(*GRID, dies_at_s={"north": 3.0, "west": 0})  # west's silence is over while north's goes on

    taken, standing, after_s = world.until_free()

    assert (taken, standing) == ("north", Standing.SILENT)
    assert after_s == pytest.approx(3.0 + SILENCE_S)


def test_who_takes_one_before_its_eyes_is_alive():
    world = World()
    assert world.look().substation == "north"
    world.leases["north"] = Lease("north", 1, 0, "somebody faster", is_released=False)

    choice = world.look()

    assert (choice.substation, choice.standing) == ("east", Standing.NEW)


def test_extras_count_on_by_number_and_one_that_was_left_is_taken_again():
    world = World(*GRID, *(f"extra-{number}" for number in range(1, 12)), "extra-0", "extra-x", "elsewhere")
    assert world.until_free()[:2] == ("extra-12", Standing.EXTRA)

    world.change("extra-10", is_released=True)
    world.change("extra-2", is_released=True)
    assert world.look().substation == "extra-2"


def test_the_number_of_a_gap_is_used_first():
    assert World(*GRID, "extra-2").until_free()[0] == "extra-1"


def test_what_is_in_neither_grid_file_nor_extra_is_left_alone():
    world = World(*GRID, "elsewhere")
    world.change("elsewhere", is_released=True)

    assert world.until_free()[0] == "extra-1"


def test_an_observer_that_did_not_look_begins_anew():
    world = World(*GRID)
    while world.chooser.choose(list(world.leases.values()), world.now_s).standing is not Standing.EXTRA:
        world.look()
    world.dies_at_s["north"] = world.now_s - 1_000.0  # it dies while nobody looks

    choice = world.look(after_s=60.0)

    assert (choice.substation, choice.standing) == ("north", Standing.UNDECIDED)
    assert world.until_free()[:2] == ("north", Standing.SILENT)


def test_it_waits_as_heir_for_all_that_missed_a_beat_and_for_nobody_alive():
    world = World(*GRID, dies_at_s={"north": 0, "south": 0})
    heirs = [(world.now_s - 1_000.0, world.look().heir_of) for _ in range(20)]

    assert {one for at_s, one in heirs if at_s < 1.5 * BEAT_S} == {()}
    assert {one for at_s, one in heirs if at_s > 2 * BEAT_S} == {("north", "south")}


def test_who_comes_later_is_noted_in_place_of_who_came_before():
    world = World(*GRID, dies_at_s={"north": 0})
    world.change("north", heir="who came before")

    assert ("north",) in [world.look().heir_of for _ in range(20)]


def test_who_was_noted_is_noted_again_where_nobody_is_any_more():
    world = World(*GRID, dies_at_s={"north": 0})
    assert any(world.look().heir_of for _ in range(20))
    world.change("north", heir=None)

    assert world.look().heir_of == ("north",)


def test_an_heir_that_is_noted_is_not_noted_again():
    world = World(*GRID, dies_at_s={"north": 0})
    assert any(world.look().heir_of for _ in range(20))
    world.change("north", heir="another, who came later")

    choice = world.look()

    assert (choice.substation, choice.standing, choice.heir_of) == ("north", Standing.UNDECIDED, ())
