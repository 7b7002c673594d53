"""Images and calls that are damaged in every way we could think of, and a judge of what a classifier makes of them.

``python tests/fuzzing.py images 0 10000`` and ``python tests/fuzzing.py calls 0 2500`` print a line before and after
each, so that what dies or hangs is known by its number, which decides all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import io
import json
import logging
import os
import resource
import struct
import sys
import tempfile
import threading
import warnings
import zlib
from collections import UserString, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from mutations import BYTES, Random, pick
from PIL import Image, PngImagePlugin

from tnn_runtime import Classifier, InputError, TnnError

BUNDLE = Path(__file__).parent / "fixtures" / "bundle-v2"
SECONDS = 60
MEMORY = 8 << 30


def encode(image: Image.Image, style: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    if options.pop("two", False):
        options |= {"save_all": True, "append_images": [image.rotate(90)]}
    image.copy().save(buffer, style, **options)
    return buffer.getvalue()


def make_seeds() -> dict[str, list[bytes]]:
    """Return small files of every format, by the program that takes them apart."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (14, 12, 3), np.uint8))
    deep = Image.fromarray(np.random.default_rng(1).integers(0, 65536, (14, 12), np.uint16))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    meta = {"exif": exif, "icc_profile": bytes(range(256))}
    text = PngImagePlugin.PngInfo()
    text.add_text("key", "value")
    text.add_text("zipped", "value" * 20, zip=True)
    text.add_itxt("XML:com.adobe.xmp", '<x tiff:Orientation="6"/>')
    modes = {mode: image.convert(mode) for mode in ("1", "L", "P", "RGB", "RGBA", "LA", "CMYK")}
    return {
        "jpeg": [
            *(encode(modes[mode], "JPEG", **meta) for mode in ("L", "RGB", "CMYK")),
            encode(image, "JPEG", progressive=True, subsampling=2, exif=exif, comment=b"hello"),
            encode(image, "MPO", two=True),
        ],
        "png": [
            *(encode(modes[mode], "PNG", pnginfo=text, **meta) for mode in ("1", "L", "P", "RGB", "RGBA", "LA")),
            encode(deep, "PNG"),
            encode(modes["P"], "PNG", transparency=bytes(range(200))),
            encode(image, "PNG", two=True),
        ],
        "riff": [
            encode(image, "WEBP", **meta),
            encode(modes["RGBA"], "WEBP", lossless=True, **meta),
            encode(image, "WEBP", two=True),
        ],
        "tiff": [
            *(encode(modes[mode], "TIFF") for mode in modes),
            *(
                encode(image, "TIFF", compression=kind)
                for kind in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")
            ),
            encode(modes["1"], "TIFF", compression="group4"),
            encode(deep, "TIFF", exif=exif),
            encode(image, "TIFF", two=True),
            encode(image, "TIFF", big_tiff=True),
        ],
        "other": [
            *(encode(modes[mode], "BMP") for mode in ("1", "L", "P", "RGB", "RGBA")),
            encode(image, "GIF"),
            encode(image, "PPM"),
        ],
    }


NUMBERS = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 255, 256, 4096, 65535, 1 << 16, 1 << 20, 1 << 24, (1 << 31) - 1, 1 << 31]
NUMBERS += [(1 << 32) - 1]


def edit_numbers(content: bytes, random: Random) -> bytes:
    """Overwrite numbers in the head of a file, where sizes are."""
    values = bytearray(content)
    for _ in range(int(random.choice([1, 1, 2, 4]))):
        layout = pick(random, ["B", "<H", ">H", "<I", ">I"])
        size = struct.calcsize(layout)
        place = int(random.integers(0, max(1, min(len(values) - size, 200))))
        struct.pack_into(layout, values, place, pick(random, NUMBERS) & ((1 << 8 * size) - 1))
    return bytes(values)


