"""Errors that several callers get: each a copy of its own."""

from __future__ import annotations

from typing import TypeVar

from tnn_runtime.errors import TnnError

__all__ = ["own_copy"]

E = TypeVar("E", bound=TnnError)


def own_copy(error: E) -> E:
    """Return an equal error to raise: one object that is raised in several threads mixes their tracebacks.

    The copy has the arguments, attributes, notes and cause of the error, and no traceback yet. The constructor is not
    called, since it may take something else than the arguments: `copy.copy` and pickle would call it.
    """
    copied = type(error).__new__(type(error), *error.args)
    vars(copied).update(vars(error))
    if notes := getattr(error, "__notes__", None):
        copied.__notes__ = list(notes)
    copied.__cause__, copied.__context__ = error.__cause__, error.__context__
    copied.__suppress_context__ = error.__suppress_context__
    return copied
