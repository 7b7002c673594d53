"""Public names that are imported when they are first used (PEP 562, and SPEC 1 of Scientific Python)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

__all__ = ["attach"]


def attach(
    package: str, modules: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` of a package whose public names lie in its modules.

    Type checkers need to see the imports: the package has them under ``if TYPE_CHECKING``, each name ``as`` itself, and
    calls this in the ``else``, so that to a checker, too, a name that is missing is an error.

    Args:
        package: Name of the package.
        modules: For each of its modules, named from the package on, the names that the package offers from there.
    """
    homes = {name: f"{package}.{module}" for module, names in modules.items() for name in names}

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(homes[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    names = sorted(homes)
    return get, names.copy, names
