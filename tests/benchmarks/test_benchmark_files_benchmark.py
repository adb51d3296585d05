"""The measurement of the reader of TSV files runs, and memory does not grow with the number of rows."""

import json

from benchmarks import benchmark_files


def test_memory_does_not_grow_with_the_file(tmp_path, capsys):
    """Catches a reader that keeps image cells: 100 more rows of 0.4 MB would cost 40 MB."""
    benchmark_files.main(
        ["--rows", "200", "--mb", "0.4", "--read", "50", "--json", str(tmp_path / "r.json"), "--folder", str(tmp_path)]
    )
    result = json.loads((tmp_path / "r.json").read_text())
    assert (result["rows"], result["rows_read"]) == (200, 50) and result["file_mb"] > 70
    assert result["growth_mb"] < 20
    assert not list(tmp_path.glob("**/*.tsv"))
    assert json.loads(capsys.readouterr().out) == result
