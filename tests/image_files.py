"""Image files that Pillow does not write."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image


def encode(image: Image.Image, style: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, style, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(values: np.ndarray, colour: int) -> bytes:
    """Return 16-bit pixels ``[H, W, C]`` as a PNG, which Pillow does not write in colour."""
    return png_of_rows([row.astype(">u2").tobytes() for row in values], values.shape[1], 16, colour)


def png_of_rows(rows: list[bytes], width: int, bits: int, colour: int) -> bytes:
    """Return packed rows as a PNG."""
    content = b"".join(b"\0" + row for row in rows)
    header = struct.pack(">IIBBBBB", width, len(rows), bits, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(content)), chunk(b"IEND", b"")]
    return b"".join([b"\x89PNG\r\n\x1a\n", *parts])


def tiff(values: np.ndarray, photometric: int, bits: int = 16, order: str = "<", **counts: int) -> bytes:
    """Return pixels ``[H, W, C]`` as a TIFF with one strip; ``counts`` overrides how many values a tag has."""
    height, width, channels = values.shape
    data = values.astype(f"{order}u{values.dtype.itemsize}").tobytes()
    tags = {256: [width], 257: [height], 258: [bits] * channels, 259: [1], 262: [photometric]}
    tags |= {273: [8], 277: [channels], 278: [height], 279: [len(data)]}
    extra, entries = b"", b""
    start = 8 + len(data)
    for tag, numbers in tags.items():
        content = struct.pack(f"{order}{len(numbers)}H", *numbers)
        if len(content) > 4:
            extra, content = extra + content, struct.pack(f"{order}I", start + len(extra))
        entries += struct.pack(f"{order}HHI", tag, 3, counts.get(f"tag_{tag}", len(numbers))) + content.ljust(4, b"\0")
    magic = b"II*\0" if order == "<" else b"MM\0*"
    directory = struct.pack(f"{order}H", len(tags)) + entries + struct.pack(f"{order}I", 0)
    return magic + struct.pack(f"{order}I", start + len(extra)) + data + extra + directory
