"""The data files of a run: checked before anything starts, and read without the rows that cannot be used."""

import io
import json
import os
from dataclasses import replace

import pytest

from dv2_jax.config import AgentConfig, Config, ConfigError, DataConfig, RunConfig, SFTConfig, TaskConfig
from dv2_jax.data.faults import RowError
from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.recipes import checked_data
from dv2_jax.recipes.checked_data import CheckedData
from dv2_jax.recipes.rl_prompts import PromptLoader
from dv2_jax.recipes.run import Interrupted, open_run
from dv2_jax.telemetry.progress import Display
from tests.data.row_cases import rl_row, sft_row, user, write_jsonl


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def opened(tmp_path):
    """Returns a function that makes the CheckedData of a configuration, and what it prints."""

    def open_data(config, **options):
        out = io.StringIO()
        data = CheckedData(config, Tokenizer.from_package(), tmp_path / "run", Display(out), **options)
        return data, out

    return open_data


def config_of(path, **data) -> Config:
    return Config(
        agent=AgentConfig(max_total_tokens=300),
        task=TaskConfig(source=str(path), eval_size=1),
        sft=SFTConfig(data=str(path), row_tokens=300),
        data=DataConfig(**data),
    )


def asked(text, **changes) -> dict:
    return rl_row(prompt=[user(f"<image>{text}")], extra_info={}, **changes)


ROWS = [asked("a?"), asked("b?", data_source="geo"), asked("c? " * 400), asked("d?"), asked("e?")]


def test_faults_stop_a_run_at_the_start_with_all_of_them(tmp_path, opened):
    """Catches: a run that starts in spite of faults, a report without the ways out, a list that is not stored."""
    path = write_jsonl(tmp_path / "rows.jsonl", [*ROWS, asked("f?", images="a.png")])
    data, _ = opened(config_of(path))
    with pytest.raises(RowError) as caught:
        data.check_tasks()
    message = str(caught.value)
    assert "6 rows, 3 usable, 2 with faults, 1 too long" in message and "--config.data.bad_rows=skip" in message
    assert "rows.jsonl row 1 (line 2), data_source" in message and "rows.jsonl row 5 (line 6), images" in message
    stored = [json.loads(line) for line in (tmp_path / "run" / "data_faults.jsonl").read_text().splitlines()]
    assert [(fault["row"], fault["field"]) for fault in stored] == [(1, "data_source"), (2, "prompt"), (5, "images")]
    assert all(fault["problem"] and fault["fix"] and fault["file"] == str(path) for fault in stored)


def test_skip_leaves_out_the_bad_rows_and_says_so(tmp_path, opened):
    """Catches: rows dropped in silence, a good row dropped with a bad one, prompts from rows that were left out."""
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    config = config_of(path, bad_rows="skip", max_bad_fraction=0.5)
    data, out = opened(config)
    data.check_tasks()
    assert "left out: 1 row with faults (20.0%)" in out.getvalue() and "left out: 1 row of" in out.getvalue()
    assert data.rows_left_out == 2
    prompts = PromptLoader(config, data.read).take(0, 4)
    assert {question.id for question in prompts.values()} == {"rows:0", "rows:3"}  # rows:4 is held out


def test_an_evaluation_keeps_rows_that_are_too_long(tmp_path, opened):
    """Catches a score that rises because long questions are left out of the denominator."""
    path = write_jsonl(tmp_path / "rows.jsonl", [*ROWS[:1], *ROWS[2:]])
    data, out = opened(config_of(path), is_training=False)
    assert len(data.read("task.source", str(path))) == 4
    assert "kept, as wrong answers: 1 row" in out.getvalue()


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([ROWS[1], *ROWS[3:]], "33.3% of the rows have faults, more than data.max_bad_fraction = 5.0%"),
        ([ROWS[2]] * 4, "4 too long"),
        ([ROWS[1]] * 4, "no row of"),
        ([], "holds no rows"),
    ],
)
def test_a_file_of_which_too_little_is_left_stops_the_run_also_with_skip(tmp_path, opened, rows, words):
    """Catches a run on nothing: all prompts too long gave reward 0, an export and exit code 0."""
    data, _ = opened(config_of(write_jsonl(tmp_path / "rows.jsonl", rows), bad_rows="skip"))
    with pytest.raises(RowError, match=words):
        data.check_tasks()


def test_a_cut_file_is_never_used(tmp_path, opened):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS)[:-30])
    data, _ = opened(config_of(path, bad_rows="skip", max_bad_fraction=1.0))
    with pytest.raises(RowError, match="a file that cannot be read to its end is never used"):
        data.check_tasks()


def test_a_row_that_can_no_longer_be_read_after_the_check_costs_itself(tmp_path, opened, monkeypatch):
    """Catches an image that vanishes between check and reading and ends the run."""
    from tests.data.row_cases import PNG

    (tmp_path / "p.png").write_bytes(PNG)
    path = write_jsonl(tmp_path / "rows.jsonl", [asked("a?"), asked("b?", images=["p.png"]), asked("c?")])
    data, out = opened(config_of(path))
    check = data._check

    def check_and_remove(*arguments, **options):
        report = check(*arguments, **options)
        (tmp_path / "p.png").unlink()
        return report

    monkeypatch.setattr(data, "_check", check_and_remove)
    assert [question.id for question in data.read("task.source", str(path))] == ["rows:0", "rows:2"]
    assert "left out, although it passed the check" in out.getvalue() and "p.png" in out.getvalue()


