from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Status(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATUS_UNSPECIFIED: _ClassVar[Status]
    OK: _ClassVar[Status]
    ERROR: _ClassVar[Status]
    TIMEOUT: _ClassVar[Status]
    OOM: _ClassVar[Status]
    CRASHED: _ClassVar[Status]
    OUTPUT_LIMIT: _ClassVar[Status]
    SESSION_LOST: _ClassVar[Status]
    REFUSED: _ClassVar[Status]
    UNAVAILABLE: _ClassVar[Status]
    MISSING_IMAGES: _ClassVar[Status]
    CANCELLED: _ClassVar[Status]

class ImageFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PNG: _ClassVar[ImageFormat]
    WEBP: _ClassVar[ImageFormat]
STATUS_UNSPECIFIED: Status
OK: Status
ERROR: Status
TIMEOUT: Status
OOM: Status
CRASHED: Status
OUTPUT_LIMIT: Status
SESSION_LOST: Status
REFUSED: Status
UNAVAILABLE: Status
MISSING_IMAGES: Status
CANCELLED: Status
PNG: ImageFormat
WEBP: ImageFormat

class ExecRequest(_message.Message):
    __slots__ = ("request_id", "session_id", "code", "timeout_s", "image_digests", "images", "expects_state", "image_format")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    IMAGE_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    EXPECTS_STATE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FORMAT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    session_id: str
    code: str
    timeout_s: float
    image_digests: _containers.RepeatedScalarFieldContainer[bytes]
    images: _containers.RepeatedScalarFieldContainer[bytes]
    expects_state: bool
    image_format: ImageFormat
    def __init__(self, request_id: _Optional[str] = ..., session_id: _Optional[str] = ..., code: _Optional[str] = ..., timeout_s: _Optional[float] = ..., image_digests: _Optional[_Iterable[bytes]] = ..., images: _Optional[_Iterable[bytes]] = ..., expects_state: _Optional[bool] = ..., image_format: _Optional[_Union[ImageFormat, str]] = ...) -> None: ...

class ImageInfo(_message.Message):
    __slots__ = ("mime", "width", "height")
    MIME_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    mime: str
    width: int
    height: int
    def __init__(self, mime: _Optional[str] = ..., width: _Optional[int] = ..., height: _Optional[int] = ...) -> None: ...

class BatchExecRequest(_message.Message):
    __slots__ = ("items", "images")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[ExecRequest]
    images: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, items: _Optional[_Iterable[_Union[ExecRequest, _Mapping]]] = ..., images: _Optional[_Iterable[bytes]] = ...) -> None: ...

class TextQuery(_message.Message):
    __slots__ = ("query",)
    QUERY_FIELD_NUMBER: _ClassVar[int]
    query: str
    def __init__(self, query: _Optional[str] = ...) -> None: ...

class ImageQuery(_message.Message):
    __slots__ = ("image",)
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    def __init__(self, image: _Optional[bytes] = ...) -> None: ...

class SearchRequest(_message.Message):
    __slots__ = ("request_id", "k", "text", "image")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    K_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    k: int
    text: TextQuery
    image: ImageQuery
    def __init__(self, request_id: _Optional[str] = ..., k: _Optional[int] = ..., text: _Optional[_Union[TextQuery, _Mapping]] = ..., image: _Optional[_Union[ImageQuery, _Mapping]] = ...) -> None: ...

class BatchSearchRequest(_message.Message):
    __slots__ = ("items",)
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[SearchRequest]
    def __init__(self, items: _Optional[_Iterable[_Union[SearchRequest, _Mapping]]] = ...) -> None: ...

class SearchItem(_message.Message):
    __slots__ = ("title", "url", "snippet", "date", "thumbnail", "score")
    TITLE_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    SNIPPET_FIELD_NUMBER: _ClassVar[int]
    DATE_FIELD_NUMBER: _ClassVar[int]
    THUMBNAIL_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    title: str
    url: str
    snippet: str
    date: str
    thumbnail: bytes
    score: float
    def __init__(self, title: _Optional[str] = ..., url: _Optional[str] = ..., snippet: _Optional[str] = ..., date: _Optional[str] = ..., thumbnail: _Optional[bytes] = ..., score: _Optional[float] = ...) -> None: ...

class Result(_message.Message):
    __slots__ = ("request_id", "status", "message", "queue_ms", "wall_ms", "stdout", "stderr", "images", "restarted", "session_alive", "generation", "isolation", "missing_digests", "image_infos", "items", "provider", "degraded", "cached")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    WALL_MS_FIELD_NUMBER: _ClassVar[int]
    STDOUT_FIELD_NUMBER: _ClassVar[int]
    STDERR_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    RESTARTED_FIELD_NUMBER: _ClassVar[int]
    SESSION_ALIVE_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    ISOLATION_FIELD_NUMBER: _ClassVar[int]
    MISSING_DIGESTS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_INFOS_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    CACHED_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    status: Status
    message: str
    queue_ms: float
    wall_ms: float
    stdout: str
    stderr: str
    images: _containers.RepeatedScalarFieldContainer[bytes]
    restarted: bool
    session_alive: bool
    generation: int
    isolation: str
    missing_digests: _containers.RepeatedScalarFieldContainer[bytes]
    image_infos: _containers.RepeatedCompositeFieldContainer[ImageInfo]
    items: _containers.RepeatedCompositeFieldContainer[SearchItem]
    provider: str
    degraded: bool
    cached: bool
    def __init__(self, request_id: _Optional[str] = ..., status: _Optional[_Union[Status, str]] = ..., message: _Optional[str] = ..., queue_ms: _Optional[float] = ..., wall_ms: _Optional[float] = ..., stdout: _Optional[str] = ..., stderr: _Optional[str] = ..., images: _Optional[_Iterable[bytes]] = ..., restarted: _Optional[bool] = ..., session_alive: _Optional[bool] = ..., generation: _Optional[int] = ..., isolation: _Optional[str] = ..., missing_digests: _Optional[_Iterable[bytes]] = ..., image_infos: _Optional[_Iterable[_Union[ImageInfo, _Mapping]]] = ..., items: _Optional[_Iterable[_Union[SearchItem, _Mapping]]] = ..., provider: _Optional[str] = ..., degraded: _Optional[bool] = ..., cached: _Optional[bool] = ...) -> None: ...

class InterruptRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class InterruptReply(_message.Message):
    __slots__ = ("interrupted",)
    INTERRUPTED_FIELD_NUMBER: _ClassVar[int]
    interrupted: bool
    def __init__(self, interrupted: _Optional[bool] = ...) -> None: ...

class CloseSessionsRequest(_message.Message):
    __slots__ = ("session_ids",)
    SESSION_IDS_FIELD_NUMBER: _ClassVar[int]
    session_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, session_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class CloseSessionsReply(_message.Message):
    __slots__ = ("closed",)
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    closed: int
    def __init__(self, closed: _Optional[int] = ...) -> None: ...

class GetInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Info(_message.Message):
    __slots__ = ("version", "tier", "json")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    JSON_FIELD_NUMBER: _ClassVar[int]
    version: str
    tier: str
    json: str
    def __init__(self, version: _Optional[str] = ..., tier: _Optional[str] = ..., json: _Optional[str] = ...) -> None: ...
