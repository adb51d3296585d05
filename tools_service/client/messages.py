"""What a client asks and what it gets: requests, results, and how they look on the wire."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from tools_service.proto import tools_pb2 as pb

_BATCH_BYTES = 32 << 20  # a batch is cut so that its pictures stay below this
_BATCH_ITEMS = 1024

Kind = Literal["exec", "text_search", "image_search"]


class Status(enum.Enum):
    OK = "ok"
    ERROR = "error"  # the code raised
    TIMEOUT = "timeout"
    OOM = "oom"
    CRASHED = "crashed"
    OUTPUT_LIMIT = "output_limit"
    SESSION_LOST = "session_lost"  # not executed: the state that the code counted on is gone
    REFUSED = "refused"  # not executed: the request is wrong
    UNAVAILABLE = "unavailable"  # infrastructure; may be tried again
    CANCELLED = "cancelled"  # stopped because this client was gone for a while; may have run in part


@dataclass(frozen=True)
class ExecRequest:
    request_id: str
    session_id: str
    code: str
    timeout_s: float
    images: tuple[bytes, ...] = ()  # encoded input pictures; bound to image_1 .. image_n when the session is created


@dataclass(frozen=True)
class TextSearchRequest:
    request_id: str
    query: str
    k: int


@dataclass(frozen=True)
class ImageSearchRequest:
    request_id: str
    image: bytes
    k: int


Request = ExecRequest | TextSearchRequest | ImageSearchRequest


@dataclass(frozen=True)
class SearchItem:
    title: str
    url: str
    snippet: str
    date: str
    thumbnail: bytes | None  # PNG


@dataclass(frozen=True)
class ToolResult:
    request_id: str
    kind: Kind
    status: Status
    stdout: str = ""
    stderr: str = ""
    images: tuple[bytes, ...] = ()  # PNG, or WebP where the client asked for it
    items: tuple[SearchItem, ...] = ()
    message: str = ""
    restarted: bool = False  # this cell ran in a fresh namespace after an earlier one was lost
    queue_ms: float = 0.0
    wall_ms: float = 0.0
    session_alive: bool = False  # variables are still there for the next cell
    generation: int = 0  # namespaces that this session has had
    isolation: str = ""  # tier in force
    image_sizes: tuple[tuple[int, int], ...] = ()  # width, height in pixels, of images
    provider: str = ""  # that answered a search
    degraded: bool = False  # the first provider of the chain did not
    cached: bool = False  # replayed from an earlier answer


def kind_of(request: Request) -> Kind:
    if isinstance(request, ExecRequest):
        return "exec"
    return "text_search" if isinstance(request, TextSearchRequest) else "image_search"


def digest(image: bytes) -> bytes:
    return hashlib.sha256(image).digest()


def failure(request: Request, status: Status, message: str) -> ToolResult:
    return ToolResult(request.request_id, kind_of(request), status, message=message)


def read_result(request: Request, reply: pb.Result) -> ToolResult:
    return ToolResult(
        reply.request_id,
        kind_of(request),
        Status[pb.Status.Name(reply.status)],
        reply.stdout,
        reply.stderr,
        tuple(reply.images),
        tuple(SearchItem(i.title, i.url, i.snippet, i.date, i.thumbnail or None) for i in reply.items),
        reply.message,
        reply.restarted,
        reply.queue_ms,
        reply.wall_ms,
        reply.session_alive,
        reply.generation,
        reply.isolation,
        tuple((info.width, info.height) for info in reply.image_infos),
        reply.provider,
        reply.degraded,
        reply.cached,
    )


def search_batch(requests: Sequence[TextSearchRequest | ImageSearchRequest]) -> pb.BatchSearchRequest:
    message = pb.BatchSearchRequest()
    for request in requests:
        item = message.items.add(request_id=request.request_id, k=request.k)
        if isinstance(request, TextSearchRequest):
            item.text.query = request.query
        else:
            item.image.image = request.image
    return message


def cut(requests: Iterable[Request]) -> Iterable[list[Request]]:
    """Batches that stay below the service's limits on items and, counting each picture once, on bytes."""
    batch: list[Request] = []
    seen: set[int] = set()
    size = 0
    for request in requests:
        pictures = (
            request.images if isinstance(request, ExecRequest) else getattr(request, "image", b"") and (request.image,)
        )
        fresh = [p for p in pictures or () if id(p) not in seen]
        if len(batch) == _BATCH_ITEMS or (batch and size + sum(map(len, fresh)) > _BATCH_BYTES):
            yield batch
            batch, seen, size = [], set(), 0
            fresh = list(pictures or ())
        batch.append(request)
        seen.update(map(id, fresh))
        size += sum(map(len, fresh))
    if batch:
        yield batch
