"""Decodes requests so that a poisoned item of a batch is refused by itself.

Protobuf rejects an entire message if one of its strings is no UTF-8, which would fail a batch for all its items.
Such a message is decoded again by a schema with the same wire format that has bytes in place of strings and of items.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from tools_service.proto import tools_pb2 as pb

_LENIENT_PACKAGE = "tools.v1.lenient"
_ITEMS = {"BatchExecRequest": pb.ExecRequest, "BatchSearchRequest": pb.SearchRequest}
_METHODS = {"Exec": pb.ExecRequest, "BatchExec": pb.BatchExecRequest, "BatchSearch": pb.BatchSearchRequest}


@dataclass(frozen=True)
class DecodedRequest:
    """A request with the faults of its items: index → sentence. The item of `Exec` has index 0."""

    message: Any  # pb.ExecRequest | pb.BatchExecRequest | pb.BatchSearchRequest
    faults: Mapping[int, str]


class RequestDecodingInterceptor(grpc.aio.ServerInterceptor):
    """Makes the methods that take items receive a `DecodedRequest`."""

    async def intercept_service(self, continuation, details):
        handler = await continuation(details)
        service, _, method = details.method.strip("/").partition("/")
        if handler is None or method not in _METHODS or service != pb.DESCRIPTOR.services_by_name["Tools"].full_name:
            return handler
        return handler._replace(request_deserializer=functools.partial(decode_request, _METHODS[method]))


def decode_request(message_class: type[Message], data: bytes) -> DecodedRequest:
    """Decodes a request. Raises DecodeError if `data` is no protobuf message of this shape at all."""
    try:
        return DecodedRequest(message_class.FromString(data), {})
    except DecodeError:
        item_class = _ITEMS.get(message_class.DESCRIPTOR.name)
        if item_class is None:
            message, fault = _decode_item(message_class, data)
            return DecodedRequest(message, {0: fault} if fault else {})
    lenient = _lenient_class(message_class.DESCRIPTOR.name).FromString(data)
    batch, faults = message_class(), {}
    for index, raw in enumerate(lenient.items):
        item, fault = _decode_item(item_class, raw)
        batch.items.append(item)
        if fault:
            faults[index] = fault
    if message_class is pb.BatchExecRequest:
        batch.images.extend(lenient.images)
    return DecodedRequest(batch, faults)


def _decode_item(message_class: type[Message], data: bytes) -> tuple[Message, str]:
    """Returns the message with its invalid strings repaired, and what was wrong with it; empty if nothing was."""
    try:
        lenient = _lenient_class(message_class.DESCRIPTOR.name).FromString(data)
    except DecodeError:
        return message_class(), f"the item is no {message_class.DESCRIPTOR.name} message"
    faults = list(_repair_strings(lenient, message_class.DESCRIPTOR))
    return message_class.FromString(lenient.SerializeToString()), "; ".join(faults)


def _repair_strings(lenient: Message, strict_descriptor) -> list[str]:
    """Replaces invalid bytes in every field that is a string in the strict schema; returns a sentence for each."""
    faults = []
    for field, value in lenient.ListFields():
        strict = strict_descriptor.fields_by_name[field.name]
        if strict.type == FieldDescriptor.TYPE_MESSAGE and not strict.is_repeated:
            faults += _repair_strings(value, strict.message_type)
        elif strict.type == FieldDescriptor.TYPE_STRING and not strict.is_repeated:
            try:
                value.decode()
            except UnicodeDecodeError as error:
                faults.append(f"{field.name} is not valid UTF-8 at byte {error.start}: {error.reason}")
                setattr(lenient, field.name, value.decode("utf-8", "replace").encode())
    return faults


@functools.cache
def _lenient_class(name: str) -> type[Message]:
    return message_factory.GetMessageClass(_lenient_pool().FindMessageTypeByName(f"{_LENIENT_PACKAGE}.{name}"))


@functools.cache
def _lenient_pool() -> descriptor_pool.DescriptorPool:
    """Builds the schema with bytes in place of strings and of the items of batches."""
    file = descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(file)
    strict_package = file.package
    file.name, file.package = "tools_lenient.proto", _LENIENT_PACKAGE
    del file.service[:]
    for message in file.message_type:
        for field in message.field:
            if field.type == field.TYPE_STRING or (field.name == "items" and message.name in _ITEMS):
                field.type = field.TYPE_BYTES
                field.ClearField("type_name")
            elif field.type_name:
                field.type_name = field.type_name.replace(f".{strict_package}.", f".{_LENIENT_PACKAGE}.", 1)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool
