"""Collects VLMEvalKit's predictions and scores, in its own environment: `python kit_results.py FOLDER`."""

import json
import sys
from pathlib import Path

import pandas

folder = Path(sys.argv[1])
(status,) = folder.glob("out/dv2/T*/status.json")
predictions = {
    name: pandas.read_excel(folder / f"out/dv2/dv2_{name}.xlsx", dtype=str)["prediction"].tolist()
    for name in ("TinyMCQ", "TreeBench")
}
(folder / "kit.json").write_text(json.dumps({"status": json.loads(status.read_text()), "predictions": predictions}))
