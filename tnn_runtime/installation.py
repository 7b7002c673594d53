"""How to install what is missing: by the names of the packages themselves, however this project was installed.

This project is not on a package index. Advice to install one of its extras from there would fail, or would fetch
whatever a stranger put there under its name.
"""

from __future__ import annotations

import re
import shlex
from importlib.metadata import PackageNotFoundError, requires, version

__all__ = ["DISTRIBUTION", "install_command"]

DISTRIBUTION = "tnn-deploy"

_REQUIREMENT = re.compile(r"(?P<package>(?P<name>[\w.-]+)[^;]*?) *;.*extra == ['\"](?P<extra>.+)['\"]")

_SAME_MODULE = {"onnxruntime": "onnxruntime-gpu"}
"""Packages that bring the modules of others, and would be damaged if these were installed beside them."""


def install_command(*extras: str) -> str:
    """Return the command that installs what extras need: those of their packages that are missing, else all of them.

    Args:
        extras: Names of extras in ``pyproject.toml``; of several, each has a command of its own, joined by "or".

    Raises:
        ValueError: If there is no such extra.
    """
    return " or ".join(map(_command, extras))


def _command(extra: str) -> str:
    found = [match for line in requires(DISTRIBUTION) or () if (match := _REQUIREMENT.fullmatch(line))]
    needed = [match for match in found if match["extra"] == extra]
    if not needed:
        raise ValueError(f"got the extra {extra!r}; expected one of {sorted({match['extra'] for match in found})}")
    chosen = [match for match in needed if not _is_installed(match["name"])] or needed
    return f"pip install {shlex.join(match['package'] for match in chosen)}"


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return name in _SAME_MODULE and _is_installed(_SAME_MODULE[name])
    return True
