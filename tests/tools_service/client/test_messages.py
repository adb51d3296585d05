"""Requests that cannot be put on the wire, results that this client does not know, and the size of batches."""

from __future__ import annotations

import pytest

from tools_service.client import ExecRequest, ImageSearchRequest, Status, TextSearchRequest, messages
from tools_service.proto import tools_pb2 as pb

POISONED = [
    (ExecRequest("r", "s", "print('\ud83d')", 5.0), "code has a lone surrogate at character 7"),
    (ExecRequest("r", "s\udfff", "1", 5.0), "session_id has a lone surrogate at character 1"),
    (ExecRequest("r", "s", None, 5.0), "code is NoneType, not a text"),
    (ExecRequest("r", "s", "1", "5"), "timeout_s '5' is no number"),
    (ExecRequest("r", "s", "1", 5.0, ("image",)), "an image is str, not bytes"),
    (ExecRequest("r", "s", "1", 5.0, (bytes(64 << 20),)), "the request has 64 MB; the limit is 63 MB"),
    (ExecRequest("r", "s", "#" * (64 << 20), 5.0), "the request has 64 MB; the limit is 63 MB"),
    (TextSearchRequest("r", "a \ud83d", 5), "query has a lone surrogate at character 2"),
    (TextSearchRequest("r", ["iron"], 5), "query is list, not a text"),
    (TextSearchRequest("r", "iron", -1), "k -1 must be a positive integer"),
    (TextSearchRequest("r", "iron", 2.0), "k 2.0 must be a positive integer"),
    (TextSearchRequest("r", "iron", True), "k True must be a positive integer"),
    (TextSearchRequest("r", "iron", 1 << 32), "k 4294967296 must be a positive integer"),
    (ImageSearchRequest("r", None, 5), "an image is NoneType, not bytes"),
]


@pytest.mark.parametrize(("request_", "said"), POISONED, ids=[said for _, said in POISONED])
def test_find_fault__names_what_cannot_be_encoded(request_, said):
    """Catches: a request that raises inside protobuf or gRPC and takes its batch along."""
    assert said in messages.find_fault(request_)


@pytest.mark.parametrize(
    "request_",
    [
        ExecRequest("r", "s", "print('\x00 \U0001f600 \ufffe')", float("nan")),
        ExecRequest("r", "", "", 5),
        TextSearchRequest("r", "\x00", 0),
        ImageSearchRequest("r", b"", 100),
    ],
)
def test_find_fault__leaves_the_judgment_of_what_can_be_encoded_to_the_service(request_):
    """Catches: a client that refuses more than it must; protobuf is the oracle of what can be encoded."""
    assert messages.find_fault(request_) == ""
    if isinstance(request_, ExecRequest):
        pb.ExecRequest(session_id=request_.session_id, code=request_.code, timeout_s=request_.timeout_s)
    else:
        messages.search_batch([request_]).SerializeToString()


@pytest.mark.parametrize("status", [0, 10, 99])
def test_from_proto__unknown_status_is_a_failure_of_that_request(status):
    """Catches: a newer service whose unknown status raises and fails every request of the batch."""
    result = messages.from_proto(TextSearchRequest("r", "q", 1), pb.Result(request_id="r", status=status))
    assert (result.status, result.request_id) == (Status.UNAVAILABLE, "r") and str(status) in result.message


def test_from_proto__every_status_of_the_protocol_is_known():
    """Catches: a status that was added to the protocol and not to the client."""
    silent = {"STATUS_UNSPECIFIED", "MISSING_IMAGES"}  # the first is never sent, the second is answered by the client
    assert set(pb.Status.keys()) - silent == set(Status.__members__)


def test_split_batches__messages_with_much_text_stay_below_the_limit():
    """Catches: a batch of long cells whose message exceeds the limit of gRPC and is rejected as one."""
    requests = [ExecRequest(f"r{i}", "s", "#" * (200 << 10), 5.0) for i in range(600)]
    batches = list(messages.split_batches(requests))
    assert [r for batch in batches for r in batch] == requests and len(batches) > 1
    for batch in batches:
        message = pb.BatchExecRequest(items=[pb.ExecRequest(request_id=r.request_id, code=r.code) for r in batch])
        assert message.ByteSize() < messages.MAX_MESSAGE_BYTES
