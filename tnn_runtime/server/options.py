"""How a server takes requests, and how it ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["MAX_BODY_BYTES", "MAX_IMAGES", "MEBIBYTE", "HttpOptions", "ServeOptions"]

MEBIBYTE = 1 << 20

MAX_BODY_BYTES = 64 * MEBIBYTE
"""How large a request may be if nothing is said."""

MAX_IMAGES = 1024
"""How many images it may have."""


@dataclass(frozen=True)
class HttpOptions:
    """How the application over HTTP takes requests.

    Args:
        max_body_bytes: How large a body may be, as it comes and uncompressed.
        body_timeout_s: Seconds within which a body must have come.
        token: What requests must carry as ``Authorization: Bearer TOKEN``, but for those about health; ``None`` for
            nothing.
    """

    max_body_bytes: int = MAX_BODY_BYTES
    body_timeout_s: float = 60.0
    token: str | None = None


@dataclass(frozen=True)
class ServeOptions:
    """How a process serves.

    Args:
        http: How requests over HTTP are taken; gRPC has the same limit and token.
        ready_delay_s: Seconds for which a server that is told to end says that it is not ready, and takes all requests.
        drain_s: Seconds that requests have after that to be answered, at most.
        tls: The certificate with its chain, and its private key, each a PEM file; ``None`` for no TLS.
    """

    http: HttpOptions = field(default_factory=HttpOptions)
    ready_delay_s: float = 5.0
    drain_s: float = 30.0
    tls: tuple[Path, Path] | None = None
