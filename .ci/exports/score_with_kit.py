"""Scores an exported workbook with ms-vlmeval's own functions: score_with_kit.py KIT_IMPORT XLSX TSV EXPECTED.

KIT_IMPORT is the path of `tests/evaluation/scorers/kit_import.py`; EXPECTED is a JSON file of verdicts by index. Runs in
an environment that has ms-vlmeval, and not this project.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import tempfile
from pathlib import Path


def main() -> None:
    helper, workbook, tsv, expected = sys.argv[1:]
    spec = importlib.util.spec_from_file_location("kit_import", helper)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.install()

    from vlmeval.dataset.utils.multiple_choice import mcq_vanilla_eval, report_acc
    from vlmeval.smp.file import load

    data, meta = load(workbook), load(tsv)
    data = data.sort_values(by="index")
    data["prediction"] = [str(text) for text in data["prediction"]]
    with tempfile.TemporaryDirectory() as folder:
        scored = mcq_vanilla_eval(None, data, meta, 1, str(Path(folder) / "result.pkl"), Path(tsv).stem)
    verdicts = {str(index): int(hit) for index, hit in zip(scored["index"], scored["hit"])}
    ours = {index: int(value) for index, value in json.loads(Path(expected).read_text()).items()}
    assert verdicts == ours, {index: (verdicts.get(index), ours.get(index)) for index in verdicts.keys() | ours.keys()}
    accuracy = float(report_acc(scored)["Overall"].iloc[0])
    assert abs(accuracy - sum(ours.values()) / len(ours)) < 1e-9
    print(f"{Path(workbook).name}: ms-vlmeval gives {accuracy:.1%} of {len(ours)} rows, as evaluate does")


if __name__ == "__main__":
    main()
