"""Image files that are opened only if reading them cannot cost more than their pixels do.

A file can ask for far more time or memory than its size tells: a pipe that never ends, more bytes or pixels than there
is memory for, and what `tnn_runtime.images.bombs` looks for.
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from PIL import Image

from tnn_runtime.errors import InputError, ResourcesExhausted, TnnError
from tnn_runtime.file_kinds import HEAD, kind_of
from tnn_runtime.images.bombs import TooMuch, check_parts, check_scans, check_strips
from tnn_runtime.images.limits import MAX_BYTES, Limits

__all__ = [
    "REPLACE",
    "broken",
    "check_pixels",
    "listed",
    "open_file",
    "reason",
]

REPLACE = "; replace or remove it"
"""How an error of a file ends that nothing else helps against."""

_COPY_AGAIN = "copy or download it again, or remove it"
_OURS = {"a JPEG": "JPEG", "a PNG": "PNG", "a WebP picture": "WEBP", "a BMP picture": "BMP", "a TIFF": "TIFF"}
_ENDS_EARLY = re.compile(r"truncated|unexpected end|ends? of file|\bEOF\b|not enough (image )?data", re.IGNORECASE)

_RUN_LENGTHS = (1, 2)
"""Compressions of BMP that Pillow decodes in Python, while no other thread runs."""
_READ_AT_ONCE = 1 << 16
_PNG_START = b"\x89PNG\r\n\x1a\n"
_MAX_CHUNKS = 1 << 17
_BITS, _PHOTOMETRIC = 258, 262
_SUBFILE, _DNG = 254, 50706


@contextmanager
def open_file(source: str | Path | bytes, name: str, limits: Limits) -> Iterator[Image.Image]:
    """Open an image without decoding its pixels; close it at the end.

    Args:
        source: A path, or the bytes of a file.
        name: What to call it in an error.
        limits: What it may be.

    Raises:
        InputError: If it is no image file, or one that takes more than images do.
    """
    size = len(source) if isinstance(source, bytes) else _size(source, name)
    if size == 0:
        raise _unreadable(name, "it has 0 bytes", _COPY_AGAIN)
    if size > limits.max_bytes:
        raise InputError(
            f"{name} has {size} bytes; the limit is {limits.max_bytes}; scale it down or compress it first"
        )
    try:
        file = _stream(source)
    except (OSError, MemoryError) as error:
        raise broken(name, error) from error
    # Given the file and not its path, Pillow reads both in the same way: it would map some files into memory.
    with file, _identify(file, name, limits.formats) as image:
        yield image


def check_pixels(image: Image.Image) -> None:
    """Make sure that Pillow decodes the pixels of an open image rightly, and in the time that so many pixels take.

    Raises:
        ValueError: If it does not; the message says why.
    """
    tags = getattr(image, "tag_v2", {})
    if tags.get(_SUBFILE, 0) & 1 or _DNG in tags:
        raise ValueError("a camera RAW file, of which only a preview can be read; convert it to JPEG or PNG")
    if image.mode.startswith("I;16") and (tags.get(_BITS, 16) not in (16, (16,)) or tags.get(_PHOTOMETRIC) == 0):
        raise ValueError("grey of 12 bits, or of 16 bits where 0 is white; expected 8 bits, or 16 where 0 is black")
    file = getattr(image, "fp", None)
    if file is None:
        return
    if image.format == "BMP" and image.info.get("compression") in _RUN_LENGTHS:
        raise ValueError("run-length encoded; expected pixels that are not compressed: save it as PNG")
    position = file.tell()
    if image.format in ("JPEG", "MPO"):
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        check_scans(file.read(size))
    elif image.format == "TIFF":
        check_strips(tags, file)
    file.seek(position)


def reason(error: BaseException) -> str:
    """Return in one short line what an error says."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def listed(names: Sequence[str], most: int = 5) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _size(path: str | Path, name: str) -> int:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise InputError(f"{name} does not exist; expected an image file") from None
    except ValueError as error:
        raise _unreadable(name, reason(error)) from error
    except OSError as error:
        raise broken(name, error) from error
    if stat.S_ISDIR(found.st_mode):
        raise InputError(f"{name} is a folder; expected an image file")
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{name} is a pipe, a socket or a device; expected an image file")
    return found.st_size


