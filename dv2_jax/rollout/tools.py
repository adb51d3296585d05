"""The tools that a run uses: a service somewhere, or one of our own on this machine."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dv2_jax.config import Config, ConfigError
from dv2_jax.data.tasks import write_corpus
from tools_service.client import ToolsClient, start_local_service

FOLDER = "tools"  # in the run directory: corpus, indexes and log of our own service


@contextmanager
def open_tools(config: Config, run_dir: str | Path) -> Iterator[ToolsClient]:
    """A client of ``tools.address``, or of a service that is started here and ends with the block.

    Our own service searches ``tools.text_index`` and ``tools.image_index``; where they are empty, the facts and
    pictures of the embedded tasks, indexed once per run directory.
    """
    tools = config.tools
    if tools.address:
        token = _token(tools.token_file)
        client = ToolsClient(tools.address, token)
        try:
            yield client
        finally:
            client.close()
        return
    folder = Path(run_dir) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    text_index, image_index = tools.text_index, tools.image_index
    if not text_index:
        text_index = _index("text", folder)
    if not image_index:
        image_index = _index("image", folder)
    service = start_local_service(text_index=text_index, image_index=image_index, log_path=folder / "service.log")
    try:
        client = ToolsClient(service.address)
        try:
            yield client
        finally:
            client.close()
    finally:
        service.stop()


def _token(path: str) -> str | None:
    if not path:
        return None
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise ConfigError(f"tools.token_file = {path!r}: {error.strerror}") from None


def _index(kind: str, folder: Path) -> str:
    """The index of the embedded tasks' corpus; built beside it unless an earlier run finished it."""
    index = folder / f"{kind}_index"
    if not index.exists():
        text, pictures = write_corpus(folder / "corpus")
        partial = folder / f".{kind}_index"
        shutil.rmtree(partial, ignore_errors=True)
        command = [sys.executable, "-m", "tools_service.index", kind, text if kind == "text" else pictures]
        subprocess.run([*map(str, command), "--output", str(partial)], check=True, stdout=subprocess.DEVNULL)
        partial.rename(index)
    return str(index)
