"""Logs in segments are read whole while they grow, and only those that nobody writes any more are deleted."""

import json
import os

import pytest
from harness.chaos_segments import Segments, SegmentWriter, lines


def told(segments):
    return [(line.chain, None if line.what is None else line.what["n"]) for line in segments]


def put(folder, name, *numbers, tail=""):
    with (folder / name).open("a") as file:
        file.write("".join(f'{{"n":{n}}}\n' for n in numbers) + tail)


def test_what_was_written_is_read_once_and_in_order_across_segments(tmp_path):
    segments = Segments(tmp_path, keep=False, lives=lambda _: True)
    put(tmp_path, "north-3-71-0.jsonl", 1, 2, tail='{"n"')
    assert told(segments.new_lines()) == [("north-3-71", 1), ("north-3-71", 2)]
    put(tmp_path, "north-3-71-0.jsonl", tail=":3}\n")
    put(tmp_path, "north-3-71-1.jsonl", 4)
    assert told(segments.new_lines()) == [("north-3-71", 3), ("north-3-71", 4)]
    assert [one.name for one in tmp_path.iterdir()] == ["north-3-71-1.jsonl"], "it is being written"
    for number in range(2, 12):
        put(tmp_path, f"north-3-71-{number}.jsonl", 3 + number)
    assert told(segments.end()) == [*(("north-3-71", n) for n in range(5, 15)), ("north-3-71", None)]
    assert list(tmp_path.iterdir()) == []


def test_the_last_words_of_who_is_gone_are_read_and_nothing_more_is_awaited(tmp_path):
    alive = {71}
    segments = Segments(tmp_path, keep=False, lives=alive.__contains__)
    put(tmp_path, "north-3-71-0.jsonl", 1)
    assert told(segments.new_lines()) == [("north-3-71", 1)]
    put(tmp_path, "north-3-71-0.jsonl", 2, tail='{"n":')
    alive.clear()
    assert told(segments.new_lines()) == [("north-3-71", 2), ("north-3-71", None)]
    assert list(tmp_path.iterdir()) == []
    assert told(segments.end()) == []


def test_segments_that_are_kept_are_not_read_twice(tmp_path):
    segments = Segments(tmp_path, keep=True, lives=lambda _: False)
    put(tmp_path, "north-3-71-0.jsonl", 1)
    put(tmp_path, "north-3-71-1.jsonl", 2)
    assert told(segments.new_lines()) == [("north-3-71", 1), ("north-3-71", 2), ("north-3-71", None)]
    assert told(segments.end()) == []
    assert len(list(tmp_path.iterdir())) == 2


def test_a_writer_begins_a_new_segment_when_the_last_is_long_enough(tmp_path):
    writer = SegmentWriter(tmp_path / "new", "client-0", segment_bytes=20)
    for n in range(3):
        writer.write([{"n": n}, {"n": n}])
    writer.write([])
    chain = f"client-0-{os.getpid()}"
    assert told(Segments(tmp_path / "new", keep=False).end()) == [
        *((chain, n) for n in (0, 0, 1, 1, 2, 2)),
        (chain, None),
    ]


def test_half_a_line_in_the_middle_is_no_crash_but_a_fault(tmp_path):
    path = tmp_path / "north-3-71-0.jsonl"
    path.write_text('{"event":"st\n{"event":"stop"}\n')
    with pytest.raises(json.JSONDecodeError):
        list(lines(path))


def test_a_line_longer_than_what_is_read_at_once_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("harness.chaos_segments.CHUNK_BYTES", 7)
    put(tmp_path, "long", 1, 1_000_000_000_000, 2)
    read = list(lines(tmp_path / "long"))
    assert [one["n"] for one, _ in read] == [1, 1_000_000_000_000, 2]
    assert [one["n"] for one, _ in lines(tmp_path / "long", read[0][1])] == [1_000_000_000_000, 2]