def test_conversations_are_checked_and_read_alike(tmp_path, opened):
    rows = [sft_row(), sft_row(messages=[user("<image>?")]), sft_row()]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    with pytest.raises(RowError, match="no assistant message to train on"):
        opened(config_of(path))[0].read_conversations(str(path))
    data, _ = opened(config_of(path, bad_rows="skip", max_bad_fraction=0.4))
    assert [c.id for c in data.read_conversations(str(path))] == ["rows:0", "rows:2"]
    with pytest.raises(ConfigError, match="sft.data = 'none.json'"):
        data.read_conversations("none.json")


def test_an_interrupt_ends_a_check(tmp_path, opened):
    """Catches Ctrl-C without effect during the check of a large file."""
    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    data, _ = opened(config_of(path), is_interrupted=lambda: True)
    with pytest.raises(Interrupted):
        data.check_tasks()


def test_a_file_is_checked_once_for_training_and_evaluation(tmp_path, opened, monkeypatch):
    """Catches a second pass over gigabytes for the held-out rows of the same file."""
    calls = []
    original = checked_data.check_source
    monkeypatch.setattr(checked_data, "check_source", lambda *a, **k: calls.append(a) or original(*a, **k))
    path = write_jsonl(tmp_path / "rows.jsonl", [ROWS[0], *ROWS[3:]])
    config = config_of(path)
    data, _ = opened(config)
    data.check_tasks()
    PromptLoader(config, data.read)
    assert len(calls) == 1
    opened(config)[0].check_tasks()
    assert "checked before" in opened_output(opened, config)


def opened_output(opened, config) -> str:
    data, out = opened(config)
    data.check_tasks()
    return out.getvalue()


def test_a_run_is_not_continued_with_other_images(tmp_path):
    """Catches: an SFT run that is resumed after an image file was replaced, and one that is refused because it was copied."""
    from tests.data.row_cases import PNG, png

    rows = [sft_row(images=["p.png"])]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    config = replace(config_of(path), recipe="sft", run=RunConfig(name="run", root=str(tmp_path), tensorboard=False))
    image = tmp_path / "p.png"

    def start() -> int:
        with open_run(config) as run:
            return len(CheckedData.of_run(run, Tokenizer.from_package()).read_conversations(str(path)))

    image.write_bytes(PNG)
    assert start() == 1
    image.write_bytes(png((60, 40)))
    assert start() == 1  # nothing was trained yet
    (tmp_path / "run" / "evaluations").mkdir()
    (tmp_path / "run" / "evaluations" / "base.json").write_text("{}")
    os.utime(image, ns=(1, 1))
    assert start() == 1
    image.write_bytes(PNG)
    with pytest.raises(ConfigError, match=r"sft.data = .*rows.jsonl': its image files are not those"):
        start()
    image.write_bytes(png((60, 40)))
    assert start() == 1


HOSTS = """
import json, sys, io
from pathlib import Path
from dv2_jax.parallel import distributed
distributed.initialize()
from tests.recipes.test_checked_data import config_of
from dv2_jax.data.tokenizer import Tokenizer
from dv2_jax.recipes.checked_data import CheckedData
from dv2_jax.telemetry.progress import Display
root = Path({root!r})
found = []
for name in ("same", "different", "vanished"):
    host = distributed.process_index()
    path = root / (name if name == "same" else f"{{name}}{{host}}") / "rows.jsonl"
    data = CheckedData(config_of(path, bad_rows="skip", max_bad_fraction=0.5), Tokenizer.from_package(),
                       root / "run", Display(io.StringIO()))
    try:
        if name == "vanished":
            check = data._check
            def check_and_remove(*a, **k):
                report = check(*a, **k)
                if host == 1:
                    (path.parent / "p.png").unlink()
                return report
            data._check = check_and_remove
        found.append([q.id for q in data.read("task.source", str(path))])
    except Exception as error:
        found.append(f"{{type(error).__name__}}: {{error}}")
print(json.dumps(found))
"""


@pytest.mark.slow
def test_hosts_leave_out_the_same_rows_or_stop_together(tmp_path, two_processes):
    """Catches: a deadlock after a fault on one host; hosts whose prompts have different indices."""
    from tests.data.row_cases import PNG

    for name, rows in {
        "same": ROWS,
        "different0": ROWS,
        "different1": ROWS[:4],
        "vanished0": [asked("a?"), asked("b?", images=["p.png"]), asked("c?")],
        "vanished1": [asked("a?"), asked("b?", images=["p.png"]), asked("c?")],
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "p.png").write_bytes(PNG)
        write_jsonl(tmp_path / name / "rows.jsonl", rows)
    first, second = two_processes(HOSTS.format(root=str(tmp_path)))
    assert first[0] == second[0] == ["rows:0", "rows:3", "rows:4"]
    assert "differs between hosts (host 0: 5 rows, 2 faults, host 1: 4 rows, 2 faults)" in first[1]
    assert first[1].split("differs")[1] == second[1].split("differs")[1]
    assert first[2] == second[2] == ["rows:0", "rows:2"]


def test_a_run_of_the_recipe_ends_before_anything_is_loaded(tmp_path, monkeypatch):
    """Catches a check that comes after the engine and the tools have started."""
    from dv2_jax.recipes import rl
    from tests.recipes.small_rl import small_config

    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    config = small_config(tmp_path)
    config = replace(config, task=TaskConfig(source=str(path), eval_size=1), run=RunConfig(root=str(tmp_path)))
    monkeypatch.setattr(rl, "open_session", lambda *a, **k: pytest.fail("the engine was started"))
    with pytest.raises(RowError, match="rows.jsonl row 1"):
        rl.run_rl(config)
