"""The token that a server may ask for."""

from __future__ import annotations

import hmac

from tnn_runtime.server.statuses import UnknownModel, WrongToken

__all__ = ["check_token", "hidden"]


def hidden(error: UnknownModel, token: str | None) -> UnknownModel:
    """Return the error for those who need not show a token: without the names of models, if the server has one."""
    return error if token is None else UnknownModel("there is no such model or version here")


def check_token(token: str | None, authorization: str | None) -> None:
    """Make sure that a request carries the token of the server, if it has one.

    Args:
        token: The token; ``None`` if the server has none.
        authorization: What the request has as ``Authorization``; ``None`` for nothing.

    Raises:
        WrongToken: If it does not.
    """
    if token is None:
        return
    scheme, _, given = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
        raise WrongToken("the request has no valid token; expected the header Authorization: Bearer TOKEN")
