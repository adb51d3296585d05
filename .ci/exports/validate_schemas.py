"""Validates exports against the JSON schemas of an every-eval-ever wheel: validate_schemas.py WHEEL FILE...

For machines whose Pythons are older than the package requires: its validator needs Python 3.12, its schemas do not.
"""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import jsonschema


def main() -> None:
    wheel, *paths = map(Path, sys.argv[1:])
    assert paths, "no files"
    with zipfile.ZipFile(wheel) as archive:
        names = {Path(name).name: name for name in archive.namelist()}
        schemas = {
            kind: json.loads(archive.read(names[f"{kind}.schema.json"])) for kind in ("eval", "instance_level_eval")
        }
    for path in paths:
        lines = path.read_text(encoding="utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        schema = schemas["instance_level_eval" if path.suffix == ".jsonl" else "eval"]
        for line in lines:
            jsonschema.validate(json.loads(line), schema)
        print(f"{path.name}: {len(lines)} documents fit the schema")


if __name__ == "__main__":
    main()
