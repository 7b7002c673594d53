"""Files that are made to cost far more time or memory than their pixels and their bytes do.

A JPEG can paint the same pixels a thousand times, a TIFF have tags that are all of the file, a PNG unfold texts of a
gigabyte. They are looked for here, before Pillow reads or decodes them. What is refused is beyond what cameras and
programs write.
"""

from __future__ import annotations

import io
import os
import re
import struct
import zlib
from collections.abc import Container, Mapping
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["TooMuch", "check_exif", "check_parts", "check_scans", "check_strips"]

_SMALL = 1 << 15
"""Bytes that are too few for so many parts that they would take long."""

_JPEG_START = b"\xff\xd8\xff"
_MAX_SEGMENTS = 10_000
_MAX_SCANS = 100
_MAX_SCANS_OF_SEQUENTIAL = 4
"""One for each component, at most."""
_MAX_PASSES = 8
"""How often a coefficient is refined. Programs do so up to four times."""
_MAX_JUNK = 1 << 16
_MAX_EXIF_SEGMENTS = 16
_JPEG_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_SIZE_IN_FRAME = re.compile(rb"\xff[\xc0-\xcf](?=..\x08(..)(..))", re.DOTALL)
_END_OF_IMAGE, _START_OF_SCAN = 0xD9, 0xDA
_SCAN_MARKER = b"\xff\xda"
_ALONE = (0x01, *range(0xD0, 0xD9))
"""Markers without a length: of restarts and the start."""
_ALONE_FOR_PILLOW = (*_ALONE, _END_OF_IMAGE, 0xC8, *range(0xF0, 0xFE))
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = (0xC2, 0xC6, 0xCA, 0xCE)
_APP1, _APP2 = 0xE1, 0xE2
_EXIF, _OTHER_PICTURES = b"Exif\0\0", b"MPF\0"

_PNG = b"\x89PNG"
_MAX_CHUNKS = 1 << 17
_SOME_CHUNKS, _SIZE_OF_CHUNK = 4096, 64
"""A file may have so many chunks, and one more for so many bytes."""
_UNFOLDING = (b"zTXt", b"iTXt", b"iCCP")
_MOST_UNFOLDED = 1 << 20
"""What Pillow unfolds of a text, at most."""
_MAX_UNFOLDED = 4 << 20
_RATIO = 1032
"""How many bytes zlib makes of one, at most."""

_BYTE_ORDERS = {b"II": "<", b"MM": ">"}
_CLASSIC, _BIG = 42, 43
_MAX_TAGS = 1 << 10
_MAX_NUMBERS = 1 << 17
_MAX_SLOW_NUMBERS = 1 << 12
"""Fractions, of which Pillow makes objects, and what is in the directories below, of which it takes all."""
_BYTES_AND_TEXT, _FRACTIONS = (1, 2, 7), (5, 10)
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
"""The bytes of a value of each type."""
_BELOW = (34665, 34853, 40965)
"""Tags that tell where further directories are, which Pillow reads: of EXIF, of GPS, and of interoperability."""
_ASKED_OF_EXIF = (274, 282, 296)
"""The orientation and the resolution."""
_MAX_OVERLAP = 4
_SOME_BYTES = 1 << 16

_WIDTH, _HEIGHT, _BITS, _COMPRESSION = 256, 257, 258, 259
_STRIPS, _SAMPLES, _ROWS, _STRIP_SIZES, _PLANAR = 273, 277, 278, 279, 284
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_SIZES = 322, 323, 324, 325
_RAW, _OLD_JPEG, _JPEG = 1, 6, 7
_PLANES_APART = 2
_MORE_AREA, _SOME_AREA = 8, 1 << 20
"""Tiles may be so much larger than the image: a little one may have a tile of 1024 x 1024."""
_SOME_PARTS, _SIZE_OF_PART = 2048, 64


class TooMuch(ValueError):
    """A file that takes more than images do."""


