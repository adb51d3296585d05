"""RealX-Bench, the four search benchmarks and TIR-Bench: files in their published columns, rules, judge, rows of tables."""

import base64
import json
from dataclasses import dataclass, field, replace

import pyarrow
import pyarrow.parquet
import pytest
from rich.console import Console

from dv2_jax.config import Config, ConfigError, EvalConfig, RewardConfig
from dv2_jax.data.faults import RowError
from dv2_jax.evaluation.benchmarks.benchmark import OVERALL_ROW, BenchmarkAnswer, Score
from dv2_jax.evaluation.benchmarks.listing import benchmark_list
from dv2_jax.evaluation.benchmarks.mmsearch import MMSearch
from dv2_jax.evaluation.benchmarks.mmsearch_r1_benchmark import FVQA, InfoSeek, SimpleVQA
from dv2_jax.evaluation.benchmarks.realx import RealX, realx_title
from dv2_jax.evaluation.benchmarks.reference_benchmark import NEEDS_JUDGE, is_other_integer
from dv2_jax.evaluation.benchmarks.tir import TIRBench
from dv2_jax.rollout.question_sources import read_rows

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg=="
)


@dataclass
class ListJudge:
    """A judge that gives the verdicts and replies of a list, and keeps what it was asked."""

    replies: list
    asked: list = field(default_factory=list)

    def ask(self, messages, **sampling):
        self.asked.append(messages)
        return self.replies.pop(0)

    def verdict(self, question, references, answer, rubric=""):
        self.asked.append((question, list(references), answer))
        return self.replies.pop(0)


def answer(final, judge=None) -> BenchmarkAnswer:
    return BenchmarkAnswer(f"<answer>{final}</answer>", final, RewardConfig(), judge=judge)


def config_for(folder) -> Config:
    return replace(Config(), eval=EvalConfig(data=str(folder)))


def write_parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def load(benchmark, folder):
    return benchmark.load(config_for(folder), read_rows)


def table_of(benchmark, scores):
    return {row.name: (row.value, row.n, row.failed) for row in benchmark.aggregate(scores)}


def realx_rows(count=4):
    flags = [(1, 0, 0), (0, 1, 1), (1, 1, 1), (0, 0, 1)]
    answers = ["Paris", "red or crimson", "12", "yes"]
    return [
        {"query": f"q{n}", "answer": answers[n % 4], "perception": flags[n % 4][0], "search": flags[n % 4][1],
         "reason": flags[n % 4][2], "image": {"bytes": PNG + bytes([n % 256]), "path": None}}
        for n in range(count)
    ]  # fmt: skip


def test_realx_has_a_row_per_ability_and_one_for_all_three(tmp_path):
    write_parquet(tmp_path / "RealXBench" / "data" / "test-00000-of-00001.parquet", realx_rows())
    benchmark = RealX()
    questions = load(benchmark, tmp_path)
    assert [question.skill for question in questions] == [
        "perception", "reasoning+search", "perception+reasoning+search", "reasoning",
    ]  # fmt: skip
    assert questions[1].meta["references"] == ["red or crimson", "red", "crimson"]
    judge = ListJudge([False])
    finals = ["paris.", "the crimson", "a dozen", "yes"]
    scores = [benchmark.score(q, answer(final, judge)) for q, final in zip(questions, finals, strict=True)]
    assert judge.asked == [("q2", ["12"], "a dozen")]  # what the rule accepts is not judged
    assert table_of(benchmark, scores) == {
        "perception": (0.5, 2, 0), "reasoning": (2 / 3, 3, 0), "search": (0.5, 2, 0), "integration": (0.0, 1, 0),
        OVERALL_ROW: (0.75, 4, 0),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("prediction", "references", "is_other"),
    [
        ("13", ["12"], True), ("1,200", ["1200"], False), ("eight", ["7 or seven", "7", "seven"], True),
        ("13 km", ["12"], False), ("13", ["12 km"], False), ("13.0", ["12"], False), ("13", ["Paris", "12"], False),
        ("13", [], False), ("1990s", ["1990"], False),
    ],
)  # fmt: skip
def test_only_integers_are_wrong_without_a_judge(prediction, references, is_other):
    """Catches a rule that rejects what a judge might accept: rounded numbers, units, words."""
    assert is_other_integer(prediction, references) == is_other


