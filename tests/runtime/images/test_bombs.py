"""Files that are made to cost far more than the pixels that they declare, and good ones that look alike."""

from __future__ import annotations

import errno
import io
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import costly
import numpy as np
import pytest
from costly import after_start, chunk, directory, longs, png, segment, shorts, tiff
from PIL import Image, TiffImagePlugin

from tnn_runtime import InputError, ResourcesExhausted
from tnn_runtime.file_kinds import kind_of
from tnn_runtime.images import files
from tnn_runtime.images.pixels import fitted
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


def with_scans_again(count: int) -> bytes:
    """Return a progressive JPEG whose last scan is there so many times more."""
    content = encoded("JPEG", progressive=True)
    start = content.rindex(b"\xff\xda")
    return content[:start] + content[start:-2] * (1 + count) + content[-2:]


def exif(count: int, kind: int, size: int = 40_000) -> bytes:
    """Return EXIF data that turn a picture, with so many values that are nearly all of the data."""
    number = (size - 8) // costly.SIZES[kind]
    entries = [(274, 3, 1, shorts(6)), *((0x9000 + index, kind, number, 8) for index in range(count))]
    return (struct.pack("<2sHI", b"II", 42, 8) + directory(entries, 8)).ljust(size, b"\1")


def resolution(size: int) -> bytes:
    """Return EXIF data with a resolution of so many fractions."""
    return (struct.pack("<2sHI", b"II", 42, 8) + directory([(282, 5, 7000, 8)], 8)).ljust(size, b"\1")


def in_jpeg(head: bytes, content: bytes, marker: int = 0xE1, count: int = 1) -> bytes:
    return after_start(encoded("JPEG"), segment(marker, head + content) * count)


def in_webp(exif_data: bytes) -> bytes:
    frame = costly.chunks_of(encoded("WEBP", lossless=True))[-1]
    return costly.riff(costly.canvas((30, 40), 0x08), frame, (b"EXIF", exif_data))


def in_tiff(where: tuple[int, ...], count: int, kind: int, number: int = 30_000) -> bytes:
    """Return a TIFF with a directory of overlapping values below others, whose tags are given."""
    data = b"\1" * (costly.SIZES[kind] * number)
    entries: list[costly.Entry] = [(40_000 + index, kind, number, 16) for index in range(count)]
    for tag in reversed(where):
        place = 16 + len(data)
        data += directory(entries, place)
        entries = [(tag, 4, 1, longs(place))]
    return tiff((8, 8), 1, data, [(273, 4, 1, longs(16)), (279, 4, 1, longs(64)), *entries])


def in_strips(size: tuple[int, int], rows: int, places: list[int], length: int, data: bytes, kind: int = 1) -> bytes:
    count = len(places)
    sizes = longs(*[length] * count)
    entries: list[costly.Entry] = [(259, 3, 1, shorts(kind)), (273, 4, count, longs(*places)), (278, 4, 1, longs(rows))]
    return tiff(size, 1, data, [*entries, (279, 4, count, sizes)])


def in_a_tile(edge: int, size: tuple[int, int] = (8, 8), more: tuple[costly.Entry, ...] = ()) -> bytes:
    tile = zlib.compress(bytes(edge * edge))
    entries: list[costly.Entry] = [(259, 3, 1, shorts(8)), (322, 4, 1, longs(edge)), (323, 4, 1, longs(edge))]
    return tiff(size, 1, tile, [*entries, (324, 4, 1, longs(16)), (325, 4, 1, longs(len(tile))), *more])


def tall_jpegs(rows: int, scans: int, comment: bytes = b"") -> bytes:
    one: tuple[costly.Scan, bytes] = (([0], 0, 63, 0, 0), bytes(100))
    strip = costly.jpeg_of_scans(costly.BASELINE, (1000, rows), [0x11], [one] * scans)
    strip = after_start(strip, segment(0xFE, comment))
    return in_strips((1000, 8), 8, [16], len(strip), strip, kind=7)


