"""Image files of every format that are made to cost time or memory, and honest ones, each by a function of chance.

Each function takes what `numpy.random.default_rng` returns and returns the content of a file; its name says what the
file is. `MAKERS` has them by format. The files are written byte by byte where Pillow would not write them.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from fuzzing import encode, make_seeds, mutate
from mutations import BYTES, Random, pick
from PIL import Image

Maker = Callable[[Random], bytes]


def a_size(random: Random, most: int = 1 << 20) -> tuple[int, int]:
    """Return a width and a height: of all sizes and shapes, some a single pixel wide or high."""
    area = 2 ** random.uniform(0, np.log2(most))
    shape = 2 ** random.uniform(-1, 1) if random.random() < 0.8 else 2 ** random.uniform(-20, 20)
    width = int(np.clip(np.sqrt(area * shape), 1, 65_000))
    return width, int(np.clip(area / width, 1, 65_000))


def a_number(random: Random, least: int, most: int) -> int:
    return int(2 ** random.uniform(np.log2(least), np.log2(most)))


def a_picture(random: Random, mode: str = "RGB", most: int = 1 << 20) -> Image.Image:
    """Return a picture that is smooth, noisy, or of one colour."""
    width, height = a_size(random, most)
    kind = random.random()
    if kind < 0.2:
        return Image.new("RGB", (width, height), tuple(random.integers(0, 256, 3).tolist())).convert(mode)
    if kind < 0.5:
        return Image.frombytes("RGB", (width, height), random.bytes(3 * width * height)).convert(mode)
    coarse = Image.frombytes("RGB", (9, 7), random.bytes(189))
    return coarse.resize((width, height), Image.Resampling.BICUBIC).convert(mode)


# JPEG


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


BASELINE, PROGRESSIVE, LOSSLESS, ARITHMETIC, PROGRESSIVE_ARITHMETIC = 0xC0, 0xC2, 0xC3, 0xC9, 0xCA

Scan = tuple[Sequence[int], int, int, int, int]
"""The components of a scan, the first and last coefficient, and the bits before and after it."""


def huffman_tables(symbols: Sequence[int]) -> bytes:
    """Return DHT segments that give each of up to 255 symbols a code of 8 bits, for all tables."""

    def table(number: int, some: Sequence[int]) -> bytes:
        return segment(0xC4, bytes([number, *[0] * 7, len(some), *[0] * 8, *some]))

    lengths = sorted({symbol & 15 for symbol in symbols})
    return table(0x00, lengths) + table(0x01, lengths) + table(0x10, symbols) + table(0x11, symbols)


def jpeg_of_scans(
    process: int,
    size: tuple[int, int],
    sampling: Sequence[int],
    scans: Sequence[tuple[Scan, bytes]],
    symbols: Sequence[int] = (0,),
    restart: int = 0,
) -> bytes:
    """Return a JPEG with the data of its scans as they are given."""
    parts = [b"\xff\xd8", segment(0xDB, bytes([0]) + bytes([1] * 64))]
    components = b"".join(bytes([index + 1, factor, 0]) for index, factor in enumerate(sampling))
    parts.append(segment(process, struct.pack(">BHHB", 8, size[1], size[0], len(sampling)) + components))
    if process not in (ARITHMETIC, PROGRESSIVE_ARITHMETIC):
        parts.append(huffman_tables(symbols))
    if restart:
        parts.append(segment(0xDD, struct.pack(">H", restart)))
    for (used, first, last, high, low), data in scans:
        head = bytes([len(used)]) + b"".join(bytes([index + 1, 0]) for index in used)
        parts += [segment(0xDA, head + bytes([first, last, high << 4 | low])), data]
    return b"".join([*parts, b"\xff\xd9"])


def entropy(random: Random, size: int) -> bytes:
    """Return what may stand in a scan: nothing, zeros, or chance."""
    data = pick(random, [b"", bytes(size), random.bytes(size)])
    return data.replace(b"\xff", b"\xff\0")


def honest_jpeg(random: Random) -> bytes:
    mode = pick(random, ["L", "RGB", "RGB", "CMYK"])
    options = {"quality": int(random.integers(1, 101)), "progressive": bool(random.random() < 0.4)}
    if mode == "RGB":
        options["subsampling"] = int(random.integers(3))
    if random.random() < 0.2:
        options["restart_marker_blocks"] = a_number(random, 1, 100)
    return jpeg(a_picture(random, mode), **options)


def jpeg(picture: Image.Image, **options: Any) -> bytes:
    """Return a JPEG, of a small picture where Pillow's buffers are too small for this one."""
    try:
        return encode(picture, "JPEG", **options)
    except OSError:
        return encode(picture.resize((16, 16)), "JPEG", **options)


