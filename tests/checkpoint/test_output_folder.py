"""An exported folder appears whole or not at all, on a disk and on an object store."""

from __future__ import annotations

import importlib.util
import json
import os
import stat

import fsspec
import pytest

from dv2_jax import export
from dv2_jax.checkpoint.hf import load_hf
from dv2_jax.checkpoint.output_folder import INCOMPLETE, output_folder
from dv2_jax.checkpoint.policy_spec import architecture
from dv2_jax.config import ModelSource

STORE = fsspec.filesystem("memory")  # objects without folders that could be renamed, like a bucket


@pytest.fixture(params=["disk", "store"])
def place(request, tmp_path):
    """(location of a folder that is not there, a function that lists it)"""
    if request.param == "disk":
        return tmp_path / "out", lambda: sorted(p.name for p in (tmp_path / "out").glob("*"))
    return empty_store()


def empty_store():
    if STORE.exists("/out"):
        STORE.rm("/out", recursive=True)
    return "memory://out", lambda: sorted(
        name.rsplit("/", 1)[-1] for name in (STORE.ls("/out", detail=False) if STORE.exists("/out") else [])
    )


def test_files_are_there_when_the_block_has_ended(place):
    location, files = place
    with output_folder(location) as folder:
        folder.write_text("b.txt", "naïve")
        with folder.create("a.bin") as stream:
            stream.write(b"12")
            stream.write(b"34")
        assert files() == [] or INCOMPLETE in files(), "a kill here would leave what looks complete"
    assert files() == ["a.bin", "b.txt"]
    with fsspec.open(f"{location}/a.bin") as stream:
        assert stream.read() == b"1234"


def test_an_error_leaves_nothing(place, tmp_path):
    location, files = place
    with pytest.raises(KeyboardInterrupt), output_folder(location) as folder:
        folder.write_text("a.txt", "half")
        raise KeyboardInterrupt
    assert files() == [] and list(tmp_path.iterdir()) == []


def test_what_is_there_is_never_written_over(place):
    location, files = place
    with output_folder(location) as folder:
        folder.write_text("mine.txt", "keep")
    with pytest.raises(FileExistsError, match="is not empty: name another folder"), output_folder(location):
        pass
    assert files() == ["mine.txt"]


def test_a_killed_write_to_a_store_shows_and_is_written_again():
    """On a disk a killed write lies under another name; in a bucket, beside the mark that it is not complete."""
    location, files = empty_store()
    killed = output_folder(location)  # kept alive: what is dropped would clean up after itself
    killed.__enter__().write_text("model.safetensors", "half")
    assert INCOMPLETE in files()
    with output_folder(location) as folder:
        folder.write_text("model.safetensors", "whole")
    assert files() == ["model.safetensors"]
    with fsspec.open(f"{location}/model.safetensors") as stream:
        assert stream.read() == b"whole"


def test_files_have_the_mode_that_the_umask_leaves(tmp_path):
    """Catches a policy that only its exporter may read."""
    before = os.umask(0o022)
    try:
        with output_folder(tmp_path / "out") as folder:
            folder.write_text("a.txt", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out" / "a.txt").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755


def test_a_place_that_nothing_can_write_to_is_named():
    with pytest.raises(ValueError, match="Protocol not known"), output_folder("nfs4://server/out"):
        pass
    if importlib.util.find_spec("gcsfs") is None:
        with pytest.raises(ImportError, match=r"gs://bucket/out.*dv2_jax\[gcs\]"), output_folder("gs://bucket/out"):
            pass


def test_the_verb_exports_to_a_store_with_config_json_last(tmp_path, monkeypatch, capsys):
    """Catches a folder that looks complete before its weights are: without config.json nothing takes it for a policy."""
    if STORE.exists("/bucket"):
        STORE.rm("/bucket", recursive=True)
    written = []
    opened = type(STORE).open
    monkeypatch.setattr(
        type(STORE),
        "open",
        lambda self, path, *a, **k: written.append(path.rsplit("/", 1)[-1]) or opened(self, path, *a, **k),
    )
    export.main(["--checkpoint=package:base", "--output=memory://bucket/policy", "--dtype=float32"])
    assert "memory://bucket/policy" in capsys.readouterr().out
    assert written[:2] == [INCOMPLETE, "model.safetensors"] and written[-1] == "config.json"
    monkeypatch.undo()
    STORE.get("/bucket/policy", str(tmp_path / "fetched"), recursive=True)
    described = architecture(ModelSource(init=f"hf:{tmp_path / 'fetched'}"))
    assert load_hf(tmp_path / "fetched", described.config).keys()
    assert json.loads((tmp_path / "fetched" / "config.json").read_text())["model_type"] == "qwen2_5_vl"
