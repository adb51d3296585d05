"""A caller that goes away: log line, end of the span and abandonment come at once, not at garbage collection."""

from __future__ import annotations

import asyncio
import gc
import json

import pytest

from tools_service.common import logs
from tools_service.proto import tools_pb2 as pb
from tools_service.server import options as command_line
from tools_service.server import servicer
from tools_service.server.admission import AdmissionController
from tools_service.server.request_decoder import DecodedRequest


class StubProviders:
    """Search that never answers the query `hang`."""

    async def search(self, request: pb.SearchRequest) -> pb.Result:
        if request.text.query == "hang":
            await asyncio.Event().wait()
        return pb.Result(request_id=request.request_id, status=pb.OK)

    async def close(self) -> None:
        pass


class StubContext:
    """The context of one RPC; with `stalled`, the caller does not read, so `write` never returns."""

    def __init__(self, stalled: bool = False):
        self._stalled, self.written = stalled, asyncio.Event()

    async def write(self, result: pb.Result) -> None:
        self.written.set()
        if self._stalled:
            await asyncio.Event().wait()

    def time_remaining(self) -> None:
        return None

    def invocation_metadata(self) -> tuple:
        return ()

    def peer_identities(self) -> tuple:
        return ()


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A service without sandbox; every generator of results is referenced, so that only an explicit close ends it."""
    spans = tmp_path / "spans.jsonl"
    options = command_line.parse(["--no-sandbox", "--traces", str(spans)])
    kept, events = [], []
    original = servicer.ToolsService._stream_results

    def keep(*args):
        kept.append(original(*args))
        return kept[-1]

    monkeypatch.setattr(servicer.ToolsService, "_stream_results", keep)
    monkeypatch.setattr(logs, "event", lambda name, **fields: events.append(fields))
    gc.disable()
    yield servicer.ToolsService(options, None, StubProviders(), AdmissionController(1, 1)), kept, events, spans
    gc.enable()


def batch(*queries: str) -> DecodedRequest:
    items = [pb.SearchRequest(request_id=f"r{i}", k=1, text=pb.TextQuery(query=q)) for i, q in enumerate(queries)]
    return DecodedRequest(pb.BatchSearchRequest(items=items), {})


def test_exec__its_generator_is_closed_when_the_result_is_returned(tools):
    """Catches: `return` out of `async for`, which leaves the log line and the span to the garbage collector."""
    service, kept, events, spans = tools

    async def call() -> None:
        request = DecodedRequest(pb.ExecRequest(request_id="a", session_id="s", code="1"), {})
        result = await service.Exec(request, StubContext())
        assert result.status == pb.REFUSED and "without a sandbox" in result.message
        assert kept[0].ag_frame is None and len(events) == 1
        assert events[0]["abandoned"] == 0 and events[0]["statuses"] == {"REFUSED": 1}
        await service.close()

    asyncio.run(call())
    assert [json.loads(line)["name"] for line in spans.read_text().splitlines()] == ["tools/exec"]


@pytest.mark.parametrize("stalled", [True, False], ids=["while a result is written", "while a search runs"])
def test_batch__is_abandoned_when_its_caller_disconnects(tools, stalled, monkeypatch):
    """Catches: cells that run on after a disconnect, because gRPC canceled the call while a result was being written."""
    service, kept, events, _ = tools
    stopped = []
    monkeypatch.setattr(servicer, "_ABANDON_GRACE_S", 0.0)
    monkeypatch.setattr(
        servicer.ToolsService, "_stop_abandoned", lambda self, item, call: stopped.append(item.request_id)
    )

    async def call() -> None:
        context = StubContext(stalled)
        task = asyncio.ensure_future(service.BatchSearch(batch("quick", "hang"), context))
        await context.written.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert kept[0].ag_frame is None
        assert [(event["items"], event["abandoned"]) for event in events] == [(2, 1)]
        await asyncio.sleep(0.01)
        assert stopped == ["r0", "r1"]

    asyncio.run(call())
