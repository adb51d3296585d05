"""The folder of benchmark files, and questions that are made on demand."""

from dataclasses import replace

import pytest

from dv2_jax.config import Config, ConfigError, EvalConfig
from dv2_jax.data.question import Question
from dv2_jax.evaluation.readers.locate import data_folder, find_file, find_files
from dv2_jax.evaluation.readers.questions import LazyQuestions


def config_with(folder) -> Config:
    return replace(Config(), eval=EvalConfig(data=str(folder)))


def test_data_folder_follows_the_kit(tmp_path, monkeypatch):
    monkeypatch.setenv("LMUData", str(tmp_path / "lmu"))
    assert data_folder(Config()) == tmp_path / "lmu"
    assert data_folder(config_with(tmp_path)) == tmp_path
    monkeypatch.delenv("LMUData")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_folder(Config()) == tmp_path / "LMUData"


def test_find_file_prefers_the_first_name_and_takes_local_copies(tmp_path):
    for name in ("A_local.tsv", "B.tsv", "data/test-1.parquet", "data/test-0.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    config = config_with(tmp_path)
    assert find_file(config, ["A.tsv", "B.tsv"]) == tmp_path / "A_local.tsv"
    (tmp_path / "A.tsv").touch()
    assert find_file(config, ["A.tsv", "B.tsv"]) == tmp_path / "A.tsv"
    assert find_files(config, ["C.tsv", "*/test*.parquet"]) == [tmp_path / "data" / f"test-{n}.parquet" for n in (0, 1)]


def test_find_file_says_what_the_folder_holds(tmp_path):
    with pytest.raises(ConfigError, match=r"has no A.tsv or B.tsv; it is empty"):
        find_file(config_with(tmp_path), ["A.tsv", "B.tsv"])
    for number in range(20):
        (tmp_path / f"f{number:02d}").touch()
    with pytest.raises(ConfigError, match=r"eval.data = .* has no A.tsv; it holds f00, f01, .*, f11 and 8 more"):
        find_file(config_with(tmp_path), ["A.tsv"])
    with pytest.raises(ConfigError, match=r"there is no folder .*/none; it must hold A.tsv"):
        find_file(config_with(tmp_path / "none"), ["A.tsv"])


def test_lazy_questions_make_only_what_is_asked_for():
    made = []

    def make(i: int) -> Question:
        made.append(i)
        return Question(f"q{i}", "plain", "reason", "?", (), "a")

    questions = LazyQuestions([f"q{i}" for i in range(6)], make)
    part = questions[1:6][::2]
    assert (len(questions), part.ids(), made) == (6, ["q1", "q3", "q5"], [])
    assert [question.id for question in part] == ["q1", "q3", "q5"]
    assert questions[-1].id == "q5" and made == [1, 3, 5, 5]
    with pytest.raises(IndexError):
        questions[6]