def unfolding(name: bytes, head: bytes, count: int, size: int = 1_000_000) -> bytes:
    return png((8, 8), before=chunk(name, head + zlib.compress(bytes(size))) * count)


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "5 scans": (lambda: with_scans(5), "more than 4 scans"),
    "10,000 scans": (lambda: with_scans(10_000), "more than 4 scans"),
    "shared strips": (lambda: with_shared_strips(None, 40), "strips or tiles that overlap"),
    "shared LZW strips": (lambda: with_shared_strips("tiff_lzw", 40), "strips or tiles that overlap"),
    "refinements": (lambda: with_scans_again(8), "refine its pixels more than 8 times"),
    "junk": (lambda: after_start(encoded("JPEG"), segment(0xFE, b"") + bytes(70_000)), "more than 65536 bytes between"),
    "segments": (lambda: in_jpeg(b"", b"", 0xFE, 10_001), r"is not an image .*\(more than 10000 segments"),
    "segments in a marker": (lambda: in_jpeg(b"", segment(0xFE, b"") * 12_000, 0xF0), "more than 10000 segments"),
    "segments behind an end": (
        lambda: after_start(encoded("JPEG"), b"\xff\xd9" + segment(0xFE, b"") * 12_000),
        "more than 10000 segments",
    ),
    "EXIF segments": (lambda: in_jpeg(b"Exif\0\0", bytes(60_000), count=17), "17 segments of EXIF data"),
    "EXIF of bytes": (lambda: in_jpeg(b"Exif\0\0", exif(900, 7)), "tags whose values overlap"),
    "EXIF of fractions": (lambda: in_jpeg(b"Exif\0\0", exif(900, 5)), "tags whose values overlap"),
    "EXIF twice marked": (lambda: in_jpeg(b"Exif\0\0" * 2, exif(900, 7)), "tags whose values overlap"),
    "EXIF tags": (lambda: in_jpeg(b"Exif\0\0", exif(2000, 7)), "2001 tags"),
    "pictures of MPO": (lambda: in_jpeg(b"MPF\0", exif(900, 7), 0xE2), "tags whose values overlap"),
    "fractions of EXIF": (lambda: in_jpeg(b"Exif\0\0", resolution(60_000)), "7000 values of tag 282"),
    "fractions of MPO": (lambda: in_jpeg(b"MPF\0", resolution(60_000), 0xE2), "7000 values of tag 282"),
    "fractions of a TIFF": (lambda: in_tiff((), 1, 5, 7000), "7000 values of tag 40000"),
    "zTXt": (lambda: unfolding(b"zTXt", b"k\0\0", 5), "unfold to more than 4 MiB"),
    "iTXt": (lambda: unfolding(b"iTXt", b"k\0\1\0en\0\0", 5), "unfold to more than 4 MiB"),
    "iCCP": (lambda: unfolding(b"iCCP", b"k\0\0", 5), "unfold to more than 4 MiB"),
    "chunks": (lambda: png((8, 8), before=chunk(b"teXt") * 10_000), "more than [0-9]+ chunks in [0-9]+ bytes"),
    "bytes of a TIFF": (lambda: in_tiff((), 900, 7), "tags whose values overlap"),
    "bytes of EXIF": (lambda: in_tiff((34665,), 900, 7), "tags whose values overlap"),
    "bytes of GPS": (lambda: in_tiff((34853,), 900, 7), "tags whose values overlap"),
    "bytes two below": (lambda: in_tiff((34665, 40965), 900, 7), "tags whose values overlap"),
    "fractions below": (lambda: in_tiff((34665,), 1, 5), "30000 values of tag 40000"),
    "tags of EXIF": (lambda: in_tiff((34665,), 2000, 3, 1), "2000 tags"),
    "strips again": (lambda: in_strips((64, 64), 64, [16, 5000], 4096, bytes(20_000)), "2 strips .* 1 are the image"),
    "strips that lie": (lambda: in_strips((64, 64), 32, [16, 17], 1, bytes(5000)), "overlap"),
    "many strips": (
        lambda: in_strips((1, 9000), 1, [*range(16, 9016)], 1, bytes(9000)),
        "9000 strips or tiles for 1x9000",
    ),
    "large tile": (lambda: in_a_tile(4096), "tiles of 4096x4096 pixels for 8x8"),
    "tile and strip": (lambda: in_a_tile(16, more=((273, 4, 1, longs(16)),)), "both strips and tiles"),
    "tall JPEG": (lambda: tall_jpegs(60_000, 1), "JPEGs of more pixels than it has"),
    "tall JPEG, hidden": (lambda: tall_jpegs(60_000, 1, b"\xff\xc0\0\x11\x08\0\x08\0\x08"), "more pixels than it has"),
    "scans in a TIFF": (lambda: tall_jpegs(8, 5), "more than 4 scans"),
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
    "EXIF data": lambda: in_jpeg(b"Exif\0\0", exif(1, 7)),
    "EXIF data in two segments": lambda: in_jpeg(b"Exif\0\0", exif(0, 7), count=2),
    "a large XMP": lambda: in_jpeg(b"http://ns.adobe.com/xmp/extension/\0", bytes(60_000), count=100),
    "a large profile": lambda: in_jpeg(b"ICC_PROFILE\0\1\1", bytes(60_000), 0xE2, 20),
    "a padded segment": lambda: after_start(encoded("JPEG"), segment(0xFE, b"") + bytes(50_000)),
    "refined": lambda: with_scans_again(3),
    "texts": lambda: unfolding(b"zTXt", b"k\0\0", 30, 50_000),
    "a text as it is": lambda: png((8, 8), before=chunk(b"iTXt", b"k\0\0\0\0\0" + b"x" * 900_000) * 9),
    "zeros behind the end": lambda: encoded("PNG") + bytes(200_000),
    "rows in chunks": lambda: png((8, 8), data=zlib.compress(bytes(200)), piece=1),
    "a small tile": lambda: in_a_tile(1024),
    "a strip longer than the image": lambda: in_strips((8, 8), 1 << 31, [16], 64, bytes(64)),
    "no sizes": lambda: tiff((8, 8), 1, bytes(64), [(273, 4, 1, longs(16))]),
    "directories below": lambda: in_tiff((34665, 40965), 1, 7, 100),
    "rows of JPEG": lambda: tall_jpegs(8, 1),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_looks_alike_is_decoded(name: str) -> None:
    PREPROCESSING(GOOD[name]())


