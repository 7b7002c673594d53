"""With which status the protocol answers each error, over HTTP and over gRPC."""

from __future__ import annotations

from typing import NamedTuple

from tnn_runtime.errors import InputError, NotAnswered, TnnError, UsageError

__all__ = [
    "BadRequest",
    "NotAllowed",
    "RequestTimeout",
    "RequestTooLarge",
    "Status",
    "UnknownModel",
    "UnsupportedBody",
    "WrongToken",
    "status_of",
]


class BadRequest(UsageError):
    """A request that is not of the protocol, or asks for what the model does not have."""

    code = "bad_request"


class UnknownModel(BadRequest):
    """A model or version that is not served here."""

    code = "unknown_model"


class RequestTooLarge(BadRequest):
    """A body that is larger than the server takes, as it came or uncompressed."""

    code = "too_large"


class RequestTimeout(BadRequest):
    """A body that does not come in time."""

    code = "request_timeout"


class WrongToken(BadRequest):
    """A request without the token of the server."""

    code = "wrong_token"


class NotAllowed(BadRequest):
    """What this server does not do for requests."""

    code = "not_allowed"


class UnsupportedBody(BadRequest):
    """A body in a form or an encoding that the server does not read."""

    code = "unsupported_body"


class Status(NamedTuple):
    """The status of a kind of error.

    Args:
        http: The status code of HTTP.
        grpc: The name of the status code of gRPC.
    """

    http: int
    grpc: str


_STATUSES: dict[type[TnnError], Status] = {
    UnknownModel: Status(404, "NOT_FOUND"),
    RequestTooLarge: Status(413, "RESOURCE_EXHAUSTED"),
    UnsupportedBody: Status(415, "INVALID_ARGUMENT"),
    RequestTimeout: Status(408, "DEADLINE_EXCEEDED"),
    WrongToken: Status(401, "UNAUTHENTICATED"),
    NotAllowed: Status(403, "PERMISSION_DENIED"),
    UsageError: Status(400, "INVALID_ARGUMENT"),
    InputError: Status(400, "INVALID_ARGUMENT"),
    NotAnswered: Status(503, "UNAVAILABLE"),
    TnnError: Status(500, "INTERNAL"),
}
"""A kind of error that is not in here has the status of the nearest one that it derives from."""


def status_of(error: TnnError) -> Status:
    """Return the status that a request with this error gets."""
    return next(_STATUSES[kind] for kind in type(error).__mro__ if kind in _STATUSES)
