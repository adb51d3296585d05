"""A service that cannot start says why, in one line."""

from __future__ import annotations

import pytest

from tools_service.client import start_local_service
from tools_service.common.extras import needs_extra


@pytest.mark.parametrize("kind", ["text_index", "image_index"])
def test_start__an_index_that_is_missing_is_the_only_error(tmp_path, kind):
    """Catches: the sandbox that starts meanwhile and whose cancellation is logged as a second error with a traceback."""
    arguments = ["--packages", "numpy,pillow"]
    with pytest.raises(RuntimeError) as error:
        start_local_service(**{kind: tmp_path / "missing"}, log_path=tmp_path / "log.txt", extra_args=arguments)
    log = (tmp_path / "log.txt").read_text()
    assert log.startswith("error: ") and str(tmp_path / "missing") in log and log.count("\n") == 1, log
    assert log.strip() in str(error.value)


def test_needs_extra__names_the_command_that_installs_a_missing_library():
    message = r"an index needs no_such_module, which is not installed: pip install 'dv2-tools-service\[images\]'"
    with pytest.raises(ValueError, match=message), needs_extra("images", "an index"):
        import no_such_module  # noqa: F401


def test_needs_extra__other_errors_pass_through():
    """Catches: an installed library with an error of its own that is reported as not installed."""
    with pytest.raises(ImportError, match="broken"), needs_extra("images", "an index"):
        raise ImportError("broken")
