"""With which status the protocol answers each error, over HTTP and over gRPC."""

from __future__ import annotations

import logging
from typing import NamedTuple

from tnn_runtime.errors import InputError, NotAnswered, ResourcesExhausted, TnnError, UsageError
from tnn_runtime.text import one_line

__all__ = [
    "BadRequest",
    "NotAllowed",
    "RequestTimeout",
    "RequestTooLarge",
    "Status",
    "UnknownModel",
    "UnsupportedBody",
    "WrongToken",
    "client_error",
    "message_of",
    "status_of",
]

_LOG = logging.getLogger(__name__)
_LONGEST = 500


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


def client_error(error: Exception, what: str) -> TnnError:
    """Return the error that a client is told of; what nobody foresaw is logged, with what has failed.

    Args:
        error: What happened.
        what: What has failed, for the log.
    """
    if isinstance(error, TnnError):
        return error
    if isinstance(error, MemoryError):
        return ResourcesExhausted("this server has no memory left for the request; send it again later")
    _LOG.error("%s failed", what, exc_info=error)
    return TnnError("the server failed; its log tells why")


def status_of(error: TnnError) -> Status:
    """Return the status that a request with this error gets."""
    return next(_STATUSES[kind] for kind in type(error).__mro__ if kind in _STATUSES)


def message_of(error: object) -> str:
    """Return what a client is told of an error: one line, short enough for a trailer of gRPC."""
    text = str(error)
    return one_line(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…")
