"""Which class a caller asks to compare others with."""

from __future__ import annotations

from collections.abc import Sequence

from tnn_runtime.bundle.json_values import nearest
from tnn_runtime.errors import UsageError
from tnn_runtime.options import shown

__all__ = ["RUNNER_UP", "rival_index"]

RUNNER_UP = "runner-up"
"""What stands for the best other class."""

_MOST_NAMED = 10


def rival_index(against: str | None, class_names: Sequence[str]) -> int | None:
    """Return the position of the class to compare others with; ``None`` for the best other one.

    Args:
        against: The name of a class, or `RUNNER_UP`; ``None`` means the same, where there is another class.
        class_names: The names of all classes.

    Raises:
        UsageError: If there is no such class, or only one.
    """
    if against is None:
        return None
    if len(class_names) == 1:
        raise UsageError(
            f"against is {shown(against)}, and the bundle has no other class than {shown(class_names[0])} to compare "
            "with; leave it out"
        )
    if against == RUNNER_UP:
        return None
    if against not in class_names:
        names = ", ".join(map(shown, class_names[:_MOST_NAMED]))
        others = f" and {len(class_names) - _MOST_NAMED} more" if len(class_names) > _MOST_NAMED else ""
        raise UsageError(
            f"against is {shown(against)}; expected {RUNNER_UP!r} or the name of a class: {names}{others}"
            + nearest(against, class_names)
        )
    return class_names.index(against)
