"""Command-line options of the service."""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import os
import re
from dataclasses import dataclass

from tools_service.sandbox.confinement import packages
from tools_service.sandbox.protocol.isolation_config import TIERS, Limits
from tools_service.search import search_options
from tools_service.search.search_options import SearchOptions

_REPLICA = re.compile(r"[A-Za-z0-9.-]{1,60}")


@dataclass(frozen=True)
class ServiceOptions:
    host: str
    port: int
    limits: Limits
    packages: tuple[str, ...]
    tier: str  # strongest isolation tier to try
    insecure: bool
    no_cgroups: bool
    tokens: tuple[str, ...]  # empty: no bearer token is required
    tls_cert: str
    tls_key: str
    tls_client_ca: str  # not empty: clients must present a certificate signed by it (mutual TLS)
    reflection: bool
    replica: str
    metrics_port: int
    traces: str  # file, or otlp; empty: none
    search: SearchOptions
    max_sessions: int
    sessions_per_client: int
    idle_s: float
    evict_after_s: float
    memory_floor_mb: int
    queue: int
    warm: int
    max_running: int  # cells at once, long-running ones not counted
    max_long_running: int  # cells demoted after `admission.DEMOTE_AFTER_S`
    drain_s: float
    exit_with_parent: bool
    no_sandbox: bool


class InvalidOptions(Exception):
    """Options that contradict each other or would expose the service without authentication."""


def parse(argv: list[str] | None = None) -> ServiceOptions:
    """Parses the command line. Raises InvalidOptions; exits with argparse's message on a syntax error."""
    cores = os.cpu_count() or 1
    parser = argparse.ArgumentParser(
        prog="python -m tools_service", description="Python sandboxes and search behind gRPC."
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: loopback; others need --token-file or --tls-client-ca)",
    )
    parser.add_argument("--port", type=int, default=0, help="0: any free port, printed at start")
    parser.add_argument("--token-file", default="", help="file of bearer tokens, one per line, one per client")
    parser.add_argument("--tls-cert", default="", help="PEM file: certificate of this service; with --tls-key")
    parser.add_argument("--tls-key", default="", help="PEM file: its private key")
    parser.add_argument(
        "--tls-client-ca", default="", help="PEM file: clients need a certificate signed by this authority"
    )
    parser.add_argument("--reflection", action="store_true", help="gRPC server reflection, for exploring by hand")
    parser.add_argument("--replica", default="tools", help="name among replicas; a random part is added at every start")
    parser.add_argument("--metrics-port", type=int, default=0, help="Prometheus metrics over HTTP; 0: none")
    parser.add_argument(
        "--traces", default="", help="OpenTelemetry spans: a file, or otlp (OTEL_EXPORTER_OTLP_ENDPOINT)"
    )
    parser.add_argument("--tier", type=_tier, choices=TIERS, default=TIERS[0], help="strongest isolation tier to try")
    parser.add_argument("--insecure", action="store_true", help="run sessions unconfined where nothing better works")
    parser.add_argument("--no-cgroups", action="store_true", help="limit sessions without cgroups, by the watchdog")
    parser.add_argument("--no-sandbox", action="store_true", help="search only")
    parser.add_argument("--max-sessions", type=int, default=_default_max_sessions())
    parser.add_argument("--sessions-per-client", type=int, default=0, help="of one token or certificate; 0: no limit")
    parser.add_argument("--idle-s", type=float, default=1800.0, help="a session unused for so long ends")
    parser.add_argument(
        "--evict-after-s", type=float, default=5.0, help="idle so long, a session may make room for others"
    )
    parser.add_argument(
        "--memory-floor-mb", type=int, default=1024, help="with less memory available, idle sessions end"
    )
    parser.add_argument("--queue", type=int, default=8192, help="cells waiting in all; more are turned away")
    parser.add_argument("--warm", type=int, default=max(2, min(16, 4 * cores)), help="session processes kept ready")
    parser.add_argument(
        "--cells",
        dest="max_running",
        type=int,
        default=2 * cores,
        help="cells running at once; those that run long move aside",
    )
    parser.add_argument(
        "--slow-cells", dest="max_long_running", type=int, default=32 * cores, help="long-running cells at once"
    )
    parser.add_argument("--drain-s", type=float, default=10.0, help="on SIGTERM, wait so long for running cells")
    parser.add_argument(
        "--packages", default=",".join(packages.DEFAULT_PACKAGES), help="distributions that sessions may import"
    )
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
    search_options.add_arguments(parser)
    given = vars(parser.parse_args(argv))
    try:
        search = search_options.pop_search_options(given)
    except ValueError as error:
        raise InvalidOptions(str(error)) from None
    limits = Limits(**{limit.name: given.pop(limit.name) for limit in dataclasses.fields(Limits)})
    tokens = _read_tokens(given.pop("token_file"))
    names = tuple(n for n in given.pop("packages").split(",") if n)
    options = ServiceOptions(limits=limits, tokens=tokens, packages=names, search=search, **given)
    if bool(options.tls_cert) != bool(options.tls_key):
        raise InvalidOptions("--tls-cert and --tls-key belong together: give both or neither")
    if options.tls_client_ca and not options.tls_cert:
        raise InvalidOptions("--tls-client-ca needs TLS: give --tls-cert and --tls-key")
    if not tokens and not options.tls_client_ca and not _is_loopback(options.host):
        raise InvalidOptions(
            f"--host {options.host} is reachable from outside: give --token-file or --tls-client-ca, or listen on 127.0.0.1"
        )
    if not _REPLICA.fullmatch(options.replica):
        raise InvalidOptions(f"--replica {options.replica!r} must match {_REPLICA.pattern}")
    return options


def _read_tokens(path: str) -> tuple[str, ...]:
    if not path:
        return ()
    try:
        with open(path) as file:
            tokens = tuple(line.strip() for line in file if line.strip())
    except OSError as error:
        raise InvalidOptions(f"--token-file {path}: {error.strerror}") from None
    if not tokens:
        raise InvalidOptions(f"--token-file {path} is empty: put a random token of at least 16 characters in it")
    if (shortest := min(map(len, tokens))) < 16:
        raise InvalidOptions(f"a token in {path} has {shortest} characters; use at least 16 random ones")
    return tokens


def _tier(name: str) -> str:
    return "landlock" if name == "plain" else name  # the tier's former name


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _default_max_sessions() -> int:
    """Returns how many sessions fit into half the memory at about 26 MB each (measured after a plot and a solve)."""
    return max(16, min(2048, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // (52 << 20)))