def parts_of_png(content: bytes) -> list[bytes]:
    parts, place = [content[:8]], 8
    while place + 12 <= len(content):
        (size,) = struct.unpack_from(">I", content, place)
        parts.append(content[place + 4 : place + 8 + size])
        place += 12 + size
    return parts


def join_png(parts: list[bytes]) -> bytes:
    """Put chunks together with lengths and checksums that are right."""
    chunks = [
        struct.pack(">I", max(0, len(part) - 4)) + part + struct.pack(">I", zlib.crc32(part)) for part in parts[1:]
    ]
    return b"".join([parts[0], *chunks])


def parts_of_jpeg(content: bytes) -> list[bytes]:
    first, *parts = content.split(b"\xff")
    return [first, *parts]


def parts_of_riff(content: bytes) -> list[bytes]:
    parts, place = [content[:12]], 12
    while place + 8 <= len(content):
        (size,) = struct.unpack_from("<I", content, place + 4)
        parts.append(content[place : place + 8 + size + size % 2])
        place += 8 + size + size % 2
    return parts


def join_riff(parts: list[bytes]) -> bytes:
    body = b"".join(parts[1:])
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


Parts = tuple[Callable[[bytes], list[bytes]], Callable[[list[bytes]], bytes]]
TAKE_APART: dict[str, Parts] = {
    "jpeg": (parts_of_jpeg, b"\xff".join),
    "png": (parts_of_png, join_png),
    "riff": (parts_of_riff, join_riff),
}


def edit_parts(kind: str, content: bytes, other: bytes, random: Random) -> bytes:
    """Change, move, drop, repeat or take over parts, so that the rest of the file is still sound."""
    take, join = TAKE_APART[kind]
    parts, others = take(content), take(other)
    for _ in range(int(random.choice([1, 1, 2, 3]))):
        place = int(random.integers(1, max(2, len(parts))))
        way = int(random.integers(6))
        if way == 0:
            del parts[place:][:1]
            parts = parts[:place] + parts[place + 1 :]
        elif way == 1 and place < len(parts):
            parts[place:place] = [parts[place]] * int(random.choice([1, 2, 300]))
        elif way == 2:
            parts[place:place] = [pick(random, others)]
        elif way == 3:
            parts[1:] = [parts[1:][index] for index in random.permutation(len(parts) - 1)]
        elif place < len(parts) and len(parts[place]) > 4:
            edit = pick(random, [*BYTES, edit_numbers])
            parts[place] = parts[place][:4] + edit(parts[place][4:], random)
    return join(parts)


def edit_tags(content: bytes, random: Random) -> bytes:
    """Change the tags of a TIFF: their type, count or value."""
    values = bytearray(content)
    (directory,) = struct.unpack_from("<I", values, 4)
    if directory + 2 > len(values):
        return content
    (count,) = struct.unpack_from("<H", values, directory)
    for _ in range(int(random.choice([1, 1, 2, 4]))):
        entry = directory + 2 + 12 * int(random.integers(max(1, count)))
        if entry + 12 > len(values):
            continue
        way = int(random.integers(5))
        if way == 0:
            struct.pack_into("<H", values, entry, int(random.integers(254, 350)))
        elif way == 1:
            struct.pack_into("<H", values, entry + 2, int(random.integers(0, 20)))
        elif way == 2:
            struct.pack_into("<I", values, entry + 4, pick(random, NUMBERS))
        else:
            struct.pack_into("<I", values, entry + 8, pick(random, NUMBERS))
    return bytes(values)


def mutate(seeds: dict[str, list[bytes]], random: Random) -> bytes:
    """Return a damaged image."""
    kind = pick(random, list(seeds))
    content, other = pick(random, seeds[kind]), pick(random, seeds[kind])
    way = int(random.integers(10))
    if way < 3:
        return pick(random, BYTES)(content, random)
    if way < 5:
        return edit_numbers(content, random)
    if way == 5:
        stranger = pick(random, seeds[pick(random, list(seeds))])
        return content[: int(random.integers(len(content)))] + stranger[int(random.integers(len(stranger))) :]
    if way == 6:
        return content[: int(random.integers(1, 40))] + random.bytes(int(random.integers(2000)))
    if kind in TAKE_APART:
        return edit_parts(kind, content, other, random)
    return edit_tags(content, random) if kind == "tiff" else edit_numbers(edit_numbers(content, random), random)