def test_realx_counts_an_answer_that_failed_where_its_question_belongs(tmp_path):
    """Catches an answer that the run failed to obtain, and so has no details, vanishing from the rows of abilities."""
    failed = [Score(None, "the endpoint gave no reply", group="perception+reasoning+search")]
    found = table_of(RealX(), failed)
    assert {name: cells[2] for name, cells in found.items()} == dict.fromkeys(found, 1)


@pytest.mark.parametrize(("rows", "title"), [(194, "RealX-194"), (300, "RealX-300"), (5, "RealX-Bench, 5 other rows")])
def test_realx_says_by_its_number_of_rows_what_was_asked(rows, title, tmp_path):
    write_parquet(tmp_path / "RealXBench.parquet", realx_rows(rows))
    benchmark = RealX()
    load(benchmark, tmp_path)
    assert benchmark.title == title == realx_title(rows)


def test_realx_names_a_flag_that_is_neither_0_nor_1(tmp_path):
    rows = realx_rows()
    rows[2]["search"] = 7
    write_parquet(tmp_path / "RealXBench.parquet", rows)
    with pytest.raises(RowError, match=r"RealXBench.parquet row 2, search: is 7, neither 0 nor 1"):
        load(RealX(), tmp_path)


def fvqa_rows():
    def row(number, truth, others, image=PNG):
        return {
            "prompt": [{"content": f"<image>\nWho is it, {number}?", "role": "user"}],
            "images": [{"bytes": image, "path": None}],
            "image_urls": None,
            "reward_model": {"candidate_answers": json.dumps(others), "ground_truth": truth, "style": "rule"},
            "data_source": "mmsearch_r1/fvqa_test",
            "data_id": f"fvqa_test_{number}",
            "category": "search_required",
        }

    return [row(0, "Ada Lovelace", ["Ada Lovelace", "Lovelace"]), row(1, "1815", [])]


@pytest.mark.parametrize(
    ("benchmark", "name"),
    [(FVQA, "fvqa_test.parquet"), (InfoSeek, "infoseek_test.parquet"), (SimpleVQA, "simplevqa_test.parquet")],
)
def test_mmsearch_r1_files_are_judged_only_where_the_rule_does_not_accept(benchmark, name, tmp_path):
    write_parquet(tmp_path / name, fvqa_rows())
    questions = load(benchmark(), tmp_path)
    assert questions.ids() == ["fvqa_test_0", "fvqa_test_1"]
    assert questions[0].text == "Who is it, 0?" and questions[0].images == (PNG,)
    assert questions[0].meta["index"] == "fvqa_test_0"  # the key of the released search results
    judge = ListJudge([True, None])
    assert benchmark().score(questions[0], answer("the LOVELACE!", judge)).value == 1.0
    assert benchmark().score(questions[1], answer("in 1815", judge)).value == 1.0
    undecided = benchmark().score(questions[1], answer("perhaps 1816", judge))
    assert undecided.outcome == "undecided" and len(judge.asked) == 2
    assert judge.asked[0] == ("Who is it, 1?", ["1815"], "in 1815")
    assert benchmark().score(questions[1], answer("1816")).value == 0.0
    failed = benchmark().score(questions[1], answer("perhaps 1816"))
    assert (failed.outcome, failed.failure) == ("failed", NEEDS_JUDGE)
    assert benchmark().score(questions[1], answer(" ")).value == 0.0


def mmsearch_rows():
    def row(number, image, truth, others):
        return {
            "sample_id": f"s{number}", "query": f"q{number}", "query_image": image, "image_search_result": image,
            "area": "news", "subfield": "sports", "timestamp": "2024-07-01", "gt_requery": "", "gt_answer": truth,
            "alternative_gt_answers": others,
        }  # fmt: skip

    image = {"bytes": PNG, "path": None}
    return [row(0, image, "Ada Lovelace", ["Lovelace"]), row(1, None, "red cat", []), row(2, image, "two dogs", [])]


