"""Command line of the service."""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import os
from dataclasses import dataclass

from tools_service.sandbox import packages
from tools_service.sandbox.isolation import TIERS
from tools_service.sandbox.plan import Limits


@dataclass(frozen=True)
class Options:
    host: str
    port: int
    limits: Limits
    packages: tuple[str, ...]
    tier: str  # best tier to use
    insecure: bool
    text_index: str
    image_index: str
    token: str  # empty: no authentication
    max_sessions: int
    idle_s: float
    warm: int
    cells: int  # running at once in the fast lane
    slow_cells: int
    drain_s: float
    exit_with_parent: bool
    no_sandbox: bool


class BadOptions(Exception):
    """Options that contradict one another."""


def parse(argv: list[str] | None = None) -> Options:
    """Options from the command line. Raises BadOptions; exits on what argparse rejects."""
    cores = os.cpu_count() or 1
    parser = argparse.ArgumentParser(
        prog="python -m tools_service", description="Python sandboxes and search behind gRPC."
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: loopback; others need --token-file)"
    )
    parser.add_argument("--port", type=int, default=0, help="0: any free port, printed at start")
    parser.add_argument(
        "--text-index", default="", help="folder made by `python -m tools_service.index text`, or a JSONL corpus"
    )
    parser.add_argument(
        "--image-index",
        default="",
        help="folder made by `python -m tools_service.index image`, or pictures (folder or JSONL)",
    )
    parser.add_argument("--token-file", default="", help="file holding the bearer token that clients must send")
    parser.add_argument("--tier", choices=TIERS, default=TIERS[0], help="strongest confinement to try")
    parser.add_argument("--insecure", action="store_true", help="run sessions unconfined where nothing better works")
    parser.add_argument("--no-sandbox", action="store_true", help="search only")
    parser.add_argument("--max-sessions", type=int, default=_sessions_that_fit())
    parser.add_argument("--idle-s", type=float, default=1800.0, help="a session unused for so long ends")
    parser.add_argument("--warm", type=int, default=max(2, min(16, 4 * cores)), help="session processes kept ready")
    parser.add_argument(
        "--cells", type=int, default=2 * cores, help="cells running at once; those that run long move aside"
    )
    parser.add_argument("--slow-cells", type=int, default=32 * cores, help="long-running cells at once")
    parser.add_argument("--drain-s", type=float, default=10.0, help="on SIGTERM, wait so long for running cells")
    parser.add_argument("--packages", default=",".join(packages.DEFAULT), help="distributions that sessions may import")
    parser.add_argument(
        "--exit-with-parent", action="store_true", help="end when the process that started this one ends"
    )
    for limit in dataclasses.fields(Limits):
        kind = float if isinstance(limit.default, float) else int
        parser.add_argument(
            f"--{limit.name.replace('_', '-')}",
            type=kind,
            default=limit.default,
            help=f"session limit (default {limit.default})",
        )
    given = vars(parser.parse_args(argv))
    limits = Limits(**{limit.name: given.pop(limit.name) for limit in dataclasses.fields(Limits)})
    token = _read_token(given.pop("token_file"))
    names = tuple(n for n in given.pop("packages").split(",") if n)
    options = Options(limits=limits, token=token, packages=names, **given)
    if not token and not _is_loopback(options.host):
        raise BadOptions(f"--host {options.host} is reachable from outside: give --token-file, or listen on 127.0.0.1")
    return options


def _read_token(path: str) -> str:
    if not path:
        return ""
    with open(path) as file:
        token = file.read().strip()
    if len(token) < 16:
        raise BadOptions(f"the token in {path} has {len(token)} characters; use at least 16 random ones")
    return token


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _sessions_that_fit() -> int:
    """A session that has drawn a figure and solved something takes about 26 MB; half the memory is for them."""
    return max(16, min(2048, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // (52 << 20)))
