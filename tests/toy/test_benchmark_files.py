"""Small benchmark files: the readers of the published formats read them back, and they can be answered."""

import hashlib
import re
import subprocess
import sys
from dataclasses import replace

import pandas
import pytest

from dv2_jax.config import Config, EvalConfig, RewardConfig
from dv2_jax.data.images import load_image
from dv2_jax.evaluation.benchmarks.benchmark import BenchmarkAnswer
from dv2_jax.evaluation.benchmarks.benchmark_registry import BENCHMARKS
from dv2_jax.evaluation.benchmarks.mmsearch import MMSearch
from dv2_jax.evaluation.benchmarks.mmsearch_r1_benchmark import FVQA
from dv2_jax.evaluation.benchmarks.realx import RealX
from dv2_jax.evaluation.benchmarks.tir import TIRBench
from dv2_jax.evaluation.readers.tsv_file import TsvFile
from dv2_jax.evaluation.released_search_cache import read_released_cache
from dv2_jax.rollout.question_sources import read_rows
from dv2_jax.toy.benchmark_files.file_set import write_benchmark_files
from dv2_jax.toy.benchmark_files.items import SPLIT, random_stream
from dv2_jax.toy.tasks import lookup

ROWS = 9
TSV = {"VStarBench": ROWS, "HRBench4K": 12, "ChartQA_TEST": ROWS, "MathVista_MINI": ROWS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmark_files")
    write_benchmark_files(folder, ROWS)
    return folder


def digests(folder) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def load(benchmark, folder):
    return benchmark.load(replace(Config(), eval=EvalConfig(data=str(folder))), read_rows)


def test_equal_seeds_give_equal_files_in_another_process(folder, tmp_path):
    """Catches a hash that differs between processes, or the time in a file."""
    command = [sys.executable, "-m", "dv2_jax.toy.benchmark_files", str(tmp_path), "--rows", str(ROWS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert digests(tmp_path) == digests(folder)
    assert len(done.stdout.splitlines()) == 9
    write_benchmark_files(tmp_path, ROWS, seed=2)
    assert not set(digests(tmp_path).values()) & set(digests(folder).values())


@pytest.mark.parametrize("name", TSV)
def test_tsv_files_have_the_cells_that_pandas_reads(name, folder):
    path = folder / f"{name}.tsv"
    file, frame = TsvFile(path), pandas.read_csv(path, sep="\t")
    assert len(file) == len(frame) == TSV[name] and file.columns == tuple(frame.columns)
    for number, row in enumerate(frame.to_dict("records")):
        assert file.row(number)["question"] == row["question"] and file.index(number) == row["index"]
        assert all(load_image(image).width > 30 for image in file.images(number))


@pytest.mark.parametrize("name", TSV)
def test_no_row_is_one_that_vlmevalkit_leaves_out(name, folder):
    """Catches a table of ours with more rows than the kit scores: it drops rows whose image cell is missing."""
    frame = pandas.read_csv(folder / f"{name}.tsv", sep="\t", dtype={"image": str})
    assert not frame["image"].isna().any()
    own = {str(index): cell for index, cell in zip(frame["index"], frame["image"], strict=True)}
    assert all(len(own[cell]) > 64 for cell in own.values() if len(cell) <= 64)  # shared cells are found in one step


def test_multiple_choice_has_single_shared_and_several_images(folder):
    file = TsvFile(folder / "VStarBench.tsv")
    counts = [len(file.images(i)) for i in range(len(file))]
    assert counts == [1] * (ROWS - 2) + [2, 1]
    assert file.image_id(1) == file.ids[0] and file.image_id(2) == file.ids[2]
    assert {file.row(i)["answer"] for i in range(ROWS)} <= set("ABCD")
    hrbench = TsvFile(folder / "HRBench4K.tsv")
    for first in range(0, len(hrbench), 4):
        rows = [hrbench.row(i) for i in range(first, first + 4)]
        assert len({row[row["answer"]] for row in rows}) == 1  # the options rotate, the answer stays
        assert len({row["answer"] for row in rows}) == 4 and len({hrbench.images(first + i) for i in range(4)}) == 1


def test_realx_has_every_combination_of_abilities(folder):
    benchmark = RealX()
    questions = load(benchmark, folder)
    assert len(questions) == ROWS and benchmark.title == f"RealX-Bench, {ROWS} other rows"
    assert {question.skill for question in questions.texts} == {
        "perception", "reasoning", "reasoning+search", "perception+reasoning+search",
    }  # fmt: skip
    assert all(len(question.images) == 1 and load_image(question.images[0]) for question in questions)


def test_fvqa_has_the_search_results_of_each_question(folder):
    questions = load(FVQA(), folder)
    released = read_released_cache(folder / "FVQA" / "fvqa_test_image_search_results_cache.pkl")
    assert list(released) == questions.ids() and {len(results) for results in released.values()} == {5}
    for number, question in enumerate(questions.texts):
        if question.skill == "search_required":
            asked = lookup.image_lookup_question(random_stream(1, "fvqa", number), SPLIT, "")
            assert asked.text == question.text
            title = released[question.id][0].title
            assert re.search(rf" {re.escape(asked.meta['entity'])}$", title), title
            assert released[question.id][0].item().thumbnail and not released[question.id][4].item().thumbnail


def test_mmsearch_and_tir_have_rows_of_every_kind(folder):
    assert [bool(question.images) for question in load(MMSearch(), folder)] == [True, True, False] * 3
    questions = load(TIRBench(), folder)
    kinds = [question.meta["kind"] for question in questions.texts]
    assert kinds == ["integer", "integer", "letter", "text", "grid", "set", "pair", "decimal", "integer"]
    assert len(questions[5].images) == 2


@pytest.mark.parametrize("name", ["realx", "fvqa", "mmsearch", "tir", "vstar", "hrbench4k", "chartqa", "mathvista"])
def test_reference_answers_are_right_by_the_rules_of_their_benchmark(name, folder):
    """Catches a file whose answers its own benchmark does not accept, or whose prompt cannot be written."""
    benchmark = BENCHMARKS.get(name)()
    for question in load(benchmark, folder):
        final = question.answer.strip("[]")
        answer = BenchmarkAnswer(f"<answer>{final}</answer>", final, RewardConfig())
        assert benchmark.prompt(question)
        score = benchmark.score(question, answer)
        assert score.value == 1.0, (question.id, final, score)
