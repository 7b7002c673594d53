"""Image files that are opened only if reading them cannot cost more than their pixels do.

A file can ask for far more time or memory than its size tells: a pipe that never ends, a JPEG that paints the same
pixels a thousand times, a TIFF with millions of strips, a PNG of millions of comments. These are looked for here,
before Pillow decodes anything.
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from tnn_runtime.errors import InputError, ResourcesExhausted, TnnError
from tnn_runtime.file_kinds import HEAD, kind_of
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

_MAX_SCANS = 100
_MAX_SCANS_OF_SEQUENTIAL = 4
"""One for each component, at most."""
_RUN_LENGTHS = (1, 2)
"""Compressions of BMP that Pillow decodes in Python, while no other thread runs."""
_MAX_SEGMENTS = 10_000
_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_END_OF_IMAGE, _START_OF_SCAN = b"\xff\xd9", b"\xff\xda"
_ALONE = (b"\xff\x01", b"\xff\xd8")

_PNG, _PNG_START = b"\x89PNG", b"\x89PNG\r\n\x1a\n"
_MAX_CHUNKS = 1 << 17
_SMALLEST_CHUNK = 12

_MAX_NUMBERS = 1 << 17
_MAX_TAGS = 1 << 12
_BYTE_ORDERS = {b"II": "<", b"MM": ">"}
_CLASSIC, _BIG = 42, 43
_BYTES_AND_TEXT = (1, 2, 7)
_BITS, _PHOTOMETRIC = 258, 262
_SUBFILE, _DNG = 254, 50706
_COMPRESSION, _PLACES_OF_PARTS, _SIZES_OF_PARTS = 259, (273, 324), (279, 325)
_JPEG_IN_TIFF = (6, 7)


class _TooMuch(ValueError):
    """A file that takes more than images do."""


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
        file.seek(0)
        most = _MAX_SCANS if image.info.get("progressive") else _MAX_SCANS_OF_SEQUENTIAL
        _check_scans(file.read(), most)
    elif image.format == "TIFF":
        _check_strips(tags, file)
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
    return open(source, "rb")


def _identify(file: IO[bytes], name: str, formats: tuple[str, ...]) -> Image.Image:
    try:
        _check_parts(file)
        return Image.open(file, formats=formats)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{name} is over the limit of Pillow ({reason(error)}); scale it down first") from error
    except _TooMuch as error:
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


def _check_strips(tags: Mapping[int, Any], file: IO[bytes]) -> None:
    """Make sure that the strips or tiles of a TIFF do not overlap: each costs as much as it has bytes.

    Raises:
        _TooMuch: If they do, or if their JPEGs paint their pixels over and over.
    """
    places, sizes = (
        np.array([number for tag in pair for number in np.atleast_1d(tags.get(tag, ()))], np.int64)
        for pair in (_PLACES_OF_PARTS, _SIZES_OF_PARTS)
    )
    if len(places) != len(sizes):
        raise _TooMuch(f"{len(places)} strips or tiles with {len(sizes)} sizes")
    order = np.argsort(places, kind="stable")
    ends = (places + sizes)[order]
    if (ends[:-1] > places[order][1:]).any():
        raise _TooMuch("strips or tiles that overlap")
    if tags.get(_COMPRESSION) in _JPEG_IN_TIFF:
        file.seek(0)
        scans = len(re.findall(_START_OF_SCAN, file.read()))
        if scans > _MAX_SCANS_OF_SEQUENTIAL * max(1, len(sizes)) + _MAX_SCANS:
            raise _TooMuch(f"{scans} scans in {len(sizes)} strips or tiles")


def _check_scans(content: bytes, most: int) -> None:
    """Make sure that a JPEG does not paint its pixels over and over: each scan costs as much as an image.

    Args:
        content: The file.
        most: How many scans it may have.

    Raises:
        _TooMuch: If it has more.
    """
    scans, place = 0, 0
    for _ in range(_MAX_SEGMENTS):
        found = _JPEG_MARKER.search(content, place)
        if found is None or found[0] == _END_OF_IMAGE:
            return
        place = found.end()
        if found[0] not in _ALONE:
            place += int.from_bytes(content[place : place + 2], "big")
        scans += found[0] == _START_OF_SCAN
        if scans > most:
            raise _TooMuch(f"more than {most} scans")
    raise _TooMuch(f"more than {_MAX_SEGMENTS} segments")


def _check_parts(file: IO[bytes]) -> None:
    """Make sure that a file has no more parts than Pillow, which makes Python objects of them, reads in a second.

    Raises:
        _TooMuch: If it has more.
        struct.error: If it ends too early.
    """
    magic = file.read(4)
    if magic == _PNG:
        _check_chunks(file)
    elif magic[:2] in _BYTE_ORDERS and {_CLASSIC, _BIG} & set(magic[2:]):
        # Pillow takes the byte order from the first two bytes, and looks for a BigTIFF's number in the third alone.
        _check_tags(file, _BYTE_ORDERS[magic[:2]], big=magic[2] == _BIG)


def _check_chunks(file: IO[bytes]) -> None:
    size = file.seek(0, os.SEEK_END)
    if size < _MAX_CHUNKS * _SMALLEST_CHUNK:
        return
    place = 8
    for _ in range(_MAX_CHUNKS):
        if place + _SMALLEST_CHUNK > size:
            return
        file.seek(place)
        place += _SMALLEST_CHUNK + _read(file, ">I")[0]
    raise _TooMuch(f"more than {_MAX_CHUNKS} chunks")


def _check_tags(file: IO[bytes], order: str, *, big: bool) -> None:
    number, tags, size = ("Q", "Q", 8) if big else ("I", "H", 4)
    file.seek(size)
    file.seek(_read(file, order + number)[0])
    count = _read(file, order + tags)[0]
    if count > _MAX_TAGS:
        raise _TooMuch(f"{count} tags")
    for _ in range(count):
        tag, kind, values = _read(file, f"{order}HH{number}")
        file.seek(size, os.SEEK_CUR)
        if values > _MAX_NUMBERS and kind not in _BYTES_AND_TEXT:
            raise _TooMuch(f"{values} values of tag {tag}")


def _read(file: IO[bytes], layout: str) -> tuple[int, ...]:
    return struct.unpack(layout, file.read(struct.calcsize(layout)))
