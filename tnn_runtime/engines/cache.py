"""Where engines and compiled programs are kept."""

from __future__ import annotations

import os
from pathlib import Path

from tnn_runtime.errors import EngineError

__all__ = ["OTHER_FOLDER", "engine_folder", "program_folder"]

_VARIABLE = "LOCALAPPDATA" if os.name == "nt" else "XDG_CACHE_HOME"
OTHER_FOLDER = f"choose another folder with the environment variable {_VARIABLE}, or with cache_dir in Python"
"""What to do about a folder that cannot be used."""


def engine_folder(folder: str | Path | None = None) -> Path:
    """Return the folder that engines are kept in; it is made if need be.

    Args:
        folder: What the user asked for; by default ``tnn-deploy/engines`` in ``$XDG_CACHE_HOME`` or ``~/.cache``
            (``%LOCALAPPDATA%`` on Windows), which no other user can read, since engines are programs.

    Raises:
        EngineError: If it cannot be made.
    """
    return _made(folder, "engines")


def program_folder(folder: str | Path | None = None) -> Path:
    """Return the folder that compiled programs are kept in; it is made if need be.

    Args:
        folder: As for `engine_folder`; by default ``tnn-deploy/programs`` beside the engines.

    Raises:
        EngineError: If it cannot be made, or another user can write to it: what lies there is loaded and run.
    """
    path = _made(folder, "programs")
    found = path.stat()
    if os.name != "nt" and (found.st_uid != os.geteuid() or found.st_mode & 0o022):
        raise EngineError(
            f"{path} belongs to another user, or others can write to it, and programs in it are loaded and run; take "
            f"the right to write from all but its owner (chmod go-w), or {OTHER_FOLDER}"
        )
    return path


def _made(folder: str | Path | None, name: str) -> Path:
    try:
        path = Path(folder) if folder is not None else _user_cache() / "tnn-deploy" / name
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (OSError, RuntimeError) as error:
        raise EngineError(
            f"{name} cannot be kept in {folder or 'the cache folder of this user'} ({error}); "
            f"make it writable, or {OTHER_FOLDER}"
        ) from error
    return path.absolute()


def _user_cache() -> Path:
    asked = os.environ.get(_VARIABLE, "")
    return Path(asked) if Path(asked).is_absolute() else Path.home() / ".cache"