def judged(call: Callable[[], Any], documented: type[TnnError]) -> str:
    """Return ``answered``, ``refused``, or what is wrong."""
    try:
        answer = call()
    except documented as error:
        return "refused" if "\n" not in str(error) and len(str(error)) < 10_000 else f"not one line: {error!r:.500}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    return "answered" if answer is not None else "nothing"


class Images:
    """Gives a classifier the image of a number, as bytes and as a file."""

    def __init__(self, folder: Path) -> None:
        self.classifier = Classifier.load(BUNDLE, "cpu", threads=1, max_queue_delay_ms=0)
        self._path = folder / "image"
        self._seeds = make_seeds()
        sound = [seed for kind, seeds in self._seeds.items() for seed in seeds if kind != "other"]
        answered = [judged(lambda seed=seed: self.classifier.logits([seed]), InputError) for seed in sound]
        assert answered.count("answered") > len(sound) * 0.8, answered

    def judge(self, number: int) -> str:
        content = mutate(self._seeds, np.random.default_rng(number))
        self._path.write_bytes(content)
        first, second = (content, str(self._path)) if number % 2 else (str(self._path), content)
        direct = judged(lambda: np.isfinite(self.classifier.logits([first])).all() or None, InputError)
        queued = judged(lambda: self.classifier.submit(second).result(SECONDS), InputError)
        return direct if direct == queued else f"{direct} at once, {queued} from the queue"

    def close(self) -> None:
        self.classifier.close()


def some_values(random: Random) -> list[Any]:
    """Return things that callers may take for images, counts or times."""
    image = random.integers(0, 256, (9, 7, 3), np.uint8)
    numbers = [
        0,
        1,
        2,
        5,
        -1,
        1 << 20,
        1 << 63,
        10**400,
        True,
        0.5,
        -0.0,
        1e308,
        np.int64(3),
        np.float32(1),
        np.uint8(2),
    ]
    odd = [float("nan"), float("inf"), None, "", "x", "1", "\0", "\ud800", b"", b"\0", object(), object, print, 1j, {}]
    arrays = [image, image[..., 0], image[None], image.astype(np.float32), image[..., :2], image[:0], image[:, ::-2]]
    arrays += [image[None].repeat(3, 0), np.zeros((2, 8, 8, 3), np.uint8), np.zeros((0, 8, 8, 3), np.uint8)]
    arrays += [np.zeros((1, 8, 8, 3), dtype) for dtype in ("f8", "i1", "O", "U3", "M8[s]", "?", "V3", ">u2", "c8")]
    arrays += [
        np.zeros(shape, np.uint8) for shape in ((), (0,), (1,), (3, 0, 3), (0, 0), (1, 1, 1, 1, 1), (1, 0, 8, 3))
    ]
    arrays += [np.ma.masked_array(image), np.rec.array(image), np.zeros(3, "u1,u2"), np.array(None), np.array("x.png")]
    pictures = [Image.fromarray(image), Image.new("F", (3, 3)), Image.new("LAB", (3, 3)), Image.new("RGB", (0, 3))]
    pictures += [Image.new("I", (3, 3), -1), Image.new("1", (40_000, 1)), Image.new("La", (3, 3))]
    closed = Image.open(io.BytesIO(encode(Image.fromarray(image), "PNG")))
    closed.close()
    files = [
        str(BUNDLE),
        BUNDLE / "model.onnx",
        Path("/dev/zero"),
        Path(""),
        "/proc/self/mem",
        "x" * 5000,
        BUNDLE / "\0",
    ]
    return [*numbers, *odd, *arrays, *pictures, closed, *files, io.BytesIO(b"x"), memoryview(b"xyz"), bytearray(b"xyz")]


