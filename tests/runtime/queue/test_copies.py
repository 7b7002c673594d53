"""Errors that several callers get."""

from __future__ import annotations

import traceback

import pytest

from tnn_runtime import DeviceLost, RunError, TnnError
from tnn_runtime.queue.copies import own_copy


class Telling(RunError):
    """An error whose constructor takes something else than its arguments."""

    def __init__(self, code: int, *, device: str) -> None:
        super().__init__(f"code {code} on {device}")
        self.code = code


def raised(error: TnnError, cause: BaseException | None = None) -> TnnError:
    try:
        try:
            raise ValueError("before")
        except ValueError:
            raise error from cause
    except TnnError as caught:
        return caught


@pytest.mark.parametrize("error", [RunError("text"), RunError("text", 2), RunError(), Telling(7, device="cuda:0")])
def test_a_copy_says_and_has_what_the_error_has(error: TnnError) -> None:
    error.add_note("a note")
    original = raised(error, ZeroDivisionError("why"))
    copied = own_copy(original)
    assert copied is not original
    assert type(copied) is type(original)
    assert (copied.args, str(copied), vars(copied)) == (original.args, str(original), vars(original))
    assert copied.__cause__ is original.__cause__
    assert copied.__context__ is original.__context__
    assert copied.__traceback__ is None
    assert "ZeroDivisionError: why" in "".join(traceback.format_exception(copied))


def test_without_a_cause_the_context_is_told() -> None:
    original = DeviceLost("lost")
    original.__context__ = ValueError("before")
    assert "ValueError: before" in "".join(traceback.format_exception(own_copy(original)))
    assert "before" not in "".join(traceback.format_exception(own_copy(raised(DeviceLost("lost")))))


def test_what_is_done_to_a_copy_leaves_the_others_alone() -> None:
    original = Telling(7, device="cuda:0")
    original.add_note("a note")
    first, second = own_copy(original), own_copy(original)
    first.add_note("for me")
    first.code = 8
    raised(first)
    assert (original.__notes__, second.__notes__, second.code) == (["a note"], ["a note"], 7)
    assert original.__traceback__ is second.__traceback__ is None


def test_the_copy_of_a_copy_is_one() -> None:
    original = raised(Telling(7, device="cuda:0"), KeyError("why"))
    copied = own_copy(own_copy(original))
    assert (copied.code, str(copied), copied.__cause__) == (7, "code 7 on cuda:0", original.__cause__)
