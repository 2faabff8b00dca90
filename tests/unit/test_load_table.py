from dataclasses import dataclass, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from balancer.load_table import LoadTable
from balancer.readings import Reading
from services.ledger.records import Known, Unseen

ZONES = {"a": None, "b": None}


def reading(substation="a", *, epoch=1, sequence=1, **changes):
    kept = Reading(
        substation=substation,
        epoch=epoch,
        sequence=sequence,
        power_w=90_000.0,
        demand_w=100_000.0,
        limit_w=304_000.0,
        floor_w=1_380.0,
        sessions=10,
        connectors=40,
        bays=10,
        claims_total=12,
        ends_total=2,
        operative=True,
        taken_at_s=100.0,
    )
    return replace(kept, **changes)


def unseen(request_id="r", attempt=1, substation="a", power_w=11_000, sign=1):
    return Unseen(request_id, attempt, substation, power_w, sign)


def table_of(*readings, told=(), zones=ZONES):
    table = LoadTable()
    table.refresh({one.substation: one for one in readings}, zones, told, table.version)
    return table


def seen(table, substation="a", now_s=100.0):
    return table.estimate(substation, now_s, 3.0)


def load(table, substation="a"):
    one = seen(table, substation)
    return one.demand_w, one.taken, one.in_flight


def test_an_estimate_is_the_reading_where_nothing_is_in_flight():
    one = seen(table_of(reading()))

    assert (one.demand_w, one.limit_w, one.scraped_w) == (100_000, 304_000, 90_000)
    assert (one.sessions, one.connectors, one.in_flight) == (10, 40, 0)
    assert one.utilisation == pytest.approx(100 / 304)


def test_what_the_ledger_tells_comes_on_top_of_the_reading():
    table = table_of(reading(), told=[unseen("r1"), unseen("r2", power_w=22_000), unseen("r3", substation="b")])

    assert load(table) == (133_000, 12, 2)


def test_ended_rows_are_subtracted():
    table = table_of(reading(), told=[unseen("r1", sign=-1), unseen("r2", sign=-1), unseen("r3", power_w=3_000)])

    assert load(table) == (100_000 - 22_000 + 3_000, 9, -1)


def test_an_estimate_never_falls_below_an_empty_substation():
    table = table_of(reading(demand_w=5_000.0, sessions=1), told=[unseen("r1", sign=-1), unseen("r2", sign=-1)])

    assert load(table)[:2] == (0, 0)


def test_a_reservation_counts_at_once_and_its_release_takes_it_back():
    table = table_of(reading(), reading("b"))

    table.reserve("r", 1, "a", 7_000)
    assert load(table, "a") == (107_000, 11, 1)
    assert load(table, "b") == (100_000, 10, 0)
    assert table.is_reserved("r", 1)

    table.release("r", 1)
    assert load(table, "a") == (100_000, 10, 0)
    assert not table.is_reserved("r", 1)


def test_the_same_request_at_another_attempt_is_another_reservation():
    table = table_of(reading())
    table.reserve("r", 1, "a", 7_000)

    assert not table.is_reserved("r", 2)
    table.release("r", 2)
    assert load(table)[2] == 1


def test_a_row_of_the_ledger_and_the_reservation_that_became_it_count_once():
    table = table_of(reading())
    table.reserve("r", 1, "a", 11_000)

    table.refresh({}, ZONES, [unseen("r", 1)], table.version)

    assert load(table) == (111_000, 11, 1)


def test_an_uncommitted_reservation_survives_a_refresh_that_does_not_know_it():
    table = table_of(reading())
    table.reserve("r", 1, "a", 11_000)

    table.refresh({}, ZONES, [], table.version)

    assert load(table) == (111_000, 11, 1)
    assert table.is_reserved("r", 1)


def test_a_reservation_committed_before_the_ledger_was_asked_gives_way_to_its_answer():
    table = table_of(reading())
    table.reserve("r", 1, "a", 11_000)
    table.commit("r", 1)

    table.refresh({}, ZONES, [], table.version)

    assert load(table) == (100_000, 10, 0)
    assert not table.is_reserved("r", 1)


