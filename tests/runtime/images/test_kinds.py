"""Files that are no image here, whatever their names say: what they are is told, and what to do."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tnn_runtime import InputError
from tnn_runtime.images.preprocess import Preprocessing

RGB = Preprocessing(6, 4, 3, (0.5,) * 3, (0.5,) * 3)
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
CONVERT = "convert it to JPEG or PNG"


def encoded(name: str, **options: object) -> bytes:
    file = io.BytesIO()
    PICTURE.save(file, name, **options)
    return file.getvalue()


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", "text")
    return file.getvalue()


def box(brand: bytes, *others: bytes) -> bytes:
    return struct.pack(">I4s4sI", 16 + 4 * len(others), b"ftyp", brand, 0) + b"".join(others) + bytes(64)


KINDS: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "HEIC": (lambda: box(b"heic", b"mif1", b"heic"), "a HEIC picture", CONVERT),
    "HEIC of another brand": (lambda: box(b"mif1", b"mif1", b"heix"), "a HEIC picture", CONVERT),
    "HEIF": (lambda: box(b"mif1", b"miaf"), "a HEIF picture", CONVERT),
    "AVIF": (lambda: encoded("AVIF"), "an AVIF picture", CONVERT),
    "AVIF of another brand": (lambda: box(b"mif1", b"mif1", b"avif"), "an AVIF picture", CONVERT),
    "CR3": (lambda: box(b"crx ", b"crx ", b"isom"), "a camera RAW file", CONVERT),
    "CR2": (lambda: b"II*\0\x10\0\0\0CR\2\0" + bytes(64), "a camera RAW file", CONVERT),
    "RAF": (lambda: b"FUJIFILMCCD-RAW 0201" + bytes(64), "a camera RAW file", CONVERT),
    "video": (lambda: box(b"isom", b"mp42"), "a video", "remove it"),
    "GIF": (lambda: encoded("GIF"), "a GIF", CONVERT),
    "JPEG 2000": (lambda: encoded("JPEG2000"), "a JPEG 2000 picture", CONVERT),
    "JPEG XL": (lambda: b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(20), "a JPEG XL picture", CONVERT),
    "bare JPEG XL": (lambda: b"\xff\x0a\xfa\x1f" + bytes(20), "a JPEG XL picture", CONVERT),
    "PNM": (lambda: encoded("PPM"), "a PNM picture", CONVERT),
    "icon": (lambda: encoded("ICO"), "an icon", CONVERT),
    "PDF": (lambda: encoded("PDF"), "a PDF", CONVERT),
    "SVG": (lambda: b'<?xml version="1.0"?>\n<!-- made -->\n<svg xmlns="x">', "an SVG drawing", CONVERT),
    "bare SVG": (lambda: b"  <svg width='1'>", "an SVG drawing", CONVERT),
    "HTML": (lambda: b"<!DOCTYPE html>\n<html><body>404</body></html>", "an HTML page", "download it again"),
    "HTML in capitals": (lambda: b"\xef\xbb\xbf\n<HTML><HEAD>", "an HTML page", "download it again"),
    "JSON": (lambda: b'{"error": "not found"}', "a JSON file", "download it again"),
    "ZIP": (zipped, "a ZIP archive", "remove it"),
    "gzip": (lambda: b"\x1f\x8b\x08" + bytes(30), "a gzip archive", "remove it"),
    "LFS": (lambda: b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer", "run git lfs pull"),
    "text": (lambda: "Grüße, 猫\r\n".encode() * 200, "a text file", "remove it"),
    "zeros": (lambda: bytes(5000), "nothing but zero bytes", "copy it again"),
    "blanks": (lambda: b"\r\n ", "nothing but blanks", "copy it again"),
    ".DS_Store": (lambda: b"\0\0\0\1Bud1" + bytes(40), "a .DS_Store", "remove it"),
    "AppleDouble": (lambda: b"\0\5\x16\7\0\2" + bytes(40), "what macOS keeps beside a file", "remove it"),
    "Thumbs.db": (lambda: b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(40), "Thumbs.db", "remove it"),
    "noise": (lambda: bytes(range(128, 200)), "its first bytes, 80 81 82 83, are those of no image", "remove it"),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("is_file", [True, False])
def test_what_a_file_is_and_what_to_do(name: str, is_file: bool, tmp_path: Path) -> None:
    make, kind, remedy = KINDS[name]
    path = tmp_path / "photo.jpg"
    path.write_bytes(make())
    with pytest.raises(InputError, match="is not an image that can be read") as caught:
        RGB(path if is_file else make())
    assert kind in str(caught.value)
    assert "JPEG, PNG, WEBP, BMP or TIFF" in str(caught.value) or kind == "0 bytes"
    assert str(caught.value).endswith(remedy)


def png(**changes: bytes) -> bytes:
    """Return a PNG, with changes to the content of chunks whose checksums stay as they were."""
    chunks = b""
    rows = zlib.compress(b"".join(b"\0" + bytes(row) for row in np.asarray(PICTURE).reshape(40, 120)))
    for kind, content in (("IHDR", struct.pack(">IIBBBBB", 40, 40, 8, 2, 0, 0, 0)), ("IDAT", rows), ("IEND", b"")):
        checksum = zlib.crc32(kind.encode() + content)
        chunks += struct.pack(">I", len(content)) + kind.encode() + changes.get(kind, content)
        chunks += struct.pack(">I", checksum)
    return b"\x89PNG\r\n\x1a\n" + chunks


DAMAGED: dict[str, tuple[Callable[[], bytes], str]] = {
    "PNG header": (
        lambda: png(IHDR=struct.pack(">IIBBBBB", 40, 41, 8, 2, 0, 0, 0)),
        "checksum of its IHDR chunk is wrong",
    ),
    "PNG cut in its header": (lambda: encoded("PNG")[:20], "the file ends early"),
    "PNG cut in its pixels": (lambda: encoded("PNG")[:-900], "the file ends early"),
    "PNG cut between chunks": (lambda: png()[:33], "the file ends early"),
    "JPEG cut in its pixels": (lambda: encoded("JPEG")[:-500], "the file ends early"),
    "JPEG cut in its header": (lambda: encoded("JPEG")[:100], "it is a JPEG, but damaged or not whole"),
    "WebP cut": (lambda: encoded("WEBP")[:100], ""),
    "TIFF cut": (lambda: encoded("TIFF")[:1000], ""),
    "BMP cut": (lambda: encoded("BMP")[:1000], "the file ends early"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_how_a_file_is_damaged_and_what_to_do(name: str, tmp_path: Path) -> None:
    make, why = DAMAGED[name]
    path = tmp_path / "photo.png"
    path.write_bytes(make())
    with pytest.raises(InputError) as caught:
        RGB(path)
    assert why in str(caught.value)
    assert str(caught.value).endswith("copy or download it again, or remove it")


@pytest.mark.parametrize("tags", [{50706: b"\1\4\0\0"}, {254: 1}])
def test_the_preview_of_a_raw_file_is_not_taken_for_the_picture(tags: dict[int, object], tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "photo.jpg", "TIFF", tiffinfo=tags)
    with pytest.raises(
        InputError, match="a camera RAW file, of which only a preview can be read; convert it to JPEG or PNG"
    ):
        RGB(tmp_path / "photo.jpg")


def test_a_file_that_must_not_be_read_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: object) -> None:
        raise PermissionError(13, "Permission denied", str(source))

    (tmp_path / "photo.jpg").write_bytes(encoded("JPEG"))
    monkeypatch.setattr("tnn_runtime.images.files._stream", refuse)
    with pytest.raises(
        InputError, match=r"photo.jpg cannot be read \(permission denied\); make it readable, or remove it"
    ):
        RGB(tmp_path / "photo.jpg")