@pytest.mark.parametrize("kind", [1, 5, 7])
@pytest.mark.parametrize("wrap", [lambda data: png((30, 40), before=chunk(b"eXIf", data)), in_webp])
def test_exif_data_that_cost_more_than_the_picture_do_not_turn_it(wrap: Callable[[bytes], bytes], kind: int) -> None:
    tall = Preprocessing(40, 30, 3, (0.5,) * 3, (0.5,) * 3, "pad", (1,))
    upright, turned, costing = (tall(wrap(data)) for data in (b"", exif(0, kind), exif(900, kind)))
    assert not np.array_equal(upright, turned)
    np.testing.assert_array_equal(costing, upright)


@pytest.mark.parametrize("text", ["<!---->", "<!doctype svg>", "<?xml<!---->"])
def test_what_a_text_is_takes_no_longer_the_more_comments_it_has(text: str) -> None:
    def seconds(count: int) -> float:
        start = time.process_time()
        kind_of((text * count).encode())
        return time.process_time() - start

    few, many = (min(seconds(count) for _ in range(9)) for count in (8, 20))
    assert many < 100 * few


@pytest.mark.parametrize("size", [(1, 5000), (2, 9000), (3, 5000)])
def test_a_very_narrow_picture_is_not_widened_before_it_is_shortened(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    resize = Image.Image.resize

    def spied(self: Image.Image, size: tuple[int, int], *arguments: Any) -> Image.Image:
        sizes.append((self.size, size))
        return resize(self, size, *arguments)

    monkeypatch.setattr(Image.Image, "resize", spied)
    columns = np.random.default_rng(0).integers(0, 256, (size[1], 1), np.uint8).repeat(size[0], 1)
    squashed = np.asarray(fitted(Image.fromarray(columns), (64, 32), "squash", (0,)))
    assert max(min(before[1], after[1]) * after[0] for before, after in sizes) <= 64 * 32
    assert sizes[0][1] == (size[0], 32)
    np.testing.assert_array_equal(squashed, squashed[:, :1].repeat(64, 1))


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