def test_a_reservation_committed_while_the_ledger_was_being_asked_is_kept_once_more():
    table = table_of(reading())
    table.reserve("r", 1, "a", 11_000)
    since = table.version
    table.commit("r", 1)

    table.refresh({}, ZONES, [], since)
    assert load(table) == (111_000, 11, 1)

    table.refresh({}, ZONES, [], table.version)
    assert load(table) == (100_000, 10, 0)


def test_releasing_what_was_committed_and_then_given_back_takes_it_out_even_if_the_ledger_had_told_it():
    table = table_of(reading())
    table.reserve("r", 1, "a", 11_000)
    since = table.version
    table.commit("r", 1)
    table.refresh({}, ZONES, [unseen("r", 1)], since)

    table.release("r", 1)

    assert load(table) == (100_000, 10, 0)


def test_releasing_a_lost_race_leaves_the_winners_end_subtracted():
    table = table_of(reading())
    table.reserve("r", 1, "a", 11_000)
    table.refresh({}, ZONES, [unseen("r", 1, sign=-1)], table.version)

    table.release("r", 1)

    assert load(table) == (89_000, 9, -1)


def test_committing_or_releasing_a_stranger_changes_nothing():
    table = table_of(reading(), told=[unseen("r", 1)])

    table.commit("r", 1)
    table.release("r", 1)
    table.release("nobody", 1)

    assert load(table) == (111_000, 11, 1)


@pytest.mark.parametrize(
    ("epoch", "sequence", "is_taken"), [(1, 6, True), (2, 1, True), (1, 5, False), (1, 4, False), (0, 9, False)]
)
def test_only_a_snapshot_of_a_newer_epoch_or_sequence_replaces_a_reading(epoch, sequence, is_taken):
    table = table_of(reading(sequence=5))

    table.refresh({"a": reading(epoch=epoch, sequence=sequence, demand_w=1.0)}, ZONES, [], table.version)

    assert seen(table).demand_w == (1.0 if is_taken else 100_000)


def test_the_ledger_is_asked_about_the_newest_reading_of_each_substation():
    table = table_of(reading("a", sequence=5, claims_total=50, ends_total=4), reading("b", claims_total=7))

    known = table.known(
        {
            "a": reading("a", sequence=4, claims_total=40),
            "b": reading("b", epoch=2, sequence=1, claims_total=0, ends_total=0),
            "c": reading("c", claims_total=3, ends_total=1),
        }
    )

    assert sorted(known, key=lambda one: one.substation) == [
        Known("a", 1, 50, 4),
        Known("b", 2, 0, 0),
        Known("c", 1, 3, 1),
    ]


def test_a_substation_that_left_the_registry_leaves_the_table():
    table = table_of(reading("a"), reading("b"))
    table.reserve("r", 1, "b", 11_000)

    table.refresh({}, {"a": "west"}, [unseen("q", substation="b")], table.version)

    assert [one.substation for one in table.estimates(100.0, 3.0)] == ["a"]
    assert seen(table).zone == "west"
    with pytest.raises(KeyError):
        seen(table, "b")
    table.release("r", 1)


def test_a_substation_without_a_reading_is_not_in_the_table_and_can_still_be_reserved():
    table = table_of(reading("a"))

    table.reserve("r", 1, "b", 11_000)
    assert [one.substation for one in table.estimates(100.0, 3.0)] == ["a"]

    table.refresh({"b": reading("b")}, ZONES, [], table.version)
    assert load(table, "b") == (111_000, 11, 1)


def test_a_reading_is_fresh_up_to_the_given_age():
    table = table_of(reading(taken_at_s=100.0))

    assert [seen(table, now_s=now_s).fresh for now_s in (100.0, 103.0, 103.1)] == [True, True, False]
    assert seen(table, now_s=102.5).age_s == pytest.approx(2.5)
    assert seen(table, now_s=99.0).age_s == 0


def test_a_limit_of_nothing_is_full_beyond_measure():
    assert seen(table_of(reading(limit_w=0.0))).utilisation == float("inf")


