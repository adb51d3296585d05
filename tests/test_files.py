"""Tests of atomic writing and of pytree dataclasses, which must not lose a field."""

import dataclasses
import errno
import os

import jax
import pytest

from dv2_jax.data.packing import PackedBatch
from dv2_jax.engine.model_runner import DecodeBatch, DecodeOutput, PrefillBatch
from dv2_jax.files import PARTIAL, atomic_write, file_digest
from dv2_jax.model.vision_inputs import VisionBatch
from dv2_jax.ops.paged_attention import Pages, Prefix
from dv2_jax.trainer.state import TrainState


@pytest.mark.parametrize("durable", [False, True])
def test_atomic_write__replaces_content_and_leaves_no_temporary_file(tmp_path, durable):
    """Catches: an appended or truncated file, a missing parent folder, a temporary file that stays."""
    path = tmp_path / "new" / "a.json"
    atomic_write(path, "long first content", durable=durable)
    atomic_write(path, b"\x00two", durable=durable)
    assert path.read_bytes() == b"\x00two"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.json"]


def test_atomic_write__failed_write_keeps_the_old_content(tmp_path, monkeypatch):
    """Catches: a destination that is opened for writing before the disk turns out to be full."""
    path = tmp_path / "a.json"
    atomic_write(path, "old")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


def test_atomic_write__two_writers_do_not_share_a_temporary_file(tmp_path, monkeypatch):
    """Catches: threads of one process that write into each other's temporary file."""
    names = []
    replace = os.replace

    def record(source, target):
        names.append(str(source))
        replace(source, target)

    monkeypatch.setattr(os, "replace", record)
    for content in "ab":
        atomic_write(tmp_path / "x", content)
    assert len(set(names)) == 2 and all(name.endswith(PARTIAL) for name in names)


def test_file_digest__is_sha256_of_the_content(tmp_path):
    """Catches: a digest of the name or of the first chunk. The expected value is that of FIPS 180-2, appendix B.3."""
    (tmp_path / "a").write_bytes(b"a" * 1_000_000)
    assert file_digest(tmp_path / "a") == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"


@pytest.mark.parametrize(
    "cls", [PackedBatch, VisionBatch, Pages, Prefix, PrefillBatch, DecodeBatch, DecodeOutput, TrainState]
)
def test_pytree_dataclass__every_field_is_a_leaf_or_static(cls):
    """Catches: a field that a pytree registration forgets, which jit would silently drop or treat as constant."""
    fields = dataclasses.fields(cls)
    value = cls(**{field.name: number for number, field in enumerate(fields)})
    leaves = {n for n, field in enumerate(fields) if not field.metadata.get("static")}
    assert set(jax.tree.leaves(value)) == leaves
    assert jax.tree.map(lambda leaf: leaf, value) == value
