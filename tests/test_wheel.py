"""The wheel contains everything that the commands of the README need, recipe files included."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CONTENT = ("LICENSE", "README.md", "pyproject.toml", "configs", "dv2_jax", "tools_service")


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Builds the wheel from a copy of the sources and unpacks it; returns the folder to put on the path."""
    sources = tmp_path_factory.mktemp("sources")
    for name in CONTENT:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, sources / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, sources / name)
    wheels = tmp_path_factory.mktemp("wheels")
    # No build isolation and no index: the test needs no network.
    command = ["-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", wheels, sources]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (wheel,) = wheels.glob("*.whl")
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def run_module(installed: Path, module: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    """Runs `python -m module` with the unpacked wheel in front of every other copy of the package."""
    program = (
        "import runpy, sys\n"
        f"sys.path[:] = [{str(installed)!r}, *(p for p in sys.path if p not in ('', {str(ROOT)!r}))]\n"
        # An editable installation may add a finder that takes precedence over the path.
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in repr(f).lower()]\n"
        f"sys.argv = [{module!r}, *{list(arguments)!r}]\n"
        f"import dv2_jax; assert dv2_jax.__file__.startswith({str(installed)!r}), dv2_jax.__file__\n"
        f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-c", program], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("dv2_jax.train", ["--config=configs/rl.py"]),
        ("dv2_jax.train", ["--config=configs/sft.py:7b"]),
        ("dv2_jax.train", ["--config=rl"]),
        ("dv2_jax.evaluate", []),
    ],
)
def test_wheel_contains_the_recipe_files(installed, module, arguments, tmp_path):
    """Catches a `configs/` that is missing from the wheel or searched for only in a checkout."""
    done = run_module(installed, module, *arguments, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert str(installed / "dv2_jax" / "configs") in done.stdout
    assert "--config.run.name=" in done.stdout


def test_wheel_contains_the_package_data(installed):
    """Catches package data that setuptools leaves out: weights of the tiny model, report page, proto and deployment."""
    for pattern in (
        "dv2_jax/toy/assets/cold_start/model.safetensors",
        "dv2_jax/report/assets/*",
        "tools_service/proto/*.proto",
        "tools_service/deploy/Dockerfile",
    ):
        assert list(installed.glob(pattern)), pattern


def test_wheel_declares_the_console_scripts(installed):
    (metadata,) = installed.glob("dv2_jax-*.dist-info/entry_points.txt")
    assert "dv2-train = dv2_jax.train:main" in metadata.read_text()
