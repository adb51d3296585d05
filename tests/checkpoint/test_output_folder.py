"""Tests of atomic output folders on a local disk and on an object store."""

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
from dv2_jax.checkpoint.policy_spec import load_policy_spec
from dv2_jax.config import ModelSource

STORE = fsspec.filesystem("memory")  # like a bucket: objects without folders that could be renamed


@pytest.fixture(params=["disk", "store"])
def location_and_files(request, tmp_path):
    """Return (the location of a folder that does not exist, a function that lists its files)."""
    if request.param == "disk":
        return tmp_path / "out", lambda: sorted(p.name for p in (tmp_path / "out").glob("*"))
    return empty_store()


def empty_store():
    if STORE.exists("/out"):
        STORE.rm("/out", recursive=True)
    return "memory://out", lambda: sorted(
        name.rsplit("/", 1)[-1] for name in (STORE.ls("/out", detail=False) if STORE.exists("/out") else [])
    )


def test_files_exist_after_the_block(location_and_files):
    location, files = location_and_files
    with output_folder(location) as folder:
        folder.write_text("b.txt", "naïve")
        with folder.create("a.bin") as stream:
            stream.write(b"12")
            stream.write(b"34")
        assert files() == [] or INCOMPLETE in files(), "a kill here would leave a folder that looks complete"
    assert files() == ["a.bin", "b.txt"]
    with fsspec.open(f"{location}/a.bin") as stream:
        assert stream.read() == b"1234"


def test_an_error_leaves_no_files(location_and_files, tmp_path):
    location, files = location_and_files
    with pytest.raises(KeyboardInterrupt), output_folder(location) as folder:
        folder.write_text("a.txt", "half")
        raise KeyboardInterrupt
    assert files() == [] and list(tmp_path.iterdir()) == []


def test_existing_files_are_never_overwritten(location_and_files):
    location, files = location_and_files
    with output_folder(location) as folder:
        folder.write_text("mine.txt", "keep")
    with pytest.raises(FileExistsError, match="is not empty: choose another folder"), output_folder(location):
        pass
    assert files() == ["mine.txt"]


def test_a_killed_write_to_an_object_store_is_marked_and_overwritten():
    """Catches: a killed write to a bucket, which has no rename, that looks complete or blocks the next export."""
    location, files = empty_store()
    killed = output_folder(location)  # kept alive: garbage collection would run the cleanup of the generator
    killed.__enter__().write_text("model.safetensors", "half")
    assert INCOMPLETE in files()
    with output_folder(location) as folder:
        folder.write_text("model.safetensors", "complete")
    assert files() == ["model.safetensors"]
    with fsspec.open(f"{location}/model.safetensors") as stream:
        assert stream.read() == b"complete"


def test_files_have_the_mode_that_the_umask_leaves(tmp_path):
    """Catches: an exported policy that only its exporter may read."""
    before = os.umask(0o022)
    try:
        with output_folder(tmp_path / "out") as folder:
            folder.write_text("a.txt", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out" / "a.txt").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755


def test_an_unsupported_file_system_is_named():
    with pytest.raises(ValueError, match="Protocol not known"), output_folder("nfs4://server/out"):
        pass
    if importlib.util.find_spec("gcsfs") is None:
        with pytest.raises(ImportError, match=r"gs://bucket/out.*dv2_jax\[gcs\]"), output_folder("gs://bucket/out"):
            pass


def test_the_export_command_writes_config_json_last(tmp_path, monkeypatch, capsys):
    """Catches: a folder that looks complete before its weights are written; loaders require config.json."""
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
    described = load_policy_spec(ModelSource(init=f"hf:{tmp_path / 'fetched'}"))
    assert load_hf(tmp_path / "fetched", described.config).keys()
    assert json.loads((tmp_path / "fetched" / "config.json").read_text())["model_type"] == "qwen2_5_vl"
