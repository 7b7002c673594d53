"""Where engines are kept."""

from __future__ import annotations

import os
from pathlib import Path

from tnn_runtime.errors import EngineError

__all__ = ["engine_folder"]


def engine_folder(folder: str | Path | None = None) -> Path:
    """Return the folder that engines are kept in; it is made if need be.

    Args:
        folder: What the user asked for; by default ``tnn-deploy/engines`` in ``$XDG_CACHE_HOME`` or ``~/.cache``
            (``%LOCALAPPDATA%`` on Windows), which no other user can read, since engines are programs.

    Raises:
        EngineError: If it cannot be made.
    """
    try:
        path = Path(folder) if folder is not None else _user_cache() / "tnn-deploy" / "engines"
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (OSError, RuntimeError) as error:
        raise EngineError(
            f"engines cannot be kept in {folder or 'the cache folder of this user'} ({error}); choose a folder that "
            "can be written to"
        ) from error
    return path.absolute()


def _user_cache() -> Path:
    asked = os.environ.get("LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME", "")
    return Path(asked) if Path(asked).is_absolute() else Path.home() / ".cache"