def test_mmsearch_has_the_judged_rows_with_an_image_and_the_official_f1_of_all(tmp_path):
    write_parquet(tmp_path / "end2end.parquet", mmsearch_rows())
    benchmark = MMSearch()
    questions = load(benchmark, tmp_path)
    assert [bool(question.images) for question in questions] == [True, False, True]
    finals = ["Lovelace", "red", "dogs"]
    scores = [benchmark.score(q, answer(final)) for q, final in zip(questions, finals, strict=True)]
    scores.append(Score(None, "lost", group="image"))
    found = table_of(benchmark, scores)
    assert found["F1"] == (pytest.approx((1 + 2 / 3 + 2 / 3) / 3), 3, 1)  # F1 needs no judge
    assert found[OVERALL_ROW] == (1.0, 1, 2) and found["judged, no image"] == (None, 0, 1)


def tir_rows():
    def row(id_, task, text, truth, **more):
        return {"id": id_, "task": task, "prompt": text, "image_1": f"images/{id_}.png", "image_2": None, "answer": truth,
                "meta_data": {"difficulty": 2}} | more  # fmt: skip

    return [
        row(0, "maze", "Which exit?\nA. left\nB. right", "B"), row(1, "jigsaw", "Order?", "1,2,3,4"),
        row(2, "ocr", "Read it.", "hello", image_1="images/60.jpg"), row(3, "math", "How many?", 12),
        row(4, "spot_difference", "Which cells?", [1, 2], image_2="images/0.png"),
    ]  # fmt: skip


def write_tir(folder):
    (folder / "TIR-Bench" / "images").mkdir(parents=True)
    for name in ("0.png", "1.png", "60.jpg", "3.png", "4.png"):
        (folder / "TIR-Bench" / "images" / name).write_bytes(PNG)
    (folder / "TIR-Bench" / "TIR-Bench.json").write_text(json.dumps(tir_rows()))


def test_tir_scores_bare_answers_by_rule_and_lets_the_judge_extract_others(tmp_path):
    write_tir(tmp_path)
    benchmark = TIRBench()
    questions = load(benchmark, tmp_path)
    assert [len(question.images) for question in questions] == [1, 1, 1, 1, 2]
    judge = ListJudge(["12", "none"])
    finals = ["right", "1, 2, 4, 3", "mobile mobi", "I count 12 of them, not 13", "2"]
    scores = [benchmark.score(q, answer(final, judge)) for q, final in zip(questions, finals, strict=True)]
    assert [score.value for score in scores] == [1.0, 0.5, 1.0, 1.0, 0.5]
    assert len(judge.asked) == 1 and "I count 12" in judge.asked[0][0]["content"]
    assert benchmark.score(questions[3], answer("no idea, 12 or 13", judge)).value == 0.0
    assert benchmark.score(questions[3], answer("12 or 13")).outcome == "failed"
    assert table_of(benchmark, scores)[OVERALL_ROW] == (0.8, 5, 0)


def test_benchmarks_say_which_file_is_missing_or_of_another_version(tmp_path):
    with pytest.raises(ConfigError, match=r"has no fvqa_test\*.parquet or .*; it is empty"):
        load(FVQA(), tmp_path)
    write_parquet(tmp_path / "fvqa_test.parquet", [{"question": "?", "answer": "!"}])
    with pytest.raises(
        ConfigError, match=r"no column prompt, images, reward_model, data_id; it has the columns question"
    ):
        load(FVQA(), tmp_path)


def test_the_list_shows_source_rows_needs_and_files(tmp_path):
    write_parquet(tmp_path / "RealXBench.parquet", realx_rows())
    console = Console(width=200, record=True)
    console.print(benchmark_list(config_for(tmp_path)))
    lines = [
        [cell.strip() for cell in line.split("│")[2:-1]] for line in console.export_text().splitlines() if "│" in line
    ]
    rows = {cells[0]: cells[1:] for cells in lines}
    assert rows["realx"][:3] == ["hf: glowol/RealXBench", "4 of 194", "searches, judge"]
    assert rows["realx"][3].startswith("RealXBench.parquet, 0.0 MiB")
    assert rows["tir"] == ["hf: Agents-X/TIR-Bench", "– of 1,215", "judge", "no TIR-Bench.json*"]
