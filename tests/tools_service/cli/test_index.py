"""Tests of the command that builds a search index: a failed build leaves nothing that refuses the corrected command."""

import json
import os

import pytest
from PIL import Image

from tools_service.cli import index
from tools_service.search.providers.image_index import ImageIndex
from tools_service.search.providers.text_index import TextIndex

ROWS = [{"title": "Paris", "text": "The capital of France."}, {"title": "Rome", "text": "The capital of Italy."}]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("exists", [False, True])
def test_index__a_failed_build_does_not_block_the_corrected_command(tmp_path, exists, capsys):
    """Catches: a half-built folder that is refused as not empty, and a folder that is created at a wrong level."""
    output = tmp_path / "new" / "text"
    if exists:
        output.mkdir(parents=True)
    broken = write(tmp_path / "broken.jsonl", [*ROWS, {"title": "no text"}])
    with pytest.raises(SystemExit, match="error: .*text"):
        index.main(["text", broken, "--output", str(output)])
    assert output.exists() == exists and [*output.parent.rglob("*")] == ([output] if exists else [])
    index.main(["text", write(tmp_path / "rows.jsonl", ROWS), "--output", str(output)])
    assert TextIndex.open(str(output)).documents == 2
    assert [path.name for path in output.parent.iterdir()] == ["text"]
    assert "2 documents" in capsys.readouterr().out


def test_index__images_as_well(tmp_path):
    """Catches: the guard for text only."""
    images, output = tmp_path / "images", tmp_path / "index"
    images.mkdir()
    Image.new("RGB", (80, 80), "red").save(images / "a.png")
    (images / "b.png").write_bytes(b"no image")
    with pytest.raises(SystemExit, match="'b'"):
        index.main(["image", str(images), "--output", str(output)])
    assert not output.exists()
    (images / "b.png").unlink()
    index.main(["image", str(images), "--output", str(output)])
    assert ImageIndex.open(str(output)).name.startswith("image: 1 ")


def test_index__a_folder_with_files_is_refused_and_kept(tmp_path):
    """Catches: an index that replaces or mixes with what is there already."""
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit, match="is not empty"):
        index.main(["text", write(tmp_path / "rows.jsonl", ROWS), "--output", str(tmp_path)])
    assert sorted(os.listdir(tmp_path)) == ["notes.txt", "rows.jsonl"]


def test_index__the_rest_of_a_killed_build_is_no_obstacle(tmp_path):
    """Catches: a killed build in a mounted volume, after which every later command is refused."""
    output = tmp_path / "volume"
    (output / ".abc.partial").mkdir(parents=True)
    index.main(["text", write(tmp_path / "rows.jsonl", ROWS), "--output", str(output)])
    assert TextIndex.open(str(output)).documents == 2
