"""What models are called."""

from __future__ import annotations

import re

__all__ = ["named"]

_NAME = re.compile("(?!stats(:|$))(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(:(?P<version>[1-9][0-9]{0,8}))?")


def named(text: str) -> tuple[str, int] | None:
    """Return the name and the version, 1 if it has none, of ``NAME`` or ``NAME:VERSION``; ``None`` if it is neither.

    ``stats`` is no name: the statistics of all models have its path.
    """
    found = _NAME.fullmatch(text)
    return None if found is None else (found["name"], int(found["version"] or 1))
