"""Poisoned requests: bytes on the wire that protobuf rejects, and their neighbors in a batch."""

from __future__ import annotations

import grpc
import pytest
from google.protobuf.message import DecodeError

from tests.tools_service.bench import Bench
from tools_service.client import ExecRequest, Status, TextSearchRequest, start_local_service
from tools_service.proto import tools_pb2 as pb
from tools_service.server.request_decoder import decode_request

_SERVICE = "/tools.v1.Tools/"


def field(number: int, value: bytes) -> bytes:
    """Encodes one length-delimited field of the protobuf wire format by hand."""

    def varint(n: int) -> bytes:
        return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)

    return varint(number << 3 | 2) + varint(len(value)) + value


def cell(request_id: bytes, code: bytes, session_id: bytes = b"s") -> bytes:
    return field(1, request_id) + field(2, session_id) + field(3, code)


def search(request_id: bytes, query: bytes, k: bytes = b"\x05") -> bytes:
    return field(1, request_id) + b"\x10" + k + field(3, field(1, query))


def test_decode_request__valid_messages_are_what_protobuf_reads():
    """Catches: a decoder that changes well-formed requests."""
    message = pb.BatchExecRequest(
        items=[pb.ExecRequest(request_id="a", code="é", image_digests=[b"\xff"])], images=[b"\xff"]
    )
    decoded = decode_request(pb.BatchExecRequest, message.SerializeToString())
    assert decoded.message == message and decoded.faults == {}


def test_decode_request__one_bad_string_leaves_the_other_items_as_they_are():
    """Catches: invalid UTF-8 in one item that fails the batch, or that is replaced and then executed."""
    data = (
        field(1, cell(b"a", b"1"))
        + field(1, cell(b"b", b"x = '\xff'"))
        + field(1, cell(b"c", b"3"))
        + field(2, b"\xff")
    )
    decoded = decode_request(pb.BatchExecRequest, data)
    assert [(item.request_id, item.code) for item in decoded.message.items] == [
        ("a", "1"),
        ("b", "x = '\ufffd'"),
        ("c", "3"),
    ]
    assert decoded.faults == {1: "code is not valid UTF-8 at byte 5: invalid start byte"}
    assert list(decoded.message.images) == [b"\xff"]


def test_decode_request__a_surrogate_in_a_nested_query_is_named():
    """Catches: CESU-8, which other languages write for a lone surrogate, in a field of a submessage."""
    decoded = decode_request(
        pb.BatchSearchRequest, field(1, search(b"a", b"\xed\xa0\xbd")) + field(1, search(b"b", b"iron"))
    )
    assert list(decoded.faults) == [0] and decoded.faults[0].startswith("query is not valid UTF-8")
    assert decoded.message.items[1].text.query == "iron"


def test_decode_request__garbage_items_are_faults_and_a_garbage_message_is_an_error():
    decoded = decode_request(pb.BatchExecRequest, field(1, b"\x0f\xff") + field(1, cell(b"b", b"2")))
    assert decoded.faults == {0: "the item is no ExecRequest message"} and decoded.message.items[1].code == "2"
    with pytest.raises(DecodeError):
        decode_request(pb.BatchExecRequest, b"\x0a\xff")


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("poisoned")
    (folder / "corpus.jsonl").write_text('{"title": "Iron", "text": "Iron melts at 1538 °C."}\n')
    arguments = ["--packages", "numpy,pillow", "--warm", "2"]
    service = start_local_service(text_index=folder / "corpus.jsonl", log_path=folder / "log.txt", extra_args=arguments)
    bench = Bench(service)
    yield bench
    bench.close()
    assert "Traceback" not in (folder / "log.txt").read_text()


def send(bench: Bench, method: str, data: bytes) -> dict[str, pb.Result]:
    with grpc.insecure_channel(bench.service.address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        if method == "Exec":
            call = channel.unary_unary(_SERVICE + method, None, pb.Result.FromString)
            return {"": call(data, timeout=60)}
        call = channel.unary_stream(_SERVICE + method, None, pb.Result.FromString)
        return {result.request_id: result for result in call(data, timeout=60)}


def test_service__bad_bytes_on_the_wire_refuse_their_item_alone(service):
    """Catches: a request that fails with INTERNAL for every item of its batch."""
    poisoned = [
        cell(b"p1", b"\xff\xfe"),
        cell(b"p2", b"1", b"s\xff"),
        cell(b"p\xff", b"1"),
        cell(b"p4", b"1") + b"\x40\x63",
    ]
    data = b"".join(field(1, item) for item in [cell(b"w1", b"print(1)"), *poisoned, cell(b"w2", b"print(2)")])
    results = send(service, "BatchExec", data)
    assert [results[name].stdout for name in ("w1", "w2")] == ["1\n", "2\n"]
    refused = {name: result.message for name, result in results.items() if result.status == pb.REFUSED}
    assert refused.keys() == {"p1", "p2", "p\ufffd", "p4"}
    assert "code is not valid UTF-8" in refused["p1"] and "session_id is not valid UTF-8" in refused["p2"]
    assert "image_format 99 is unknown" in refused["p4"]
    single = send(service, "Exec", cell(b"p5", b"\xff"))[""]
    assert single.status == pb.REFUSED and "code is not valid UTF-8" in single.message


def test_service__a_bad_query_on_the_wire_is_refused_alone(service):
    minus_one = b"\xff" * 9 + b"\x01"
    items = [search(b"w", b"iron"), search(b"p1", b"\xc3("), search(b"p2", b"iron", minus_one), search(b"p3", b"\x00")]
    results = send(service, "BatchSearch", b"".join(field(1, item) for item in items))
    assert results["w"].items[0].title == "Iron"
    assert {results[name].status for name in ("p1", "p2", "p3")} == {pb.REFUSED}
    assert all(results[name].message for name in ("p1", "p2", "p3"))


def test_client__poisoned_requests_are_refused_and_the_others_answered(service):
    """Catches: `UnicodeEncodeError` or `ValueError` in the client that fails every trajectory of the batch."""
    requests = [
        TextSearchRequest("c-w1", "iron", 3),
        TextSearchRequest("c-p1", "a \ud83d", 3),
        TextSearchRequest("c-p2", "iron", -1),
        TextSearchRequest("c-p3", "iron\x00" * (1 << 18), 3),
        ExecRequest("c-w2", "good", "print('\x00'.isprintable())", 20.0),
        ExecRequest("c-p4", "good", "'\udc80'", 20.0),
        ExecRequest("c-p5", "good", "#" * (64 << 20), 20.0),
        ExecRequest("c-w3", "good", "print(3)", 20.0),
    ]
    service.client.submit(requests)
    results = {result.request_id: result for result in service.results(len(requests))}
    assert {name for name, result in results.items() if result.status is Status.REFUSED} == {
        "c-p1",
        "c-p2",
        "c-p3",
        "c-p4",
        "c-p5",
    }
    assert results["c-w1"].items[0].title == "Iron" and results["c-w3"].stdout == "3\n"
    # CPython rejects a NUL in source code: that is an error of the code, and the session goes on.
    assert results["c-w2"].status is Status.ERROR and "null bytes" in results["c-w2"].stderr
    assert service.client.pending() == 0
