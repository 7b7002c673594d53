"""The error of a measurement that cannot be believed, and how errors travel between the processes of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tnn_runtime import errors
from tnn_runtime.errors import TnnError

__all__ = ["BenchmarkError", "error_from_json", "error_to_json"]


class BenchmarkError(TnnError):
    """A measurement that gives no result: outputs that changed while they were timed, or a process that died."""


_KNOWN: dict[str, type[TnnError]] = {BenchmarkError.__name__: BenchmarkError}
_KNOWN |= {name: getattr(errors, name) for name in errors.__all__}


def error_to_json(error: TnnError) -> dict[str, Any]:
    """Return an error as plain values, for `error_from_json` in another process."""
    return {
        "kinds": [kind.__name__ for kind in type(error).__mro__],
        "text": str(error),
        "notes": list(getattr(error, "__notes__", ())),
    }


def error_from_json(content: Mapping[str, Any]) -> TnnError:
    """Return the error that `error_to_json` took apart.

    Its class may be one of the other program, whose constructor nobody knows here: the error is then of the nearest
    base that this package has.
    """
    kind = next(_KNOWN[name] for name in content["kinds"] if name in _KNOWN)
    error = kind(content["text"])
    for note in content["notes"]:
        error.add_note(note)
    return error
