"""Files that are made to cost far more than the pixels that they declare, and good ones that look alike."""

from __future__ import annotations

import errno
import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from tnn_runtime import InputError, ResourcesExhausted
from tnn_runtime.images import files
from tnn_runtime.images.preprocess import Preprocessing

PREPROCESSING = Preprocessing(8, 8, 3, (0.5,) * 3, (0.5,) * 3)
PIXELS = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)


def encoded(form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, form, **options)
    return file.getvalue()


def with_scans(count: int) -> bytes:
    """Return a sequential JPEG whose only scan is there so many times."""
    content = encoded("JPEG", subsampling=0)
    start, end = content.index(b"\xff\xda"), content.rindex(b"\xff\xd9")
    return content[:start] + content[start:end] * count + content[end:]


def with_shared_strips(compression: str | None, count: int) -> bytes:
    """Return a TIFF whose strips are all of its bytes."""
    file = io.BytesIO(encoded("TIFF", compression=compression, tiffinfo={278: 1}))
    with Image.open(file) as image:
        assert isinstance(image, TiffImagePlugin.TiffImageFile)
        offset = image.tag_v2._offset if hasattr(image.tag_v2, "_offset") else 8
    content = bytearray(file.getvalue())
    (entries,) = struct.unpack_from("<H", content, offset)
    for place in range(offset + 2, offset + 2 + 12 * entries, 12):
        tag, kind, number, where = struct.unpack_from("<HHII", content, place)
        if tag == 279 and number > 1:
            layout = {3: "H", 4: "I"}[kind]
            struct.pack_into(f"<{number}{layout}", content, where, *[len(content) // 2] * number)
    return bytes(content)


def run_length_bmp() -> bytes:
    """Return a BMP whose pixels are run-length encoded: 8 rows of 8 pixels."""
    pixels = b"".join(b"\x08\x01\x00\x00" for _ in range(8)) + b"\x00\x01"
    palette = bytes(4 * 256)
    start = 14 + 40 + len(palette)
    head = struct.pack("<2sIHHI", b"BM", start + len(pixels), 0, 0, start)
    info = struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, 8, 1, len(pixels), 0, 0, 256, 0)
    return head + info + palette + pixels


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "5 scans": (lambda: with_scans(5), "more than 4 scans"),
    "10,000 scans": (lambda: with_scans(10_000), "more than 4 scans"),
    "shared strips": (lambda: with_shared_strips(None, 40), "strips or tiles that overlap"),
    "shared LZW strips": (lambda: with_shared_strips("tiff_lzw", 40), "strips or tiles that overlap"),
    "run lengths": (run_length_bmp, "run-length encoded; expected pixels that are not compressed: save it as PNG"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_costs_more_than_its_pixels_is_refused(name: str, tmp_path: Path) -> None:
    make, why = BOMBS[name]
    content = make()
    (tmp_path / "bomb").write_bytes(content)
    for source in (content, tmp_path / "bomb"):
        with pytest.raises(InputError, match=why):
            PREPROCESSING(source)


GOOD: dict[str, Callable[[], bytes]] = {
    "sequential": lambda: encoded("JPEG"),
    "progressive": lambda: encoded("JPEG", progressive=True),
    "strips": lambda: encoded("TIFF", tiffinfo={278: 1}),
    "LZW": lambda: encoded("TIFF", compression="tiff_lzw", tiffinfo={278: 4}),
    "JPEG in TIFF": lambda: encoded("TIFF", compression="jpeg"),
    "BMP": lambda: encoded("BMP"),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_looks_alike_is_decoded(name: str) -> None:
    PREPROCESSING(GOOD[name]())


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("exif", [b"nonsense", b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff"])
def test_a_picture_with_damaged_exif_data_is_taken_as_it_lies(form: str, exif: bytes) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    np.testing.assert_array_equal(
        PREPROCESSING(encoded(form, exif=b"Exif\0\0" + exif, **options)), PREPROCESSING(encoded(form, **options))
    )


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "too many files are open"),
        (OSError(errno.ENFILE, "Too many open files in system"), "too many files are open"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "no memory left"),
        (MemoryError(), "no memory left"),
    ],
)
@pytest.mark.parametrize("place", ["_stream", "check_pixels"])
def test_a_fault_of_the_machine_is_no_fault_of_the_image(
    fault: Exception, why: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: Any) -> None:
        raise fault

    (tmp_path / "good.png").write_bytes(encoded("PNG"))
    module = files if place == "_stream" else __import__("tnn_runtime.images.preprocess", fromlist=["x"])
    monkeypatch.setattr(module, place, fail)
    with pytest.raises(ResourcesExhausted, match=why) as caught:
        PREPROCESSING(tmp_path / "good.png")
    assert caught.value.retryable
    assert caught.value.code == "resources_exhausted"
