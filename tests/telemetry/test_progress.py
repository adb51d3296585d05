"""People see bars on a terminal and lines in a file, with figures that read well."""

import io
import os
import pty
import re
import select

import pytest

from dv2_jax.telemetry.progress import Display, duration, format_number


@pytest.mark.parametrize(("seconds", "text"), [(4.24, "4.2 s"), (187, "3:07"), (59.96, "1:00"), (7387, "2:03:07")])
def test_durations_read_as_a_clock(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(12345, "12,345"), (0.71349, "0.713"), (1.2e-5, "1.2e-05"), (2345.6, "2,346"), ("dapo", "dapo"), (0, "0")],
)
def test_figures_keep_three_digits_and_group_thousands(value, text):
    assert format_number(value) == text


def test_a_file_gets_one_line_per_step_without_control_characters():
    stream = io.StringIO()
    display = Display(stream)
    with display.track("RL", total=12, done=2) as bar:
        bar.step({"reward": 0.6134, "tool use": "92 %", "speed, tokens/s": 1234.4})
        display.line("saved [step] 3")
    first, second = stream.getvalue().splitlines()
    assert re.fullmatch(r"RL  3/12  reward 0.613  tool use 92 %  speed 1,234 tokens/s  \d+\.\d s left", first)
    assert second == "saved [step] 3"


def test_a_long_part_tells_how_far_it_is_at_the_interval_only():
    stream = io.StringIO()
    with Display(stream, interval_s=0.0).track("cold start", total=3, unit="examples") as part:
        part.advance()
        part.advance(2)
    assert [line.split(",")[0] for line in stream.getvalue().splitlines()] == [
        "cold start: 1/3 examples",
        "cold start: 3/3 examples",
    ]
    quiet = io.StringIO()
    with Display(quiet, interval_s=60.0).track("cold start", total=3) as part:
        part.advance()
    assert quiet.getvalue() == ""


def test_time_left_counts_from_what_this_run_has_done(monkeypatch):
    """Catches a continued run that counts the earlier run's 90 steps as its own and promises the end too soon."""
    now = [100.0]
    monkeypatch.setattr("dv2_jax.telemetry.progress.time.monotonic", lambda: now[0])
    with Display(io.StringIO()).track("RL", total=100, done=90) as bar:
        assert bar.time_left() == "?"
        now[0] += 30.0
        bar.advance(1)
        assert bar.time_left() == duration(270.0)


def test_other_processes_print_nothing():
    stream = io.StringIO()
    display = Display(stream, enabled=False, interval_s=0.0)
    with display.track("RL", total=2) as bar:
        bar.step({"reward": 1.0})
    display.line("x")
    assert stream.getvalue() == ""


def test_a_terminal_gets_a_bar_and_the_step_lines_stay_above_it(monkeypatch):
    """On a real pseudo-terminal: sees a bar that is never drawn, or that overwrites the lines."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    leader, follower = pty.openpty()
    with open(follower, "w") as terminal:
        display = Display(terminal)
        assert display.interactive
        with display.track("RL", total=4, unit="steps") as bar:
            with display.track("rollout", total=8) as part:
                part.advance(8)
            bar.step({"reward": 0.5})
        terminal.flush()
        shown = b""
        while select.select([leader], [], [], 0.5)[0]:
            shown += os.read(leader, 65536)
    os.close(leader)
    text = shown.decode()
    assert "━" in text and "rollout" in text and "\x1b[" in text
    assert "RL 1/4  reward 0.5" in text