def progressive_of_many_scans(random: Random) -> bytes:
    process = pick(random, [PROGRESSIVE, PROGRESSIVE_ARITHMETIC])
    size, count = a_size(random, 1 << 18), pick(random, [a_number(random, 1, 120), 98])
    sampling = pick(random, [[0x11], [0x11] * 3, [0x22, 0x11, 0x11], [0x11] * 4])
    way = int(random.integers(3))
    scans: list[tuple[Scan, bytes]] = [((range(len(sampling)), 0, 0, 0, 1), entropy(random, 1000))]
    first, last = pick(random, [(1, 63), (1, 63), (1, 1), (63, 63), (2, 40)])
    for _ in range(count):
        component = [int(random.integers(len(sampling)))]
        if way == 0:
            scan: Scan = (component, first, last, 0, 1)
        elif way == 1:
            scan = (component, first, last, 1, 0)
        else:
            scan = (range(len(sampling)), 0, 0, 1, 0)
        scans.append((scan, entropy(random, a_number(random, 1, 20_000))))
    # The last symbol is a run of 32,767 blocks without coefficients.
    return jpeg_of_scans(process, size, sampling, scans, pick(random, [(0xE0,), (0x01, 0xE0), (0xF1, 0x11, 0x00)]))


def progressive_scans_repeated(random: Random) -> bytes:
    content = jpeg(a_picture(random, most=1 << 18), progressive=True, quality=int(random.integers(20, 100)))
    start = content.rindex(b"\xff\xda")
    return content[:start] + content[start:-2] * pick(random, [a_number(random, 1, 120), 88]) + content[-2:]


def sequential_of_many_scans(random: Random) -> bytes:
    process = pick(random, [BASELINE, 0xC1, ARITHMETIC])
    size, count = a_size(random, 1 << 18), pick(random, [1, 2, 3, 4, 4, 4, 5, 100])
    sampling = pick(random, [[0x11], [0x11] * 3, [0x22, 0x11, 0x11], [0x11] * 4])
    used = [range(len(sampling))] * count if random.random() < 0.5 else [[i % len(sampling)] for i in range(count)]
    scans: list[tuple[Scan, bytes]] = [
        ((some, 0, 63, 0, 0), entropy(random, a_number(random, 1, 20_000))) for some in used
    ]
    return jpeg_of_scans(process, size, sampling, scans, pick(random, [(0,), (5, 0), (0xF1, 0x11)]))


def jpeg_of_odd_sampling(random: Random) -> bytes:
    process = pick(random, [BASELINE, PROGRESSIVE, ARITHMETIC, LOSSLESS])
    sampling = random.choice(
        [0x11, 0x12, 0x21, 0x22, 0x41, 0x14, 0x44, 0x13, 0x31], int(random.integers(1, 5))
    ).tolist()
    used: Scan = (range(len(sampling)), 1 if process == LOSSLESS else 0, 63 if process != PROGRESSIVE else 0, 0, 0)
    return jpeg_of_scans(process, a_size(random), sampling, [(used, entropy(random, 5000))])


def jpeg_of_restarts(random: Random) -> bytes:
    size = a_size(random, 1 << 18)
    count, turns = a_number(random, 1, 20_000), int(random.integers(1, 9))
    data = b"".join(b"\0\xff" + bytes([0xD0 + index % turns]) for index in range(count))
    return jpeg_of_scans(BASELINE, size, [0x11], [(([0], 0, 63, 0, 0), data)], restart=a_number(random, 1, 100))


def after_start(content: bytes, more: bytes) -> bytes:
    return content[:2] + more + content[2:]


def jpeg_of_many_segments(random: Random) -> bytes:
    kind = pick(random, [0xE0, 0xE1, 0xED, 0xFE, 0xDB, 0xC4, 0xDD, 0xC8, 0xF0])
    content = pick(random, [b"", b"x", b"Exif\0\0", b"ICC_PROFILE\0\1\1", bytes([0]) + bytes([1] * 64)])
    most = 300_000
    if random.random() < 0.2:  # in a marker that has no length for Pillow, or behind an end
        content = segment(kind, content) * a_number(random, 1, 10_000)
        kind, most = pick(random, [0xF0, 0xC8]), 50
    start = pick(random, [b"", b"", b"\xff\xd9"])
    return after_start(honest_jpeg(random), start + segment(kind, content[:65_533]) * a_number(random, 1, most))


