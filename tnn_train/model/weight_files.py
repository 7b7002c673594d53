"""Files of weights that cannot be read: errors that say what they are, and how to save a state dict."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

from tnn_runtime.errors import ArtifactError
from tnn_runtime.file_kinds import HEAD, kind_of
from tnn_runtime.images.files import reason
from tnn_runtime.text import printable

__all__ = ["SAVE", "refused"]

SAVE = "save its state dict with torch.save(model.state_dict(), 'weights.pth') and give that"
"""What to do with a file that holds something else than a state dict."""

_COPY = "copy or download it again"
_RENAME = "rename it to end with {}"
_ARCHIVES = {"model.weights.h5": "a Keras model", "archive_format": "a torch.export archive"}
_EARLY = re.compile(r"truncated|unexpected (end|EOF)|central directory|ran out of input|file might be corrupted")
_GLOBAL = re.compile(r"(?:GLOBAL|class:?|global) `?([A-Za-z_][\w.]*\.[\w.]+)|Can only \w+ .*?([a-z_]\w*(?:\.\w+)+)")


def refused(path: Path, error: Exception) -> ArtifactError:
    """Return what to raise for a file of weights that an error kept from being read.

    Args:
        path: The file.
        error: What reading it raised.
    """
    name = printable(str(path))
    if isinstance(error, OSError) and error.errno is not None:
        return ArtifactError(f"{name} cannot be read ({error.strerror}); make it readable, or give another file")
    with path.open("rb") as file:
        head = file.read(HEAD)
    what, remedy = _described(path, head, error)
    return ArtifactError(
        f"{name} cannot be read as weights: {what}; expected a .pth, .pt or .safetensors file that holds nothing but "
        f"tensors; {remedy}"
    )


def _described(path: Path, head: bytes, error: Exception) -> tuple[str, str]:
    """Return what a file is, and what to do."""
    if not head:
        return "it has 0 bytes", _COPY
    kind = kind_of(head)
    if path.suffix == ".safetensors":
        if kind is None or kind.name == "a safetensors file":
            return f"it is damaged or not whole ({reason(error)})", _COPY
        return f"it is {kind.name}, not safetensors", kind.remedy or _RENAME.format(".pth")
    if kind is None:
        return f"it is of an unknown kind, its first bytes are {head[:4].hex(' ')}", SAVE
    if kind.name == "a safetensors file":
        return f"it is {kind.name}", _RENAME.format(".safetensors")
    if kind.name == "a ZIP archive":
        return _archive(path, error)
    if kind.name == "a pickle":
        return _pickled(error)
    return f"it is {kind.name}", kind.remedy or SAVE


def _archive(path: Path, error: Exception) -> tuple[str, str]:
    if not zipfile.is_zipfile(path):
        return "the file ends early", _COPY
    with zipfile.ZipFile(path) as archive:
        names = {name.rpartition("/")[2] for name in archive.namelist()}
        is_whole = any(name.partition("/")[2].startswith("code/") for name in archive.namelist())
    if "constants.pkl" in names and is_whole:
        return "it is a TorchScript archive", "load it with torch.jit.load(...) and " + SAVE
    if "data.pkl" in names:
        return _pickled(error)
    found = next((kind for name, kind in _ARCHIVES.items() if name in names), "a ZIP archive that is not of torch")
    return f"it is {found}", SAVE


def _pickled(error: Exception) -> tuple[str, str]:
    """Return what a file holds that torch has written, by what it said when it refused it."""
    text = str(error)
    if found := _GLOBAL.search(text):
        other = found[1] or found[2]
        return (
            f"it holds objects of {other.rstrip('.')}, which are not loaded as they may run code",
            SAVE,
        )
    if isinstance(error, EOFError) or _EARLY.search(text):
        return "the file ends early", _COPY
    return "it is damaged, or holds something else than tensors", SAVE
