"""Local chat endpoints."""

import pytest

from benchmarks.chat_server import ChatServer


@pytest.fixture
def serve():
    """Returns a function that starts a `ChatServer`, which is closed after the test."""
    opened = []

    def start(reply, **fields):
        opened.append(ChatServer(reply if callable(reply) else lambda body, number: reply, **fields))
        return opened[-1]

    yield start
    for server in opened:
        server.close()