def jpeg_of_large_metadata(random: Random) -> bytes:
    heads = [
        b"Exif\0\0II*\0\x08\0\0\0",
        b"Exif\0\0",
        b"ICC_PROFILE\0\1\1",
        b"http://ns.adobe.com/xap/1.0/\0",
        b"MPF\0II*\0",
    ]
    head = pick(random, [*heads, b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\0\0" * 5000])
    body = pick(random, [bytes(65_000), random.bytes(65_000), b"\x01" * 65_000])
    kind = 0xE2 if head.startswith((b"ICC", b"MPF")) else 0xED if head.startswith(b"Ph") else 0xE1
    return after_start(honest_jpeg(random), segment(kind, (head + body)[:65_533]) * a_number(random, 1, 400))


def jpeg_of_junk(random: Random) -> bytes:
    junk = pick(random, [b"\0", b"\xff", b"\xff\0", b"\xff\xff\0", b"x", b"\xff\xd0"]) * a_number(random, 1, 2_000_000)
    content = honest_jpeg(random)
    place = pick(random, [2, content.index(b"\xff\xdb"), content.index(b"\xff\xda"), len(content) - 2, len(content)])
    return content[:place] + junk + content[place:]


def jpeg_of_many_tables(random: Random) -> bytes:
    table = bytes([0]) + bytes([1] * 64)
    return after_start(honest_jpeg(random), segment(0xDB, table * 1008) * a_number(random, 1, 100))


def exif_jpeg(random: Random) -> bytes:
    marker, head = pick(random, [(0xE1, b"Exif\0\0"), (0xE2, b"MPF\0")])
    exif = head + exif_of_overlapping_values(random, 60_000)
    return after_start(honest_jpeg(random), segment(marker, exif) * pick(random, [1, 1, 1, 2, 50]))


# TIFF and EXIF

SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}

Entry = tuple[int, int, int, bytes | int]
"""The number of a tag, its type, its count, and its values; or where in the file they are."""


def directory(entries: Sequence[Entry], place: int, big: bool = False, following: int = 0) -> bytes:
    """Return a directory of a TIFF that begins at ``place``, with the values that do not fit behind it."""
    count, offset = ("Q", "Q") if big else ("H", "I")
    room = struct.calcsize(offset)
    behind = place + struct.calcsize(f"<{count}") + len(entries) * (4 + 2 * room) + room
    lines, values = [struct.pack(f"<{count}", len(entries))], b""
    for tag, kind, number, value in sorted(entries, key=lambda entry: entry[0]):
        if isinstance(value, bytes) and len(value) > room:
            value, values = behind + len(values), values + value + bytes(len(value) % 2)
        packed = struct.pack(f"<{offset}", value) if isinstance(value, int) else value.ljust(room, b"\0")
        lines.append(struct.pack(f"<HH{offset}", tag, kind, number) + packed)
    return b"".join([*lines, struct.pack(f"<{offset}", following), values])


def longs(*values: int) -> bytes:
    return np.array(values, "<u4").tobytes()


def shorts(*values: int) -> bytes:
    return np.array(values, "<u2").tobytes()


def tiff(size: tuple[int, int], bands: int, data: bytes, entries: Sequence[Entry], big: bool = False) -> bytes:
    """Return a TIFF of 8 bits whose data begin at byte 16; entries replace what they are given for."""
    photometric = {1: 1, 3: 2, 4: 5}[bands]
    usual: list[Entry] = [
        (256, 4, 1, longs(size[0])),
        (257, 4, 1, longs(size[1])),
        (258, 3, bands, shorts(*[8] * bands)),
        (259, 3, 1, shorts(1)),
        (262, 3, 1, shorts(photometric)),
        (277, 3, 1, shorts(bands)),
    ]
    tags = {entry[0]: entry for entry in [*usual, *entries]}
    place = 16 + len(data) + len(data) % 2
    head = struct.pack("<2sHHHQ", b"II", 43, 8, 0, place) if big else struct.pack("<2sHIQ", b"II", 42, place, 0)
    return head + data + bytes(len(data) % 2) + directory(list(tags.values()), place, big)


def compressed(name: str, width: int, rows: int, bands: int) -> tuple[int, bytes]:
    """Return the number of a compression of TIFF, and black pixels in it."""
    mode = {1: "L", 3: "RGB", 4: "CMYK"}[bands]
    options = {"strip_size": 1 << 30} if name != "raw" else {}
    try:
        content = encode(Image.new(mode, (width, rows)), "TIFF", compression=name, **options)
    except OSError:  # not every Pillow has every compression
        return compressed("raw", width, rows, bands)
    with Image.open(io.BytesIO(content)) as image:
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        start, length = tags[273][0], tags[279][0]
        return tags.get(259, 1), content[start : start + length]


NAMES = ["raw", "tiff_lzw", "packbits", "tiff_adobe_deflate", "lzma", "zstd", "jpeg"]


def honest_tiff(random: Random) -> bytes:
    mode = pick(random, ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"])
    options: dict[str, Any] = {"big_tiff": bool(random.random() < 0.1)}
    if mode in ("L", "RGB", "CMYK", "RGBA"):
        options["compression"] = pick(random, NAMES[:6] + ["jpeg"] * (mode == "RGB"))
    elif mode == "1":
        options["compression"] = pick(random, [None, "group3", "group4", "packbits"])
    if random.random() < 0.5:
        options["tiffinfo"] = {278: a_number(random, 1, 100)}
    if random.random() < 0.2 and options.get("compression") in ("tiff_lzw", "tiff_adobe_deflate", "zstd"):
        options.setdefault("tiffinfo", {})[317] = 2
    picture = a_picture(random, "L" if mode in ("I;16", "I", "F") else "RGB" if mode == "LAB" else mode, 1 << 18)
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture).astype(np.uint16) * 257)
    elif mode in ("I", "F"):
        picture = picture.convert(mode)
    elif mode == "LAB":
        picture = Image.merge("LAB", picture.split())
    try:
        return encode(picture, "TIFF", **options)
    except OSError:  # not every compression takes every mode
        return encode(picture, "TIFF")


