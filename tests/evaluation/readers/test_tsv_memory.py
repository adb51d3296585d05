"""Memory of a TSV file does not grow with the size of its image cells."""

import base64
import tracemalloc

from dv2_jax.evaluation.readers.tsv_file import TsvFile


def test_tsv_file_holds_no_images(tmp_path):
    """Catches a reader that keeps cells: 64 rows of 0.5 MB are read with less memory than five of them."""
    path, cell = tmp_path / "Big.tsv", base64.b64encode(bytes(3 * 131_072))
    with path.open("wb") as file:
        file.write(b"index\timage\tquestion\n")
        for number in range(64):
            file.write(b'%d\t%s\t"line 1\nline ""2"""\n' % (number, cell))
    tracemalloc.start()
    rows = TsvFile(path)
    for number in range(64):
        assert rows.images(number) == (bytes(3 * 131_072),)
        assert rows.row(number)["question"] == 'line 1\nline "2"'
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * len(cell) < path.stat().st_size / 5
