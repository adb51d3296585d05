"""Listens, serves, and drains: after SIGTERM, running requests finish while new ones get status 503."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
import time
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from dv2_jax.config import ConfigError, ServeConfig
from dv2_jax.serving.chat_service import ChatService

TOKEN_VARIABLE = "DV2_SERVE_TOKEN"
_CLOSING_S = 5  # seconds that connections have to end after their responses
# Clients change their requests where a model's name contains one of these.
_MISREAD_NAMES = (
    "o1", "o3", "o4", "gpt-5", "gemini", "step", "abab", "moonshot", "grok", "ernie", "yi-vision", "internvl2-pro",
)  # fmt: skip


def read_token(config: ServeConfig) -> str:
    """Returns the bearer token, or an empty string for a server on loopback without one.

    Raises:
        ConfigError: the file cannot be read or is empty, or the address is not loopback and there is no token.
    """
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if config.token_file:
        try:
            token = Path(config.token_file).read_text().strip()
        except OSError as error:
            raise ConfigError(f"serve.token_file = {config.token_file!r}: {error.strerror}") from None
        if not token:
            raise ConfigError(f"serve.token_file = {config.token_file!r} is empty: write the token into it")
    if not token and not is_loopback(config.host):
        raise ConfigError(
            f"serve.host = {config.host!r} can be reached from other machines, which could run code in the sandbox: set"
            f" serve.token_file or {TOKEN_VARIABLE}, or use 127.0.0.1"
        )
    return token


def is_loopback(host: str) -> bool:
    """Returns whether an address can be reached only from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_name(name: str) -> None:
    """Raises ConfigError for a served name that clients would misread."""
    if not name or not name.isascii() or not all(c.isalnum() or c in "._-" for c in name):
        raise ConfigError(f"serve.name = {name!r}: use letters, digits, '.', '_' and '-'")
    for part in _MISREAD_NAMES:
        if part in name.lower():
            raise ConfigError(
                f"serve.name = {name!r} contains {part!r}, for which VLMEvalKit changes its requests: use another name"
            )


def listen(config: ServeConfig) -> socket.socket:
    """Returns a bound socket. Raises ConfigError if the address cannot be used."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
    except OSError as error:
        listener.close()
        raise ConfigError(f"serve.host = {config.host!r}, serve.port = {config.port}: {error.strerror}") from None
    return listener


def serve_until_signal(app: ASGIApp, service: ChatService, config: ServeConfig, listener: socket.socket) -> bool:
    """Serves until SIGINT or SIGTERM. Returns False if running requests had to be ended."""
    settings = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="off", server_header=False,
        timeout_graceful_shutdown=_CLOSING_S, http="h11", ws="none", loop="asyncio",
    )  # fmt: skip
    server = DrainingServer(settings, service, config.drain_s)
    server.run(sockets=[listener])
    return not server.was_cut


class DrainingServer(uvicorn.Server):
    """A uvicorn server that, after the first signal, goes on until the running requests are finished.

    Attributes:
        was_cut: requests were ended because `drain_s` had passed or a second signal arrived.
    """

    def __init__(self, config: uvicorn.Config, service: ChatService, drain_s: float):
        super().__init__(config)
        self._service, self._drain_s = service, drain_s
        self._deadline: float | None = None
        self.was_cut = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Starts to drain at the first signal; the second ends running requests."""
        if self._deadline is None:
            self._service.is_draining = True
            self._deadline = time.monotonic() + self._drain_s
            print(
                f"finishing {self._service.in_progress} answers, for up to {self._drain_s:g} s;"
                " a second signal stops at once",
                file=sys.stderr,
                flush=True,
            )
        else:
            self._deadline = 0.0

    async def on_tick(self, counter: int) -> bool:
        """Returns True once the server is drained; called by uvicorn every 0.1 s."""
        should_exit = await super().on_tick(counter)
        if self._deadline is None:
            return should_exit
        if not self._service.in_progress:
            return True
        if time.monotonic() < self._deadline:
            return should_exit
        self.was_cut = True
        self._service.abort_all()
        return True