def tiff_of_many_strips(random: Random) -> bytes:
    """One strip for each row, or for few, of images of all widths."""
    bands = pick(random, [1, 3])
    width, rows = a_number(random, 1, 400), a_number(random, 1, 8)
    count = a_number(random, 1, 131_000)
    kind, strip = compressed(pick(random, NAMES), width, rows, bands)
    same = random.random() < 0.2
    gap = pick(random, [0, 0, 1])
    data = strip if same else (strip + bytes(gap)) * count
    offsets = 16 + np.arange(count) * (0 if same else len(strip) + gap)
    entries: list[Entry] = [
        (259, 3, 1, shorts(kind)),
        (273, 4, count, offsets.astype("<u4").tobytes()),
        (278, 4, 1, longs(rows)),
        (279, 4, count, longs(*[len(strip)] * count)),
    ]
    return tiff((width, count * rows), bands, data, entries)


def tiff_painted_over_and_over(random: Random) -> bytes:
    """Strips that begin a byte after each other, and say that they have one byte."""
    bands, size = pick(random, [1, 3]), a_size(random, 1 << 18)
    rows = max(1, size[1] // pick(random, [1, 2, 3]))
    count = a_number(random, 1, 20_000)
    entries: list[Entry] = [
        (273, 4, count, (16 + np.arange(count)).astype("<u4").tobytes()),
        (278, 4, 1, longs(rows)),
        (279, 4, count, longs(*[pick(random, [0, 1])] * count)),
    ]
    return tiff(size, bands, bytes(size[0] * size[1] * bands + count), entries)


def tiff_of_large_tiles(random: Random) -> bytes:
    """Tiles that are larger than the image, or many small ones."""
    bands, size = pick(random, [1, 3]), a_size(random, 1 << 14)
    edge = 16 * a_number(random, 1, 500)
    across, down = -(-size[0] // edge), -(-size[1] // edge)
    count = across * down + pick(random, [0, 0, 0, 1, 100])
    kind, tile = compressed(pick(random, NAMES), edge, edge, bands)
    entries: list[Entry] = [
        (259, 3, 1, shorts(kind)),
        (322, 4, 1, longs(edge)),
        (323, 4, 1, longs(edge)),
        (324, 4, count, (16 + len(tile) * np.arange(count)).astype("<u4").tobytes()),
        (325, 4, count, longs(*[len(tile)] * count)),
    ]
    return tiff(size, bands, tile * count, entries)


def tiff_of_faxes(random: Random) -> bytes:
    """Bits of a fax that are chance, or all the same."""
    size, data = a_size(random), entropy(random, a_number(random, 1, 100_000)) + b"\0"
    kind, rows = pick(random, [2, 3, 4]), pick(random, [size[1], 1, 100])
    count = -(-size[1] // rows)
    length = max(1, len(data) // count)
    entries: list[Entry] = [
        (258, 3, 1, shorts(1)),
        (259, 3, 1, shorts(kind)),
        (273, 4, count, (16 + length * np.arange(count)).astype("<u4").tobytes()),
        (278, 4, 1, longs(rows)),
        (279, 4, count, longs(*[length] * count)),
        (292, 4, 1, longs(int(random.integers(8)))),
    ]
    return tiff(size, 1, data, entries)


def tiff_of_planes(random: Random) -> bytes:
    """Planes of colours that lie apart, in strips of few rows."""
    size, rows = a_size(random, 1 << 16), a_number(random, 1, 100)
    kind, strip = compressed(pick(random, NAMES), size[0], rows, 1)
    count = 3 * -(-size[1] // rows) + pick(random, [0, 0, 3])
    entries: list[Entry] = [
        (259, 3, 1, shorts(kind)),
        (273, 4, count, (16 + len(strip) * np.arange(count)).astype("<u4").tobytes()),
        (278, 4, 1, longs(rows)),
        (279, 4, count, longs(*[len(strip)] * count)),
        (284, 3, 1, shorts(2)),
    ]
    return tiff(size, 3, strip * count, entries)


def tiff_of_tall_jpegs(random: Random) -> bytes:
    """Strips of few rows that are JPEGs of many, in several scans."""
    width, rows = 8 * a_number(random, 1, 40), 8 * a_number(random, 1, 3)
    scans: list[tuple[Scan, bytes]] = [(([0], 0, 63, 0, 0), b"\0" * pick(random, [10, 5000]))] * pick(
        random, [1, 4, 50]
    )
    process = pick(random, [BASELINE, PROGRESSIVE, ARITHMETIC])
    if process == PROGRESSIVE:
        scans = [(([0], 0, 0, 0, 0), b"\0" * 50), *[(([0], 1, 63, 0, 0), b"\0" * 50)] * pick(random, [1, 4, 50])]
    strip = jpeg_of_scans(process, (width, pick(random, [rows, 65_500])), [0x11], scans)
    count = a_number(random, 1, 200)
    entries: list[Entry] = [
        (259, 3, 1, shorts(7)),
        (273, 4, count, (16 + len(strip) * np.arange(count)).astype("<u4").tobytes()),
        (278, 4, 1, longs(rows)),
        (279, 4, count, longs(*[len(strip)] * count)),
    ]
    return tiff((width, rows * count), 1, strip * count, entries)


def overlapping(random: Random, size: int, first: int) -> list[Entry]:
    """Return entries of many values that lie over each other."""
    kind = pick(random, [1, 2, 3, 4, 5, 7, 10, 12])
    number = max(1, int(size * random.uniform(0, 1)) // SIZES[kind])
    return [(first + index, kind, number, 8) for index in range(a_number(random, 1, 4_000))]


def exif_of_overlapping_values(random: Random, size: int) -> bytes:
    asked = (282, 5, a_number(random, 1, size // 8), 8)
    entries = [(0x112, 3, 1, shorts(6)), asked, *overlapping(random, size, 0x9000)][: (size - 20) // 12]
    return (struct.pack("<2sHI", b"II", 42, 8) + directory(entries, 8)).ljust(size, b"\1")


def tiff_of_overlapping_values(random: Random) -> bytes:
    size = a_number(random, 1000, 1 << 20)
    where = pick(random, [0, 34665, 34853, 330])
    entries = overlapping(random, size, 40_000)
    entries.append(
        (pick(random, [258, 282, 283, 339, 320]), pick(random, [3, 4, 5]), a_number(random, 1, size // 8), 16)
    )
    more: list[Entry] = [(273, 4, 1, longs(16)), (278, 4, 1, longs(8)), (279, 4, 1, longs(64))]
    data = b"\1" * size
    if where:
        data += directory(entries, 16 + size)
        entries = [(where, 4, 1, longs(16 + size))]
    return tiff((8, 8), 1, data, [*more, *entries], big=False)


def tiff_of_many_tags(random: Random) -> bytes:
    count = a_number(random, 1, 60_000)
    entries: list[Entry] = [(index % 65_000 + 1000, 3, 1, shorts(1)) for index in range(count)]
    where = pick(random, [0, 34665, 34853])
    more: list[Entry] = [(273, 4, 1, longs(16)), (278, 4, 1, longs(8)), (279, 4, 1, longs(64))]
    if not where:
        return tiff((8, 8), 1, bytes(64), [*more, *entries])
    return tiff((8, 8), 1, bytes(64) + directory(entries, 80), [*more, (where, 4, 1, longs(80))])


def tiff_of_directories_in_a_ring(random: Random) -> bytes:
    content = bytearray(honest_tiff(random))
    with Image.open(io.BytesIO(content)) as image:
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        place, entries = tags._offset, len(tags)
    struct.pack_into("<I", content, place + 2 + 12 * entries, pick(random, [place, 8, 16, place + 12]))
    return bytes(content)


def tiff_that_unfolds(random: Random) -> bytes:
    """A strip whose stream goes on after its pixels."""
    size = a_size(random, 1 << 16)
    strip = zlib.compress(bytes(a_number(random, 1, 50_000_000)), 9)
    entries: list[Entry] = [
        (259, 3, 1, shorts(8)),
        (273, 4, 1, longs(16)),
        (278, 4, 1, longs(pick(random, [size[1], 1, 0xFFFFFFFF, 1 << 20]))),
        (279, 4, 1, longs(len(strip))),
    ]
    return tiff(size, 1, strip, entries)


# PNG


def chunk(name: bytes, content: bytes = b"") -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


START = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def png(
    size: tuple[int, int],
    kind: int = 2,
    bits: int = 8,
    interlaced: bool = False,
    data: bytes | None = None,
    before: bytes = b"",
    after: bytes = b"",
    piece: int = 1 << 16,
) -> bytes:
    """Return a PNG with a stream, or with black pixels."""
    row = 1 + (size[0] * bits * CHANNELS[kind] + 7) // 8
    stream = zlib.compress(bytes(row * size[1] * (2 if interlaced else 1)), 9) if data is None else data
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, bits, kind, 0, 0, int(interlaced)))
    if kind == 3:
        head += chunk(b"PLTE", bytes(range(3 << min(bits, 6))))
    body = b"".join(chunk(b"IDAT", stream[start : start + piece]) for start in range(0, len(stream), piece))
    return START + head + before + body + after + chunk(b"IEND")


def honest_png(random: Random) -> bytes:
    picture = a_picture(random, pick(random, ["1", "L", "P", "RGB", "RGBA", "LA"]))
    options: dict[str, Any] = {}
    if picture.mode == "P" and random.random() < 0.5:
        options["transparency"] = bytes(range(200))
    elif picture.mode in ("L", "RGB") and random.random() < 0.3:
        options["transparency"] = 7 if picture.mode == "L" else (1, 2, 3)
    if picture.mode == "L" and random.random() < 0.3:
        picture, options = Image.fromarray(np.asarray(picture).astype(np.uint16) * 257), {}
    return encode(picture, "PNG", compress_level=int(random.integers(10)), **options)


def png_of_all_kinds(random: Random) -> bytes:
    kind = pick(random, [0, 2, 3, 4, 6])
    bits = pick(random, {0: [1, 2, 4, 8, 16], 3: [1, 2, 4, 8]}.get(kind, [8, 16]))
    has_clear_colour = kind in (0, 2) and random.random() < 0.5
    before = chunk(b"tRNS", bytes(2 if kind == 0 else 6)) if has_clear_colour else b""
    return png(a_size(random), kind, bits, bool(random.random() < 0.5), before=before)


def png_of_many_chunks(random: Random) -> bytes:
    name = pick(random, [b"tEXt", b"zTXt", b"iTXt", b"prVt", b"pHYs", b"tIME", b"IDAT", b"fcTL", b"sRGB", b"eXIf"])
    content = pick(random, [b"", b"a\0b", b"a\0\0" + zlib.compress(b"b"), bytes(9)])
    parts = {pick(random, ["before", "after"]): chunk(name, content) * a_number(random, 1, 130_000)}
    return png(a_size(random, 1 << 14), **parts)


def png_of_small_pieces(random: Random) -> bytes:
    stream = zlib.compress(random.bytes(a_number(random, 1, 1 << 16)), 0)
    return png((a_number(random, 1, 500), a_number(random, 1, 100)), data=stream, piece=a_number(random, 1, 300))


def png_that_unfolds(random: Random) -> bytes:
    packed = zlib.compress(bytes(pick(random, [1 << 20, (1 << 20) - 100, 1 << 24])), 9)
    one = pick(
        random,
        [
            chunk(b"zTXt", b"a\0\0" + packed),
            chunk(b"iTXt", b"a\0\1\0\0\0" + packed),
            chunk(b"iCCP", b"a\0\0" + packed),
            chunk(b"zTXt", b"Raw profile type exif\0\0" + packed),
        ],
    )
    parts = {pick(random, ["before", "after"]): one * a_number(random, 1, 200)}
    return png(a_size(random, 1 << 10), **parts)


def png_of_large_metadata(random: Random) -> bytes:
    size = a_number(random, 1, 8_000_000)
    body = pick(random, [bytes(size), b"a" * size, b"a" * size + "\U0001f600".encode()])
    name, head = pick(
        random, [(b"tEXt", b"a\0"), (b"iTXt", b"a\0\0\0\0\0"), (b"prVt", b""), (b"eXIf", b""), (b"iCCP", b"a\0\0")]
    )
    parts = {pick(random, ["before", "after"]): chunk(name, head + body)}
    return png(a_size(random, 1 << 10), **parts)


def exif_png(random: Random) -> bytes:
    exif = exif_of_overlapping_values(random, a_number(random, 1000, 1 << 20))
    if random.random() < 0.7:
        return png(a_size(random, 1 << 10), before=chunk(b"eXIf", exif))
    text = b"\nexif\n" + str(len(exif)).encode() + b"\n" + exif[:400_000].hex().encode()
    return png(a_size(random, 1 << 10), before=chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text)))


def png_stream_of_nothing(random: Random) -> bytes:
    """Blocks that are stored and empty, or a stream that goes on after its pixels."""
    size = a_size(random, 1 << 12)
    empty = b"\x78\x01" + b"\0\0\0\xff\xff" * a_number(random, 1, 400_000)
    return png(size, data=pick(random, [empty, zlib.compress(bytes(a_number(random, 1, 50_000_000)), 9)]))


def png_of_one_frame(random: Random) -> bytes:
    width, height = a_size(random, 1 << 16)
    frames = pick(random, [0, 1, 1, 2, 1 << 31, 1 << 20])
    control = struct.pack(">IIIIIHHBB", 0, width, height, 0, 0, 1, 1, int(random.integers(3)), int(random.integers(2)))
    before = chunk(b"acTL", struct.pack(">II", frames, 0)) + chunk(b"fcTL", control) * a_number(random, 1, 3)
    after = chunk(b"fcTL", b"\0\0\0\1" + control[4:]) + chunk(b"fdAT", b"\0\0\0\2" + zlib.compress(bytes(100)))
    return png((width, height), 6, before=before, after=after * a_number(random, 1, 1000))


# WebP


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for name, data in chunks)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def chunks_of(content: bytes) -> list[tuple[bytes, bytes]]:
    found, place = [], 12
    while place + 8 <= len(content):
        (size,) = struct.unpack_from("<I", content, place + 4)
        found.append((content[place : place + 4], content[place + 8 : place + 8 + size]))
        place += 8 + size + size % 2
    return found


def canvas(size: tuple[int, int], flags: int = 0) -> tuple[bytes, bytes]:
    return b"VP8X", struct.pack("<I", flags) + (size[0] - 1).to_bytes(3, "little") + (size[1] - 1).to_bytes(3, "little")


def small(random: Random, most: int = 1 << 18) -> Image.Image:
    picture = a_picture(random, pick(random, ["RGB", "RGBA"]), most)
    return picture.crop((0, 0, min(picture.width, 16_383), min(picture.height, 16_383)))


def honest_webp(random: Random) -> bytes:
    return encode(
        small(random), "WEBP", lossless=bool(random.random() < 0.5), method=0, quality=int(random.integers(100))
    )


def webp_of_a_large_canvas(random: Random) -> bytes:
    frame = chunks_of(encode(small(random, 1 << 12), "WEBP", lossless=True, method=0))[-1]
    size = a_number(random, 1, 16_383), a_number(random, 1, 16_383)
    if random.random() < 0.3:
        return riff(canvas(size), frame)
    count = pick(random, [1, 1, 2, 3000])
    body = frame[0] + struct.pack("<I", len(frame[1])) + frame[1] + bytes(len(frame[1]) % 2)
    (bits,) = struct.unpack_from("<I", frame[1], 1)
    width, height = bits & 0x3FFF, bits >> 14 & 0x3FFF
    head = bytes(6) + width.to_bytes(3, "little") + height.to_bytes(3, "little") + bytes(4)
    return riff(canvas(size, 2), (b"ANIM", bytes(6)), *[(b"ANMF", head + body)] * count)


def webp_of_many_chunks(random: Random) -> bytes:
    picture = small(random, 1 << 12)
    frame = chunks_of(encode(picture, "WEBP", lossless=True, method=0))[-1]
    name, size = pick(random, [b"abcd", b"EXIF", b"XMP ", b"ICCP", b"ALPH"]), pick(random, [0, 1, 100])
    return riff(canvas(picture.size, 0x2C), frame, *[(name, bytes(size))] * a_number(random, 1, 300_000))


def exif_webp(random: Random) -> bytes:
    picture = small(random, 1 << 12)
    frame = chunks_of(encode(picture, "WEBP", lossless=True, method=0))[-1]
    exif = exif_of_overlapping_values(random, a_number(random, 1000, 1 << 20))
    return riff(canvas(picture.size, 0x08), frame, (b"EXIF", exif))


def bits_to_bytes(bits: Sequence[tuple[int, int]]) -> bytes:
    """Return values of so many bits each, the lowest first."""
    total, place = 0, 0
    pieces = []
    for value, count in bits:
        total |= value << place
        place += count
        while place >= 64:
            pieces.append((total & (1 << 64) - 1).to_bytes(8, "little"))
            total >>= 64
            place -= 64
    return b"".join(pieces) + total.to_bytes(9, "little")


ONE_SYMBOL = [(1, 1), (0, 1), (0, 1), (0, 1)]
"""A code of Huffman's, in the lossless WebP, for the symbol 0 alone: it takes no bits."""


def lossless(size: tuple[int, int], bits: Sequence[tuple[int, int]]) -> bytes:
    width, height = size
    return riff((b"VP8L", b"\x2f" + bits_to_bytes([(width - 1 | height - 1 << 14, 32), *bits])))


def webp_of_many_codes(random: Random) -> bytes:
    """A code of its own for each 4x4 pixels, in as few bits as can be."""
    across, down = a_number(random, 1, 300), a_number(random, 1, 300)
    size = 4 * across, 4 * down
    # Codes of 8 bits for the 256 values of green and red: lengths are coded by a code that has length 8 only.
    lengths = [(0, 1), (8, 4)]
    order = [17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8]
    lengths += [(1 if symbol == 8 else 0, 3) for symbol in order]
    green = [*lengths, (1, 1), (3, 3), (254, 8)]  # 256 lengths are read
    bits = [(0, 1), (0, 1), (1, 1), (0, 3)]  # no transform, no cache, codes of their own for blocks of 4 pixels
    bits += [(0, 1), *green, *green, *ONE_SYMBOL, *ONE_SYMBOL, *ONE_SYMBOL]
    reverse = [int(f"{value:08b}"[::-1], 2) for value in range(256)]
    groups = min(across * down, 1 << 16) if random.random() < 0.8 else 1
    for index in range(across * down):
        group = index % groups
        bits += [(reverse[group & 255], 8), (reverse[group >> 8], 8)]
    return lossless(size, [*bits, *ONE_SYMBOL * 5 * groups])


# BMP


def bmp(size: tuple[int, int], bits: int, compression: int = 0, data: bytes | None = None, colors: int = 0) -> bytes:
    palette = bytes(4 * (colors or 1 << bits)) if bits <= 8 else b""
    masks = longs(0xF800, 0x7E0, 0x1F) if compression == 3 else b""
    pixels = bytes((size[0] * bits + 31) // 32 * 4 * size[1]) if data is None else data
    start = 54 + len(palette) + len(masks)
    head = struct.pack("<2sIHHI", b"BM", start + len(pixels), 0, 0, start)
    info = struct.pack("<IiiHHIIiiII", 40, *size, 1, bits, compression, len(pixels), 0, 0, colors, 0)
    return head + info + masks + palette + pixels


def honest_bmp(random: Random) -> bytes:
    return encode(a_picture(random, pick(random, ["1", "L", "P", "RGB", "RGBA"])), "BMP")


def bmp_of_all_kinds(random: Random) -> bytes:
    bits, compression = pick(
        random, [(1, 0), (4, 0), (8, 0), (16, 0), (16, 3), (24, 0), (32, 0), (8, 1), (4, 2), (8, 4)]
    )
    data = pick(random, [None, None, b"", b"\xff\x01" * a_number(random, 1, 100_000)])
    return bmp(a_size(random), bits, compression, data, pick(random, [0, 0, 65_536 if bits <= 8 else 0]))


# All


def declared_only(random: Random) -> bytes:
    """The head of a file that declares up to the limit of pixels, and nothing behind it."""
    width = a_number(random, 800, 16_000)
    size = width, min(49_000_000 // width, 16_000)
    if random.random() < 0.5:
        size = a_number(random, 1, 16_000), a_number(random, 1, 3000)
    kind = int(random.integers(5))
    if kind == 0:
        process = pick(random, [BASELINE, PROGRESSIVE, ARITHMETIC])
        last = 0 if process == PROGRESSIVE else 63
        return jpeg_of_scans(process, size, [0x11] * 3, [(([0, 1, 2], 0, last, 0, 0), b"")])
    if kind == 1:
        return png(size, pick(random, [0, 2, 6]), 8, data=b"\x78\x9c")
    if kind == 2:
        return bmp(size, pick(random, [8, 24, 32]), data=b"")
    if kind == 3:
        return lossless(size, [])
    compression = pick(random, [1, 5, 8, 7, 4, 34925, 50000])
    entries: list[Entry] = [(259, 3, 1, shorts(compression)), (273, 4, 1, longs(16)), (278, 4, 1, longs(size[1]))]
    return tiff(size, 1, b"", [*entries, (279, 4, 1, longs(size[0] * size[1]))])


def thin(random: Random) -> bytes:
    """A picture that is very long and one pixel wide, or very wide and one pixel high."""
    length = a_number(random, 1000, 2_000_000)
    return png(pick(random, [(1, length), (length, 1), (2, length)]), pick(random, [0, 2, 3, 6]))


def damaged(random: Random) -> bytes:
    """A small file of another test of chance."""
    return mutate(SEEDS, random)


def damaged_bomb(random: Random) -> bytes:
    """One of the others, damaged."""
    makers = [maker for some in MAKERS.values() for maker in some if maker is not damaged_bomb]
    return pick(random, BYTES)(pick(random, makers)(random), random)


def other_formats(random: Random) -> bytes:
    """What is refused for its format, and texts that take long to be told apart."""
    texts = [
        "<!---->",
        "<!-- -->\n",
        "<?xml",
        "<!doctype svg>",
        " ",
        "<!doctype svg><!---->",
        '{"',
        "<!--",
        "\0\0\0\1ftyp",
    ]
    if random.random() < 0.5:
        text = "".join(pick(random, texts) * int(random.integers(1, 400)) for _ in range(int(random.integers(1, 4))))
        return text.encode()
    picture = a_picture(random, "RGB", 1 << 14).resize((64, 48))
    form = pick(random, ["GIF", "PPM", "ICO", "TGA", "PCX", "JPEG2000", "DDS", "SGI"])
    return encode(picture, form)


SEEDS = make_seeds()

MAKERS: dict[str, list[Maker]] = {
    "JPEG": [
        honest_jpeg,
        progressive_of_many_scans,
        progressive_scans_repeated,
        sequential_of_many_scans,
        jpeg_of_odd_sampling,
        jpeg_of_restarts,
        jpeg_of_many_segments,
        jpeg_of_large_metadata,
        jpeg_of_junk,
        jpeg_of_many_tables,
        exif_jpeg,
    ],
    "PNG": [
        honest_png,
        png_of_all_kinds,
        png_of_many_chunks,
        png_of_small_pieces,
        png_that_unfolds,
        png_of_large_metadata,
        png_stream_of_nothing,
        png_of_one_frame,
        exif_png,
        thin,
    ],
    "WebP": [honest_webp, webp_of_a_large_canvas, webp_of_many_chunks, webp_of_many_codes, exif_webp],
    "BMP": [honest_bmp, bmp_of_all_kinds],
    "TIFF": [
        honest_tiff,
        tiff_of_many_strips,
        tiff_painted_over_and_over,
        tiff_of_large_tiles,
        tiff_of_tall_jpegs,
        tiff_of_faxes,
        tiff_of_planes,
        tiff_of_overlapping_values,
        tiff_of_many_tags,
        tiff_of_directories_in_a_ring,
        tiff_that_unfolds,
    ],
    "any": [declared_only, damaged, damaged_bomb, other_formats],
}