SUBSTATIONS = st.sampled_from(["a", "b", "c"])
KEYS = st.tuples(st.sampled_from(["r1", "r2", "r3", "r4"]), st.integers(1, 2))
TOLD = st.lists(
    st.builds(
        lambda key, substation, power_w, sign: Unseen(*key, substation, power_w, sign),
        KEYS,
        SUBSTATIONS,
        st.integers(1, 50_000),
        st.sampled_from([1, -1]),
    ),
    max_size=6,
    unique_by=lambda one: (one.request_id, one.attempt),
)


@dataclass
class Own:
    substation: str
    power_w: int
    committed_at: int | None = None


class TableAndNaiveModel(RuleBasedStateMachine):
    """The model keeps plain lists and adds them up from scratch; the table keeps running sums."""

    def __init__(self):
        super().__init__()
        self.table = LoadTable()
        self.readings = {}
        self.told = []
        self.own = {}
        self.now = 0
        self.asked = None
        self.sequence = 0

    @rule(key=KEYS, substation=SUBSTATIONS, power_w=st.integers(1, 50_000))
    def reserve(self, key, substation, power_w):
        if self.table.is_reserved(*key) or any((one.request_id, one.attempt) == key for one in self.told):
            return  # a balancer decides once, and never on what the ledger shows as assigned
        self.now += 1
        self.table.reserve(*key, substation, power_w)
        self.own[key] = Own(substation, power_w)

    @rule(key=KEYS)
    def commit(self, key):
        self.now += 1
        self.table.commit(*key)
        if key in self.own:
            self.own[key].committed_at = self.now

    @rule(key=KEYS)
    def release(self, key):
        self.table.release(*key)
        own = self.own.pop(key, None)
        if own:
            self.told = [
                one
                for one in self.told
                if (one.request_id, one.attempt, one.substation, one.sign) != (*key, own.substation, 1)
            ]

    @rule()
    def ask_the_ledger(self):
        self.asked = (self.table.version, self.now)

    @precondition(lambda self: self.asked)
    @rule(
        told=TOLD,
        zones=st.sets(SUBSTATIONS),
        scraped=st.dictionaries(SUBSTATIONS, st.tuples(st.integers(1, 2), st.integers(1, 5), st.integers(0, 9))),
    )
    def take_the_answer(self, told, zones, scraped):
        since, asked_at = self.asked
        self.asked = None
        fresh = {
            name: reading(name, epoch=epoch, sequence=sequence, demand_w=10_000.0 * size, sessions=size)
            for name, (epoch, sequence, size) in scraped.items()
        }
        self.table.refresh(fresh, dict.fromkeys(zones), told, since)
        for name, one in fresh.items():
            kept = self.readings.get(name)
            if kept is None or (one.epoch, one.sequence) > (kept.epoch, kept.sequence):
                self.readings[name] = one
        self.readings = {name: one for name, one in self.readings.items() if name in zones}
        self.told = list(told)
        self.own = {
            key: own for key, own in self.own.items() if own.committed_at is None or own.committed_at > asked_at
        }

    @invariant()
    def every_estimate_equals_the_recomputation(self):
        estimates = {one.substation: one for one in self.table.estimates(100.0, 3.0)}
        assert estimates.keys() == self.readings.keys()
        for name, one in self.readings.items():
            told = {
                (row.request_id, row.attempt): (row.sign, row.power_w) for row in self.told if row.substation == name
            }
            own = {key: (1, mine.power_w) for key, mine in self.own.items() if mine.substation == name}
            entries = {**own, **told}.values()
            assert estimates[name].in_flight == sum(sign for sign, _ in entries)
            assert estimates[name].taken == max(0, one.sessions + sum(sign for sign, _ in entries))
            assert estimates[name].demand_w == max(0, one.demand_w + sum(sign * power for sign, power in entries))

    @invariant()
    def the_reservations_are_known(self):
        assert all(self.table.is_reserved(*key) for key in self.own)


TestTableAndNaiveModel = TableAndNaiveModel.TestCase
TestTableAndNaiveModel.settings = settings(deadline=None, max_examples=50, stateful_step_count=25)
