"""Starts one real tools service with a small corpus."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from dv2_jax.data.tokenizer import Tokenizer
from tests.rollout.rollout_cases import make_image
from tools_service.client import ToolsClient, start_local_service


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_package()


@pytest.fixture(scope="session")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    rows = [
        {"title": "Mount Kea", "text": "Mount Kea is 4207 metres high."},
        {"title": "Tea", "text": "Tea is a drink."},
    ]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "images").mkdir()
    for seed, name in enumerate(("red house", "blue boat")):
        (folder / "images" / f"{name}.png").write_bytes(make_image(seed))
    for kind, source in (("text", "corpus.jsonl"), ("image", "images")):
        command = [sys.executable, "-m", "tools_service.cli.index", kind, str(folder / source)]
        subprocess.run([*command, "--output", str(folder / kind)], check=True, capture_output=True)
    service = start_local_service(
        text_index=str(folder / "text"), image_index=str(folder / "image"), log_path=folder / "log.txt"
    )
    yield service
    service.stop()
    print((folder / "log.txt").read_text(errors="replace")[-4000:])


@pytest.fixture
def client(service):
    client = ToolsClient(service.address)
    yield client
    client.close()
