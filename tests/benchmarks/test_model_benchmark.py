"""The model benchmark: both sides compute the same loss, and differing losses are an error."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("transformers")

from benchmarks import model  # noqa: E402


@pytest.mark.long
def test_both_sides_compute_the_same_loss(tmp_path, capsys):
    """Catches: packed conversations that attend to each other on one side, and images that only one side processes."""
    arguments = ["--shapes", "image", "packed", "--divide=16", "--rounds=1", "--threads=1"]
    arguments += [f"--output={tmp_path / 'samples.json'}"]
    assert model.main(arguments) == 0
    found = json.loads((tmp_path / "samples.json").read_text())["shapes"]
    assert set(found) == {"image", "packed"}
    for result in found.values():
        for side in ("ours", "torch"):
            assert len(result[side]["forward"]) == len(result[side]["gradient"]) == 1
            assert result[side]["memory"] > 2**26
    assert "packed" in capsys.readouterr().out


def test_sides_that_differ_are_an_error():
    class Fake:
        def __init__(self, name, loss):
            self.name, self.loss = name, loss

        def request(self, word):
            return {"loss": self.loss, "wall": 1.0, "bytes": 1}

    with pytest.raises(RuntimeError, match="not the same computation"):
        model.measure([Fake("ours", 5.0), Fake("torch", 5.1)], rounds=1)
