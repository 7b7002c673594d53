"""Addresses to listen on."""

from __future__ import annotations

import socket

import pytest

from tnn_runtime import UsageError
from tnn_runtime.server.addresses import Address


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("127.0.0.1:8000", "127.0.0.1", 8000), ("[::1]:0", "::1", 0), ("localhost:65535", "localhost", 65535)],
)
def test_an_address_is_read_and_told(text: str, host: str, port: int) -> None:
    found = Address.parse(text, "--http")
    assert (found.host, found.port, str(found)) == (host, port, text)


@pytest.mark.parametrize(
    "text", ["", "8000", ":8000", "::1:8000", "[::1]", "a:b", "a:-1", "a:65536", "a:1:2", "a: 1", "a:٣"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected HOST:PORT"):
        Address.parse(text, "--grpc")


def test_connections_answer_without_delay() -> None:
    """asyncio sets TCP_NODELAY where the socket says that it is TCP: without it, an answer waits 40 ms for its body."""
    with Address("127.0.0.1", 0).bind() as bound:
        assert bound.proto == socket.IPPROTO_TCP


def test_a_shared_address_is_for_those_who_share() -> None:
    with Address("127.0.0.1", 0).bind(shared=True) as first:
        address = Address("127.0.0.1", 0).at(first)
        address.listen(first)
        with address.bind(shared=True) as second:
            address.listen(second)
        with pytest.raises(UsageError, match="cannot listen on .* in use"):
            address.bind()


def test_who_listens_first_has_the_address() -> None:
    with Address("127.0.0.1", 0).bind() as first:
        address = Address("127.0.0.1", 0).at(first)
        with address.bind() as second:
            address.listen(second)
            with pytest.raises(UsageError, match="cannot listen on .* in use"):
                address.listen(first)
