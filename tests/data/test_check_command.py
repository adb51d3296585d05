"""The command `python -m dv2_jax.data.check`: exit codes, kinds of rows, and output for programs."""

import json

import pytest

from dv2_jax.data.check import main
from tests.data.row_cases import rl_row, sft_row, user, write_jsonl


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def check(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code


def test_a_usable_file_of_either_kind_ends_with_0(tmp_path, capsys):
    assert check(write_jsonl(tmp_path / "rl.jsonl", [rl_row()])) == 0
    assert "1 rows, 1 usable" in (shown := capsys.readouterr().out) and "rl rows, checked in" in shown
    assert check(write_jsonl(tmp_path / "sft.jsonl", [sft_row()])) == 0
    assert "sft rows, checked in" in capsys.readouterr().out
    assert check(tmp_path / "sft.jsonl") == 0
    assert "checked before" in capsys.readouterr().out
    assert check(tmp_path / "sft.jsonl", "--no-cache") == 0
    assert "checked in" in capsys.readouterr().out


def test_faults_end_with_1_and_name_row_field_and_fix(tmp_path, capsys):
    path = write_jsonl(tmp_path / "a.jsonl", [rl_row(), rl_row(images="a.png"), rl_row(data_source="geo")])
    assert check(path) == 1
    shown = capsys.readouterr().out
    assert "3 rows, 1 usable, 2 with faults" in shown
    assert f"{path} row 1 (line 2), images: is str ('a.png'), not a list. Fix: write a list" in shown
    assert check(path, "--show=1") == 1
    assert "row 2" not in (shown := capsys.readouterr().out) and "... and 1 more" in shown
    assert check(path, "--rows=1") == 0


def test_json_holds_every_fault(tmp_path, capsys):
    rows = [rl_row(data_source="geo")] * 30
    assert check(write_jsonl(tmp_path / "a.jsonl", rows), "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert document["rows"] == 30 and document["usable"] == 0 and len(document["faults"]) == 30
    assert {"file", "row", "line", "id", "field", "kind", "problem", "fix"} == document["faults"][0].keys()


def test_the_limits_are_those_of_the_configuration(tmp_path, capsys):
    path = write_jsonl(tmp_path / "a.jsonl", [rl_row(prompt=[user("<image>" + "Who? " * 100)])])
    assert check(path) == 0
    assert check(path, "--config.agent.max_total_tokens=100") == 1
    assert "agent.max_total_tokens = 100" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gone.jsonl"], "gone.jsonl: no such file"),
        (["{}", "--config.agent.max_total_token=1"], "max_total_tokens"),
        (["{}", "--config=configs/none.py"], "none.py"),
        (["{}", "--config.model.init=hf:/none"], "hf:/none"),
    ],
)
def test_a_wrong_command_line_ends_with_2_and_one_message(tmp_path, capsys, arguments, words):
    path = write_jsonl(tmp_path / "a.jsonl", [rl_row()])
    assert check(*(argument.format(path) for argument in arguments)) == 2
    assert words in capsys.readouterr().err


def test_an_unreadable_file_ends_with_1(tmp_path, capsys):
    (tmp_path / "a.json").write_bytes(b"\xff\xfe[\x00]\x00")
    assert check(tmp_path / "a.json") == 1
    assert "UTF-16" in capsys.readouterr().out
