"""Sends signals to a real process: the first lets the step finish, the second ends it at once."""

import os
import signal
import subprocess
import sys
import time

import pytest

from dv2_jax.telemetry.interrupt import Interrupt

PROGRAM = """
import sys, time
from dv2_jax.telemetry.interrupt import Interrupt
try:
    with Interrupt() as interrupt:
        step = 0
        while not interrupt.requested:
            step += 1
            print("step", step, flush=True)
            end = time.monotonic() + float(sys.argv[1])
            while time.monotonic() < end:
                time.sleep(0.01)
        print("saved", flush=True)
finally:
    print("cleaned up", flush=True)
"""


def start(step_s: float) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(step_s)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "step 1\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_lets_the_step_end_and_save(number):
    process = start(step_s=0.5)
    process.send_signal(number)
    out, errors = process.communicate(timeout=20)
    assert out == "saved\ncleaned up\n" and process.returncode == 0
    assert f"{signal.Signals(number).name}: this step is finished and saved first" in errors


def test_the_second_signal_stops_at_once_but_cleans_up():
    """Catches a second Ctrl-C that waits for the step, and one that leaves child processes behind."""
    process = start(step_s=15.0)
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "\n" and "SIGINT" in process.stderr.readline()
    sent = time.monotonic()
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=20)
    assert time.monotonic() - sent < 5.0
    assert out == "cleaned up\n" and "KeyboardInterrupt: second signal (SIGTERM)" in errors
    assert process.returncode != 0


def test_the_handlers_of_before_come_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.requested and interrupt.signal_name == "SIGTERM"
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
