"""Requests and results of the client, and their conversion to and from protobuf messages."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from tools_service.common.status import Status
from tools_service.proto import tools_pb2 as pb

MAX_MESSAGE_BYTES = 64 << 20  # largest message that client and service accept
_BATCH_BYTES = 32 << 20  # maximum of images and text in a batch
_MAX_REQUEST_BYTES = MAX_MESSAGE_BYTES - (1 << 20)  # images and text of one request
_BATCH_ITEMS = 1024

Kind = Literal["exec", "text_search", "image_search"]


@dataclass(frozen=True)
class ExecRequest:
    kind: ClassVar[Kind] = "exec"
    request_id: str
    session_id: str
    code: str
    timeout_s: float
    images: tuple[bytes, ...] = ()  # encoded input images; bound to image_1 .. image_n when the session is created


@dataclass(frozen=True)
class TextSearchRequest:
    kind: ClassVar[Kind] = "text_search"
    request_id: str
    query: str
    k: int


@dataclass(frozen=True)
class ImageSearchRequest:
    kind: ClassVar[Kind] = "image_search"
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
    kind: str  # `kind` of the request
    status: Status
    stdout: str = ""
    stderr: str = ""
    images: tuple[bytes, ...] = ()  # PNG, or WebP where the client asked for it
    items: tuple[SearchItem, ...] = ()
    message: str = ""
    restarted: bool = False  # this cell ran in a new namespace after the previous one was lost
    queue_ms: float = 0.0
    wall_ms: float = 0.0
    session_alive: bool = False  # the namespace persists for the next cell
    generation: int = 0  # number of namespaces that this session has had
    isolation: str = ""  # isolation tier in force
    image_sizes: tuple[tuple[int, int], ...] = ()  # (width, height) of `images`, pixels
    provider: str = ""  # search provider that answered
    degraded: bool = False  # the first provider of the chain failed, another answered
    cached: bool = False  # replayed from an earlier answer


def image_digest(image: bytes) -> bytes:
    return hashlib.sha256(image).digest()


def failed_result(request: Request, status: Status, message: str) -> ToolResult:
    return ToolResult(request.request_id, request.kind, status, message=message)


def from_proto(request: Request, reply: pb.Result) -> ToolResult:
    """Converts the result of `request`; a status that this client does not know becomes UNAVAILABLE."""
    name = pb.Status.Name(reply.status) if reply.status in pb.Status.values() else ""
    if name not in Status.__members__:
        message = f"status {reply.status} of the service is unknown here: use a client of the service's version"
        return failed_result(request, Status.UNAVAILABLE, message)
    status = Status[name]
    return ToolResult(
        reply.request_id,
        request.kind,
        status,
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


def find_fault(request: Request) -> str:
    """Returns why the request cannot be put on the wire, as a sentence; an empty string if it can."""
    texts = {"request_id": request.request_id}
    if isinstance(request, ExecRequest):
        texts |= {"session_id": request.session_id, "code": request.code}
        if not _is_number(request.timeout_s):
            return f"timeout_s {request.timeout_s!r:.80} is no number of seconds"
    else:
        if isinstance(request, TextSearchRequest):
            texts["query"] = request.query
        if isinstance(request.k, bool) or not isinstance(request.k, int) or not 0 <= request.k < 1 << 32:
            return f"k {request.k!r:.80} must be a positive integer"
    for name, text in texts.items():
        if not isinstance(text, str):
            return f"{name} is {type(text).__name__}, not a text"
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return f"{name} has a lone surrogate at character {error.start} and cannot be encoded as UTF-8"
    for image in _request_images(request):
        if not isinstance(image, bytes):
            return f"an image is {type(image).__name__}, not bytes"
    if (size := _request_bytes(request)) > _MAX_REQUEST_BYTES:
        return f"the request has {size >> 20} MB; the limit is {_MAX_REQUEST_BYTES >> 20} MB"
    return ""


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _request_bytes(request: Request) -> int:
    """Returns the size of the request's images and text, each distinct image counted once."""
    return sum(map(len, set(_request_images(request)))) + _text_bytes(request)


def _text_bytes(request: Request) -> int:
    if isinstance(request, ExecRequest):
        return len(request.code.encode())
    return len(request.query.encode()) if isinstance(request, TextSearchRequest) else 0


def _request_images(request: Request) -> tuple[bytes, ...]:
    if isinstance(request, ExecRequest):
        return request.images
    return (request.image,) if isinstance(request, ImageSearchRequest) else ()


def split_batches(requests: Iterable[Request]) -> Iterable[list[Request]]:
    """Splits requests into batches below the limits on items and on bytes (each distinct image counted once)."""
    batch: list[Request] = []
    seen: set[int] = set()
    size = 0
    for request in requests:
        images = _request_images(request)
        new = [image for image in images if id(image) not in seen]
        text = _text_bytes(request)
        if len(batch) == _BATCH_ITEMS or (batch and size + text + sum(map(len, new)) > _BATCH_BYTES):
            yield batch
            batch, seen, size = [], set(), 0
            new = list(images)
        batch.append(request)
        seen.update(map(id, new))
        size += text + sum(map(len, new))
    if batch:
        yield batch