def check_parts(file: IO[bytes]) -> None:
    """Make sure that Pillow can open a file in the time and memory that its size allows; it is read from its start.

    Raises:
        TooMuch: If it cannot.
        struct.error: If the file ends too early.
    """
    head = file.read(_SMALL + 1)
    magic, is_small = head[:4], len(head) <= _SMALL
    if magic == _PNG:
        if not is_small or any(name in head for name in _UNFOLDING):
            _check_chunks(file)
    elif magic[:3] == _JPEG_START:
        if not is_small or _EXIF in head or _OTHER_PICTURES in head:
            _check_segments(file)
    elif magic[:2] in _BYTE_ORDERS and {_CLASSIC, _BIG} & set(magic[2:]):
        # Pillow takes the byte order from the first two bytes, and looks for a BigTIFF's number in the third alone.
        order, big = _BYTE_ORDERS[magic[:2]], magic[2] == _BIG
        (place,) = struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)
        _check_directory(file, order, place, big=big)


# JPEG


def _check_segments(file: IO[bytes]) -> None:
    """Make sure that a JPEG has no more before its first scan than Pillow, which keeps all of it, reads in a moment."""
    exif: list[bytes] = []
    file.seek(2)
    for _ in range(_MAX_SEGMENTS):
        marker = _next_marker(file)
        if marker in (None, _START_OF_SCAN):
            if len(exif) > _MAX_EXIF_SEGMENTS:
                raise TooMuch(f"{len(exif)} segments of EXIF data")
            check_exif(b"".join(exif))
            return
        if marker in _ALONE_FOR_PILLOW:
            continue
        (size,) = _read(file, ">H")
        if marker not in (_APP1, _APP2):
            file.seek(max(0, size - 2), os.SEEK_CUR)
            continue
        content = file.read(max(0, size - 2))
        if content.startswith(_EXIF):
            exif.append(content[len(_EXIF) if exif else 0 :])
        elif content.startswith(_OTHER_PICTURES):
            _check_apart(content[len(_OTHER_PICTURES) :], asked=None)
    raise TooMuch(f"more than {_MAX_SEGMENTS} segments")


def _next_marker(file: IO[bytes]) -> int | None:
    """Return the next marker of a JPEG, and leave the file behind it; ``None`` at its end."""
    found = file.read(2)
    for _ in range(_MAX_JUNK):
        if len(found) < 2:
            return None
        if found[0] == 0xFF and found[1] not in (0, 0xFF):
            return found[1]
        found = found[1:] + file.read(1)
    raise TooMuch(f"more than {_MAX_JUNK} bytes between its segments")


def check_scans(content: bytes) -> None:
    """Make sure that a JPEG does not paint its pixels over and over: each scan costs as much as an image.

    Raises:
        TooMuch: If it does.
    """
    if content.count(_SCAN_MARKER) <= _MAX_SCANS_OF_SEQUENTIAL:
        return
    scans, place, frame = 0, 0, 0
    passes: dict[int, int] = {}
    for _ in range(_MAX_SEGMENTS):
        found = _JPEG_MARKER.search(content, place)
        if found is None:
            return
        marker, place = found[0][1], found.end()
        if marker == _END_OF_IMAGE:
            return
        if marker in _ALONE:
            continue
        if marker in _FRAMES:
            frame = marker
        elif marker == _START_OF_SCAN:
            scans += 1
            most = _MAX_SCANS if frame in _PROGRESSIVE else _MAX_SCANS_OF_SEQUENTIAL
            if scans > most:
                raise TooMuch(f"more than {most} scans")
            _count_passes(content[place + 2 : place + 16], passes)
        place += int.from_bytes(content[place : place + 2], "big")
    raise TooMuch(f"more than {_MAX_SEGMENTS} segments")


def _count_passes(scan: bytes, passes: dict[int, int]) -> None:
    """Count how many coefficients of each component a scan has, and raise if they are those of several images."""
    last = 1 + 2 * scan[0] if scan else 0
    if last + 1 >= len(scan):
        return
    coefficients = max(0, scan[last + 1] - scan[last] + 1)
    for component in scan[1:last:2]:
        passes[component] = passes.get(component, 0) + coefficients
        if passes[component] > _MAX_PASSES * 64:
            raise TooMuch(f"scans that refine its pixels more than {_MAX_PASSES} times")


# PNG


