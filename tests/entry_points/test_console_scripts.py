"""Console scripts of pyproject.toml."""

import importlib
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_console_script_names_a_function(name):
    """Catches a script whose module or function was renamed, which only a user of the installed package would see."""
    module, _, function = SCRIPTS[name].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_every_command_of_the_package_has_a_console_script():
    modules = {target.partition(":")[0] for target in SCRIPTS.values()}
    paths = [path for path in (ROOT / "dv2_jax").glob("*.py") if '__name__ == "__main__"' in path.read_text()]
    assert len(paths) >= 5 and {f"dv2_jax.{path.stem}" for path in paths} <= modules
