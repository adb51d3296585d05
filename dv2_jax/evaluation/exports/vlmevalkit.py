"""VLMEvalKit's prediction file: `MODEL/MODEL_DATASET.xlsx`, which the kit's own `evaluate` scores.

The rows are those of the benchmark's published TSV, in its order and with all of its columns but the image, and the column
`prediction` with the final answer. As in pandas, columns whose values are all numbers hold numbers. Benchmarks without a
TSV get the columns index, question, answer and prediction from the records.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from dv2_jax.config import Config, ConfigError
from dv2_jax.evaluation.benchmarks.benchmark_registry import registered_benchmarks
from dv2_jax.evaluation.exports.export_format import ExportFormat, ExportOptions, register_export_format
from dv2_jax.evaluation.exports.exported_run import ExportedEvaluation, ExportedRun
from dv2_jax.evaluation.readers.locate import find_file
from dv2_jax.evaluation.readers.tsv_file import TsvFile
from dv2_jax.files import PARTIAL

MAX_CELL = 32_767  # characters, of xlsx
PREDICTION = "prediction"
_NUMBER = re.compile(r"-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
Row = Mapping[str, Any]


@register_export_format
class VLMEvalKitPredictions(ExportFormat):
    """Writes one workbook per policy, benchmark and sample."""

    name = "vlmevalkit"

    def write(self, run: ExportedRun, output: Path, options: ExportOptions) -> list[Path]:
        paths = []
        for evaluation in run.evaluations:
            path = _tsv_path(run, evaluation.benchmark, options.data)
            samples: dict[int, dict[str, str]] = {}
            for answer in evaluation.answers():
                if answer.has_answer:
                    samples.setdefault(answer.sample, {})[answer.question_id] = answer.prediction
            for sample, predictions in sorted(samples.items()):
                model = model_name(evaluation, sample)
                dataset = evaluation.benchmark if path is None else path.stem
                target = output / model / f"{model}_{dataset}.xlsx"
                if path is None:
                    write_workbook(target, record_rows(evaluation, sample, predictions))
                else:
                    with closing(TsvFile(path)) as rows:
                        write_workbook(target, tsv_rows(rows, predictions))
                paths.append(target)
        return paths


def model_name(evaluation: ExportedEvaluation, sample: int = 0) -> str:
    """Returns the model's name in files: letters, digits and hyphens, since the kit splits names at `_`."""
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{evaluation.model}-{evaluation.stage}").strip("-")
    return f"{name}-sample{sample}" if sample else name


def _tsv_path(run: ExportedRun, benchmark: str, data: str) -> Path | None:
    """Returns the published TSV of a benchmark, or None if it has none.

    Raises:
        ConfigError: it has one, but the file is not in the folder.
    """
    known = next((one for one in registered_benchmarks() if one.name == benchmark), None)
    names = [name for name in (known.files if known else ()) if name.endswith(".tsv")]
    if not names:
        return None
    config = Config.from_dict({"eval": {"data": data or run.config.get("eval", {}).get("data", "")}})
    try:
        return find_file(config, names)
    except ConfigError as error:
        raise ConfigError(f"{error}; --data=FOLDER names the folder") from None


def tsv_rows(rows: TsvFile, predictions: Mapping[str, str]) -> list[Row]:
    """Returns the rows of a TSV that have a prediction, typed as pandas reads them."""
    kept = [i for i in range(len(rows)) if rows.ids[i] in predictions]
    texts = [rows.row(i) for i in kept]
    numeric = {name for name in rows.columns if all(_is_number(row.get(name, "")) for row in texts)}

    def typed(i: int, row: Mapping[str, str]) -> dict[str, Any]:
        cells = {name: _typed(row[name], name in numeric) for name in rows.columns if name in row and name != "image"}
        return cells | {"index": rows.index(i), PREDICTION: predictions[rows.ids[i]]}

    return [typed(i, row) for i, row in zip(kept, texts, strict=True)]


def record_rows(evaluation: ExportedEvaluation, sample: int, predictions: Mapping[str, str]) -> Iterator[Row]:
    """Yields rows from the records alone."""
    for answer in evaluation.answers():
        if answer.sample == sample and answer.question_id in predictions:
            question = answer.record["question"]
            text = question["text"].replace("<image>", "").strip()
            cells = {"index": answer.question_id, "question": text, "answer": question["answer"]}
            yield cells | {PREDICTION: answer.prediction}


def _is_number(text: str) -> bool:
    return not text or _NUMBER.fullmatch(text) is not None


def _typed(text: str, is_numeric: bool) -> str | int | float | None:
    if not text:
        return None
    if not is_numeric:
        return text
    return int(text) if text.lstrip("-").isdigit() else float(text)


def write_workbook(path: Path, rows: Sequence[Row] | Iterator[Row]) -> None:
    """Writes rows as the only sheet of a workbook; the first row names the columns. Control characters are removed.

    Raises:
        ConfigError: openpyxl is not installed.
    """
    try:
        from openpyxl import Workbook
        from openpyxl.cell import WriteOnlyCell
        from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
    except ImportError:
        raise ConfigError("--format=vlmevalkit writes xlsx files: pip install 'openpyxl>=3.1'") from None
    book = Workbook(write_only=True)
    sheet = book.create_sheet("Sheet1")
    columns: list[str] = []
    for row in rows:
        if not columns:
            columns = list(row)
            sheet.append(columns)
        cells = [WriteOnlyCell(sheet, _text(row.get(name), ILLEGAL_CHARACTERS_RE)) for name in columns]
        for cell in cells:
            if cell.data_type == "f":  # a text that begins with =, which is no formula here
                cell.data_type = "s"
        sheet.append(cells)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}{PARTIAL}")
    book.save(partial)
    partial.replace(path)


def _text(value: Any, illegal: re.Pattern[str]) -> Any:
    return illegal.sub("", value)[:MAX_CELL] if isinstance(value, str) else value
