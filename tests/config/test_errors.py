"""Tests of the one-line errors that commands end with."""

import errno
import os

import pytest

from dv2_jax.config import ConfigError, RunFailure, one_line_errors


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ConfigError("rl.steps = -1: use 1"), 2, "error: rl.steps = -1: use 1\n"),
        (RunFailure("the disk is full"), 1, "error: the disk is full\n"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a.png"), 2, "error: a.png: No such file"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), 2, "error: No space left on device"),
        (ImportError("pip install 'dv2_jax[tpu]'"), 2, "error: pip install 'dv2_jax[tpu]'"),
    ],
)
def test_one_line_errors__prints_one_line_and_exits(error, code, text, capsys, monkeypatch):
    """Catches: a traceback for a foreseeable error, an exit code of 0, a file name that is lost."""
    monkeypatch.delenv("DV2_TRACEBACK", raising=False)
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise error
    printed = capsys.readouterr()
    assert ended.value.code == code and printed.out == ""
    assert printed.err.startswith(text) and printed.err.count("\n") == 1


def test_one_line_errors__keeps_the_traceback_of_a_defect_and_on_request(monkeypatch):
    """Catches: a defect of the program that is reported as if it were the user's, or a traceback that cannot be had."""
    with pytest.raises(ZeroDivisionError), one_line_errors():
        raise ZeroDivisionError
    monkeypatch.setenv("DV2_TRACEBACK", "1")
    with pytest.raises(ConfigError), one_line_errors():
        raise ConfigError("x")
