"""Tests that the timeline is a valid trace, also after a kill, and that its totals are correct."""

import json
import threading
import time

from dv2_jax.telemetry.spans import Spans, read_timeline


def test_spans_keep_their_lane_nesting_and_details(tmp_path):
    path = tmp_path / "timeline.json"
    with Spans(path, process=3) as spans:
        with spans.span("step", step=1):
            with spans.span("rollout", tokens=9):
                time.sleep(0.02)
        spans.add("exec", 100.0, 101.5, lane="tools", status="ok")
        spans.instant("recompiled", lane="trainer", name_of="jit(f)")
        spans.value("slots in use", 12)
    events = json.loads(path.read_text())
    lanes = {event["tid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    assert sorted(lanes.values()) == ["tools", "trainer"] and {event["pid"] for event in events} == {3}
    by_name = {event["name"]: event for event in events if event["ph"] != "M"}
    step, rollout = by_name["step"], by_name["rollout"]
    assert step["ts"] <= rollout["ts"] and rollout["ts"] + rollout["dur"] <= step["ts"] + step["dur"] + 2
    assert 20_000 <= rollout["dur"] < 2_000_000  # microseconds
    assert rollout["args"] == {"tokens": 9} and lanes[rollout["tid"]] == "trainer"
    assert by_name["exec"]["dur"] == 1_500_000 and lanes[by_name["exec"]["tid"]] == "tools"
    assert by_name["slots in use"]["args"] == {"value": 12}


def test_a_killed_trace_is_read_up_to_its_torn_end_and_continued(tmp_path):
    """Catches a continued run that appends behind half an event or behind the closing bracket: no viewer opens that."""
    path = tmp_path / "timeline.json"
    spans = Spans(path)
    spans.add("one", 0.0, 1.0)
    spans.add("two", 1.0, 2.0)
    spans.flush()
    torn = path.read_text()[:-5]
    path.write_text(torn)
    assert [event["name"] for event in read_timeline(path)] == ["thread_name", "one"]
    for name in ("three", "four"):  # the second time the file is complete
        with Spans(path) as again:
            again.add(name, 2.0, 3.0)
        assert json.loads(path.read_text()) == read_timeline(path)
    assert [event["name"] for event in read_timeline(path) if event["ph"] == "X"] == ["one", "three", "four"]


def test_totals_are_the_seconds_since_they_were_last_taken_even_without_a_file():
    spans = Spans(None)
    spans.add("tools", 0.0, 2.0)
    spans.add("tools", 5.0, 6.0)
    assert spans.take_totals() == {"tools": 3.0}
    assert spans.take_totals() == {}


def test_threads_do_not_tear_each_others_events(tmp_path):
    with Spans(tmp_path / "t.json") as spans:
        threads = [
            threading.Thread(target=lambda n=n: [spans.add(f"{n}", 0, 1, lane=f"l{n}", i=i) for i in range(200)])
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    events = json.loads((tmp_path / "t.json").read_text())
    assert sum(event["ph"] == "X" for event in events) == 800
    assert len({event["tid"] for event in events}) == 4


def test_a_block_that_raises_is_still_timed():
    spans = Spans(None)
    try:
        with spans.span("update"):
            raise ValueError
    except ValueError:
        pass
    assert "update" in spans.take_totals()