def some_images(random: Random) -> Any:
    values = some_values(random)
    some = [pick(random, values) for _ in range(int(random.integers(4)))]
    wrappers: list[Callable[[Any], Any]] = [list, list, list, list, tuple, deque, iter, set_or_list, str, np.array]
    way = int(random.integers(8))
    if way == 0:
        return pick(random, values)
    if way == 1:
        return pick(
            random, [range(2), {"a": 1}, UserString("ab"), [[]], [[1]], [b""], (x for x in ()), "photos", bytes(9)]
        )
    try:
        return pick(random, wrappers)(some)
    except Exception:
        return some


def set_or_list(values: list[Any]) -> Any:
    try:
        return set(values)
    except TypeError:
        return values


METHODS = ["predict", "logits", "embed", "explain", "submit", "drain"]
METHODS += ["predict_async", "logits_async", "embed_async", "explain_async"]
OPTIONS = {
    "predict": ["top_k"],
    "explain": ["top_k", "num_features"],
    "submit": ["top_k", "timeout_s"],
    "predict_async": ["top_k", "timeout_s"],
    "logits_async": ["timeout_s"],
    "embed_async": ["timeout_s"],
    "explain_async": ["top_k", "num_features", "timeout_s"],
}


class Calls:
    """Calls a method of a classifier with the arguments of a number."""

    def __init__(self, folder: Path) -> None:
        self._classifier = Classifier.load(BUNDLE, "cpu", threads=1)
        self._runner = asyncio.Runner()

    def judge(self, number: int) -> str:
        random = np.random.default_rng(number)
        name = pick(random, METHODS)
        values = some_values(random)
        if name == "drain":
            return judged(
                lambda: Classifier.load(BUNDLE, pick(random, values), timeout_s=pick(random, values)), TnnError
            )
        sound = random.integers(0, 256, (2, 8, 8, 3), np.uint8)
        images = some_images(random) if random.random() < 0.6 else pick(random, [list(sound), sound, [sound[0, 0]]])
        first = images if name != "submit" else pick(random, [sound[0], pick(random, values)])
        options = {option: pick(random, values) for option in OPTIONS.get(name, ()) if random.random() < 0.3}

        def call() -> Any:
            answer = getattr(self._classifier, name)(first, **options)
            if name == "submit":
                return answer.result(SECONDS)
            return self._runner.run(answer) if name.endswith("_async") else answer

        return judged(call, TnnError)

    def close(self) -> None:
        self._runner.close()
        self._classifier.close()


class Judge(Protocol):
    """Says ``answered``, ``refused``, or what is wrong with what a number stands for."""

    def judge(self, number: int) -> str: ...

    def close(self) -> None: ...


def main(kinds: Mapping[str, Callable[[Path], Judge]], kind: str, first: str, last: str) -> None:
    """Judge what the numbers from ``first`` to ``last`` stand for."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))
    logging.disable()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        judge = kinds[kind](Path(folder))
        for number in range(100):
            judge.judge(number)
        files, memory = open_files(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(int(first), int(last)):
            print(f"{number}\t", end="", flush=True)
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            print(json.dumps(judge.judge(number)), flush=True)
            faulthandler.cancel_dump_traceback_later()
        left = open_files() - files
        judge.close()
    others = (thread.name for thread in threading.enumerate() if thread is not threading.main_thread())
    threads = [name for name in others if "_poll_wrapper" not in name]  # that of grpc, which stays
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) >> 10
    print(json.dumps({"threads": threads, "files": left, "mib": grown}))


def open_files() -> int:
    with contextlib.suppress(OSError):
        return len(os.listdir("/proc/self/fd"))
    return 0


if __name__ == "__main__":
    main({"images": Images, "calls": Calls}, *sys.argv[1:])
