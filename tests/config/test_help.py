"""`--help` and one-line errors of every command."""

import subprocess
import sys
import textwrap

import pytest

PROBE = textwrap.dedent("""
    import runpy, sys
    verb, *arguments = sys.argv[1:]
    sys.argv = [verb, *arguments]
    code = 0
    try:
        runpy.run_module(verb, run_name="__main__", alter_sys=True)
    except SystemExit as exit:
        code = exit.code
    heavy = {"jax", "flax", "torch", "orbax", "grpc"} & set(sys.modules)
    print("loaded:", sorted(heavy))
    raise SystemExit(code)
""")


def _call(verb: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", PROBE, verb, *arguments], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("verb", ["dv2_jax.evaluate", "dv2_jax.export", "dv2_jax.chat", "dv2_jax.report"])
def test_help_is_quick_complete_and_loads_nothing_heavy(verb):
    done = _call(verb, "--help")
    assert done.returncode == 0, done.stderr
    assert f"python -m {verb}" in done.stdout
    assert "loaded: []" in done.stdout


@pytest.mark.parametrize(
    ("verb", "arguments", "message"),
    [
        ("dv2_jax.export", ["--checkpoint=/missing", "--output=out"], "/missing"),
        ("dv2_jax.export", ["--checkpoint=package:bse", "--output=out"], "there are base, cold_start, smol"),
        ("dv2_jax.evaluate", ["--config.task.eval_sise=3"], "eval_size"),
        ("dv2_jax.evaluate", ["--config.eval.baselines=gessing"], "guessing, no_tools"),
        ("dv2_jax.evaluate", ["--config.task.source=/missing.parquet"], "/missing.parquet"),
        ("dv2_jax.chat", ["--image=/missing.png", "--question=x"], "/missing.png"),
        ("dv2_jax.chat", ["--config.sampling.temprature=1"], "temperature"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(verb, arguments, message, tmp_path):
    done = _call(verb, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert "Traceback" not in done.stderr


def test_report_of_a_directory_that_is_not_there_says_so(tmp_path):
    done = _call("dv2_jax.report", str(tmp_path / "missing"))
    assert done.returncode == 2 and "no such run directory" in done.stderr and "Traceback" not in done.stderr