def _stream(source: str | Path | bytes) -> IO[bytes]:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if os.path.getsize(source) > _READ_AT_ONCE:
        return open(source, "rb")
    with open(source, "rb", buffering=0) as file:
        return io.BytesIO(file.read())


def _identify(file: IO[bytes], name: str, formats: tuple[str, ...]) -> Image.Image:
    try:
        check_parts(file)
        file.seek(0)
        return Image.open(file, formats=formats)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{name} is over the limit of Pillow ({reason(error)}); scale it down first") from error
    except TooMuch as error:
        raise _unreadable(name, reason(error)) from error
    except OSError as error:
        if error.errno is not None:
            raise broken(name, error) from error
        raise _other_kind(file, name, formats) from error
    except MemoryError as error:
        raise broken(name, error) from error
    except Exception as error:  # Pillow raises a dozen unrelated classes on damaged files
        raise _other_kind(file, name, formats) from error


def broken(name: str, error: Exception) -> TnnError:
    """Return what to raise for an image that an error kept from being read.

    That is an `InputError`, or `ResourcesExhausted` for a fault of this machine.

    Args:
        name: What to call the image.
        error: What opening or decoding it raised.
    """
    number = getattr(error, "errno", None)
    if isinstance(error, MemoryError) or number == errno.ENOMEM:
        return ResourcesExhausted(f"there is no memory left to decode {name}; try again later, or send smaller images")
    if number in (errno.EMFILE, errno.ENFILE):
        return ResourcesExhausted(
            f"{name} cannot be opened, as too many files are open; try again later, or raise the limit: ulimit -n 65536"
        )
    if number in (errno.EACCES, errno.EPERM):
        return InputError(f"{name} cannot be read (permission denied); make it readable, or remove it")
    if isinstance(error, OSError) and number is not None:
        return _unreadable(name, error.strerror or reason(error))
    told = reason(error)
    if isinstance(error, EOFError | struct.error) or _ENDS_EARLY.search(told):
        return InputError(f"{name} cannot be decoded ({told}): the file ends early; {_COPY_AGAIN}")
    return InputError(f"{name} cannot be decoded ({told}){REPLACE}")


def _other_kind(file: IO[bytes], name: str, formats: Sequence[str]) -> InputError:
    """Return the error for what Pillow does not take, which says what the file is and what to do."""
    file.seek(0)
    kind = kind_of(file.read(HEAD))
    expected = " or ".join(filter(None, (", ".join(formats[:-1]), formats[-1])))
    if kind is None:
        file.seek(0)
        found = file.read(4).hex(" ")
        return _unreadable(name, f"its first bytes, {found}, are those of no image; expected {expected}")
    if _OURS.get(kind.name) in formats:
        if kind.name == "a PNG" and (why := _damage(file)):
            return _unreadable(name, f"it is a damaged PNG: {why}", _COPY_AGAIN)
        return _unreadable(name, f"it is {kind.name}, but damaged or not whole", _COPY_AGAIN)
    remedy = kind.remedy or (f"convert it to {' or '.join(formats[:2])}" if kind.is_picture else "remove it")
    return _unreadable(name, f"it is {kind.name}, not {expected}", remedy)


def _damage(file: IO[bytes]) -> str:
    """Return what is wrong with the first chunk of a PNG that is damaged; empty if none is."""
    file.seek(len(_PNG_START))
    for _ in range(_MAX_CHUNKS):
        head = file.read(8)
        size = int.from_bytes(head[:4], "big")
        if len(head) < 8:
            return "the file ends early"
        if size > MAX_BYTES or not head[4:].isalpha():
            return "it has bytes where a chunk should begin"
        content, checksum = file.read(size), file.read(4)
        if len(checksum) < 4:
            return "the file ends early"
        if zlib.crc32(head[4:] + content) != int.from_bytes(checksum, "big"):
            return f"the checksum of its {head[4:].decode()} chunk is wrong"
        if head[4:] == b"IEND":
            break
    return ""


def _unreadable(name: str, why: str, remedy: str = REPLACE.removeprefix("; ")) -> InputError:
    return InputError(f"{name} is not an image that can be read ({why}); {remedy}")
