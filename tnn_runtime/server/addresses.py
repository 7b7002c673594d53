"""Addresses to listen on."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass

from tnn_runtime.errors import UsageError
from tnn_runtime.options import shown

__all__ = ["BACKLOG", "Address"]

_HOST_PORT = re.compile(r"(?:\[(?P<six>[^\]]+)\]|(?P<host>[^:\[\]]+)):(?P<port>[0-9]{1,5})")
BACKLOG = 2048
"""Connections that may wait to be accepted."""


@dataclass(frozen=True)
class Address:
    """An address of this machine.

    Args:
        host: The name or number of the host.
        port: The port; 0 for any that is free.
    """

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, option: str) -> Address:
        """Return the address that an option gives.

        Raises:
            UsageError: If it is none.
        """
        found = _HOST_PORT.fullmatch(text)
        if found is None or int(found["port"]) > 65535:
            raise UsageError(
                f"got {option} {shown(text)}; expected HOST:PORT, such as 127.0.0.1:8000, [::1]:8000 or, for all "
                "addresses of this machine, 0.0.0.0:8000"
            )
        return cls(found["six"] or found["host"], int(found["port"]))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def bind(self, *, shared: bool = False) -> socket.socket:
        """Return a socket with this address, which does not listen yet.

        Args:
            shared: Whether other sockets may have the same address, if they ask for that, too.

        Raises:
            UsageError: If the address is not one of this machine, or is taken.
        """
        try:
            (family, kind, protocol, _, where), *_ = socket.getaddrinfo(
                self.host, self.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
            found = socket.socket(family, kind, protocol)  # asyncio turns Nagle's algorithm off for TCP by its name
        except OSError as error:
            raise self._refusal(error) from None
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            found.bind(where)
        except OSError as error:
            found.close()
            raise self._refusal(error) from None
        return found

    def listen(self, bound: socket.socket) -> None:
        """Let a socket of this address listen.

        Raises:
            UsageError: If another one has begun to since it was bound.
        """
        try:
            bound.listen(BACKLOG)
        except OSError as error:
            raise self._refusal(error) from None

    def at(self, bound: socket.socket) -> Address:
        """Return this address with the port that a socket has got."""
        return Address(self.host, bound.getsockname()[1])

    def _refusal(self, error: OSError) -> UsageError:
        return UsageError(
            f"cannot listen on {self} ({error.strerror or error}); choose an address of this machine and a free port"
        )
