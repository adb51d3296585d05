"""Authentication by bearer token, client certificate or both, and the principal that isolates callers."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

import grpc

from tools_service.server.options import ServiceOptions

_HEALTH = "/grpc.health.v1.Health/"


class BearerTokenInterceptor(grpc.aio.ServerInterceptor):
    """Rejects calls without one of the bearer tokens, except health checks."""

    def __init__(self, tokens: tuple[str, ...]):
        self._expected = [f"Bearer {token}".encode() for token in tokens]

        async def deny(_: object, context: grpc.aio.ServicerContext) -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "a bearer token is needed")

        self._deny = grpc.unary_unary_rpc_method_handler(deny)

    async def intercept_service(self, continuation, details):
        given = _authorization(details.invocation_metadata)
        # Compares all of them in constant time, so that the latency reveals nothing about the tokens (timing attack).
        matches = sum(hmac.compare_digest(given, expected) for expected in self._expected)
        if details.method.startswith(_HEALTH) or matches:
            return await continuation(details)
        return self._deny


def principal(context: grpc.aio.ServicerContext) -> str:
    """Returns a short hash of the caller's credentials, which scopes sessions, results and images; empty without any."""
    given = _authorization(context.invocation_metadata())
    identities = list(context.peer_identities() or ())
    if not given and not identities:
        return ""
    return hashlib.sha256(b"\0".join([given, *identities])).hexdigest()[:16]


def server_credentials(options: ServiceOptions) -> grpc.ServerCredentials | None:
    """Returns TLS credentials, with mutual TLS if a client CA is set; None without TLS. Raises OSError."""
    if not options.tls_cert:
        return None
    pair = (Path(options.tls_key).read_bytes(), Path(options.tls_cert).read_bytes())
    roots = Path(options.tls_client_ca).read_bytes() if options.tls_client_ca else None
    return grpc.ssl_server_credentials([pair], roots, require_client_auth=roots is not None)


def _authorization(metadata) -> bytes:
    for name, value in metadata or ():
        if name == "authorization":
            return value if isinstance(value, bytes) else value.encode()
    return b""