def _check_chunks(file: IO[bytes]) -> None:
    size = file.seek(0, os.SEEK_END)
    place, unfolding, packed = 8, [], 0
    most = min(_MAX_CHUNKS, _SOME_CHUNKS + size // _SIZE_OF_CHUNK)
    for _ in range(most):
        file.seek(place)
        head = file.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            break
        length = int.from_bytes(head[:4], "big")
        if head[4:] in _UNFOLDING:
            unfolding.append(place)
            packed += min(length, size)
        place += 12 + length
    else:
        raise TooMuch(f"more than {most} chunks in {size} bytes")
    if packed * _RATIO > _MAX_UNFOLDED:
        _check_unfolded(file, unfolding, size)


def _check_unfolded(file: IO[bytes], places: list[int], size: int) -> None:
    total = 0
    for place in places:
        file.seek(place)
        length, name = _read(file, ">I4s")
        total += _unfolded(name, file.read(min(length, size)))
        if total > _MAX_UNFOLDED:
            raise TooMuch(f"texts and profiles that unfold to more than {_MAX_UNFOLDED >> 20} MiB")


def _unfolded(name: bytes, content: bytes) -> int:
    """Return how many bytes Pillow makes of a compressed text or profile."""
    _, _, packed = content.partition(b"\0")
    if name == b"iTXt":
        if not packed.startswith(b"\1"):
            return 0
        _, _, packed = packed[2:].split(b"\0", 2) if packed.count(b"\0", 2) > 1 else (b"", b"", b"")
    else:
        packed = packed[1:]
    try:
        return len(zlib.decompressobj().decompress(packed, _MOST_UNFOLDED))
    except zlib.error:
        return min(len(packed) * _RATIO, _MOST_UNFOLDED)


# TIFF and EXIF


def check_exif(exif: bytes) -> None:
    """Make sure that the values of EXIF data do not lie over each other: Pillow copies each of them.

    Raises:
        TooMuch: If they do.
    """
    for _ in range(2):
        exif = exif.removeprefix(_EXIF)
    _check_apart(exif, _ASKED_OF_EXIF)


def _check_apart(content: bytes, asked: Container[int] | None) -> None:
    """Check a directory that is not in a TIFF, but has its form."""
    if content[:2] in _BYTE_ORDERS and len(content) >= 8:
        order = _BYTE_ORDERS[content[:2]]
        (place,) = struct.unpack_from(order + "I", content, 4)
        _check_directory(io.BytesIO(content), order, place, asked=asked, depth=1)


def _check_directory(
    file: IO[bytes], order: str, place: int, *, big: bool = False, asked: Container[int] | None = None, depth: int = 0
) -> None:
    """Make sure that a directory of a TIFF has no more values than the file can have, nor those below it.

    Args:
        file: The file, or the EXIF data.
        order: Of its bytes, as `struct` has it.
        place: Where the directory is.
        big: Whether it is a BigTIFF.
        asked: The tags whose values Pillow makes numbers of; ``None`` for all. What lies in others may be damaged.
        depth: How many directories lie above this one.
    """
    number, tags, room = ("Q", "Q", 8) if big else ("I", "H", 4)
    layout, head = f"{order}HH{number}{room}s", order + tags
    name: Literal["little", "big"] = "little" if order == "<" else "big"
    size = file.seek(0, os.SEEK_END)
    if place + struct.calcsize(head) > size:
        return
    file.seek(place)
    (told,) = _read(file, head)
    count = min(told, (size - file.tell()) // struct.calcsize(layout))
    if (told if asked is None else count) > _MAX_TAGS:
        raise TooMuch(f"{told} tags")
    copied, slow, parts = 0, 0, 0
    below: list[int] = []
    sides = {_WIDTH: 0, _HEIGHT: 0}
    for tag, kind, values, value in struct.iter_unpack(layout, file.read(count * struct.calcsize(layout))):
        length = values * _SIZES.get(kind, 0)
        there = min(length, max(0, size - int.from_bytes(value, name))) if length > room else 0
        copied += there
        if copied > _MAX_OVERLAP * size + _SOME_BYTES:
            raise TooMuch("tags whose values overlap")
        if there and kind not in _BYTES_AND_TEXT and (asked is None or tag in asked):
            if depth or kind in _FRACTIONS:
                slow += there // _SIZES[kind]
            if slow > _MAX_SLOW_NUMBERS or (depth == 0 and values > _MAX_NUMBERS):
                raise TooMuch(f"{values} values of tag {tag}")
        if tag in _BELOW:
            below.append(int.from_bytes(value[:length], name))
        elif tag in sides:
            sides[tag] = int.from_bytes(value[:length], name)
        elif tag in (_STRIPS, _TILES):
            parts = max(parts, values)
    if depth == 0 and parts > _SOME_PARTS + (sides[_WIDTH] * sides[_HEIGHT] + size) // _SIZE_OF_PART:
        raise TooMuch(f"{parts} strips or tiles for {sides[_WIDTH]}x{sides[_HEIGHT]} pixels")
    if asked is None and depth < len(_BELOW):
        for one in below:
            _check_directory(file, order, one, big=big, depth=depth + 1)


def check_strips(tags: Mapping[int, Any], file: IO[bytes]) -> None:
    """Make sure that the strips or tiles of a TIFF cover its pixels once, and do not overlap in the file.

    Raises:
        TooMuch: If they do not.
    """
    width, height = _number(tags, _WIDTH, 1), _number(tags, _HEIGHT, 1)
    is_tiled = _TILE_WIDTH in tags or _TILES in tags
    if is_tiled and _STRIPS in tags:
        raise TooMuch("both strips and tiles")
    columns = _number(tags, _TILE_WIDTH, width) if is_tiled else width
    rows = _number(tags, _TILE_HEIGHT, height) if is_tiled else min(_number(tags, _ROWS, height), height)
    planes = _number(tags, _SAMPLES, 1) if tags.get(_PLANAR) == _PLANES_APART else 1
    across, down = -(-width // columns), -(-height // rows)
    places = _numbers(tags, _TILES if is_tiled else _STRIPS)
    most_area = _MORE_AREA * width * height + _SOME_AREA
    if across * down * columns * rows > most_area:
        raise TooMuch(f"tiles of {columns}x{rows} pixels for {width}x{height}")
    if len(places) > planes * across * down:
        raise TooMuch(f"{len(places)} strips or tiles where {planes * across * down} are the image")
    compression = _number(tags, _COMPRESSION, _RAW)
    if len(places) <= 1 and compression not in (_OLD_JPEG, _JPEG):
        return
    sizes = _numbers(tags, _TILE_SIZES if is_tiled else _STRIP_SIZES)
    if compression == _RAW:  # Pillow reads as many bytes as the pixels are, whatever the sizes say
        bits = sum(_numbers(tags, _BITS).tolist() or [1]) // planes
        heights = np.full(len(places), rows)
        if not is_tiled:
            heights[down - 1 :: down] = height - (down - 1) * rows
        needed = -(-columns * bits // 8) * heights
        sizes = np.maximum(sizes, needed) if len(sizes) == len(needed) else needed
    if len(places) != len(sizes):
        raise TooMuch(f"{len(places)} strips or tiles with {len(sizes)} sizes")
    order = np.argsort(places, kind="stable")
    ends = (places + sizes)[order]
    if (ends[:-1] > places[order][1:]).any():
        raise TooMuch("strips or tiles that overlap")
    if compression in (_OLD_JPEG, _JPEG):
        size = file.seek(0, os.SEEK_END)
        for place, length in zip(places.tolist(), sizes.tolist(), strict=True):
            file.seek(place)
            content = file.read(min(length, size))
            for high, wide in _SIZE_IN_FRAME.findall(content):
                if int.from_bytes(high, "big") * int.from_bytes(wide, "big") > most_area:
                    raise TooMuch("strips or tiles that are JPEGs of more pixels than it has")
            check_scans(content)


def _number(tags: Mapping[int, Any], tag: int, default: int) -> int:
    """Return the positive number of a tag."""
    value = tags.get(tag, default)
    return max(1, value) if isinstance(value, int) else default


def _numbers(tags: Mapping[int, Any], tag: int) -> NDArray[np.int64]:
    return np.atleast_1d(np.array(tags.get(tag, ()), np.int64))


def _read(file: IO[bytes], layout: str) -> tuple[Any, ...]:
    return struct.unpack(layout, file.read(struct.calcsize(layout)))
