"""A client of OpenAI-compatible chat endpoints: judges, evaluated models, teachers.

`ChatEndpoint.complete` is one request with retries; a `ReplyJournal` stores each reply, so that none is requested twice.
"""

from dv2_jax.endpoint.chat_endpoint import ChatEndpoint, EndpointNames, EndpointOutage, EndpointUnavailable
from dv2_jax.endpoint.chat_messages import chat_content, image_part
from dv2_jax.endpoint.chat_reply import ChatReply, request_digest
from dv2_jax.endpoint.rate_limit import RateLimit
from dv2_jax.endpoint.reply_journal import ReplyJournal

__all__ = [
    "ChatEndpoint", "ChatReply", "EndpointNames", "EndpointOutage", "EndpointUnavailable", "RateLimit",
    "ReplyJournal", "chat_content", "image_part", "request_digest",
]  # fmt: skip
