"""The outcome of one cell as plain data, from which the result on the wire is built once."""

from __future__ import annotations

from dataclasses import dataclass

from tools_service.proto import tools_pb2 as pb


class NotExecuted(Exception):
    """The cell was not started; `status` and the text become the result."""

    def __init__(self, status: pb.Status, message: str):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class DisplayedImage:
    """An encoded image that a cell displayed, after validation."""

    data: bytes
    mime: str
    width: int  # pixels
    height: int


@dataclass(frozen=True)
class CellOutcome:
    """The status of a cell with everything that its caller reads. Times are in milliseconds."""

    status: pb.Status
    message: str = ""
    stdout: str = ""
    stderr: str = ""
    images: tuple[DisplayedImage, ...] = ()
    restarted: bool = False  # the cell ran in a new namespace after the previous one was lost
    queue_ms: float = 0.0
    wall_ms: float = 0.0
    session_alive: bool = False
    generation: int = 0

    def to_result(self, request_id: str, isolation: str) -> pb.Result:
        """Builds the message for the caller. `isolation` is the tier in force."""
        return pb.Result(
            request_id=request_id,
            isolation=isolation,
            status=self.status,
            message=self.message,
            stdout=self.stdout,
            stderr=self.stderr,
            images=[image.data for image in self.images],
            image_infos=[pb.ImageInfo(mime=i.mime, width=i.width, height=i.height) for i in self.images],
            restarted=self.restarted,
            queue_ms=self.queue_ms,
            wall_ms=self.wall_ms,
            session_alive=self.session_alive,
            generation=self.generation,
        )
