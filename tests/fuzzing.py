"""Images and requests that are damaged in every way we could think of, and a judge of what a classifier makes of them.

``python tests/fuzzing.py images 0 10000`` and ``python tests/fuzzing.py requests 0 5000`` print a line before and after
each, so that what dies or hangs is known by its number, which decides all of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import importlib
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from mutations import BYTES, Random, pick
from PIL import Image, PngImagePlugin

from tnn_runtime import Classifier, InputError, TnnError

BUNDLE = Path(__file__).parent / "fixtures" / "bundle-v2"
EXAMPLES = Path(__file__).parents[1] / "examples"
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

HEADERS = [
    b"content-type",
    b"content-length",
    b"accept",
    b"expect",
    b"transfer-encoding",
    b"content-encoding",
    b"cookie",
]
HEADERS += [b"host", b"origin", b"range", b"x-forwarded-for", b"authorization", b""]
HEADER_VALUES = [
    b"",
    b"0",
    b"-1",
    b"9" * 40,
    b"image/png",
    b"multipart/form-data; boundary=x",
    b"multipart/",
    b"\xff\xfe",
]
HEADER_VALUES += [
    b"application/json",
    b"text/html; charset=nothing",
    b"gzip",
    b"a" * 10_000,
    b"\0",
    b"100-continue",
    b";;=",
]
PATHS = [
    "/predict",
    "/predict",
    "/predict",
    "/predict",
    "/health/live",
    "/health/ready",
    "/metrics",
    "/",
    "",
    "/predict/",
]
PATHS += [
    "/predict/../metrics",
    "//predict",
    "/\0",
    "/\ud800",
    "/" + "a" * 5000,
    "/openapi.json",
    "/docs",
    "*",
    "/предикт",
]
QUERIES = [
    b"",
    b"",
    b"",
    b"top_k=1",
    b"top_k=0",
    b"top_k=-5",
    b"top_k=1e9",
    b"top_k=" + b"9" * 5000,
    b"top_k=nan",
    b"top_k=",
]
QUERIES += [b"top_k=1&top_k=2", b"top_k=2.0", b"explain=1", b"explain=maybe", b"explain=true&top_k=1000", b"top_k[]=1"]
QUERIES += [b"top_k=%00", b"top_k=%ff%fe", b"%", b"&&&&=", b"\xff\xfe=\x00", b"explain=true&top_k=1001", b"a=1&" * 5000]
METHOD_NAMES = ["POST"] * 8 + [
    "GET",
    "GET",
    "HEAD",
    "PUT",
    "DELETE",
    "OPTIONS",
    "PATCH",
    "TRACE",
    "",
    "post",
    "\0",
    "BREW",
]
STATUSES = {200, 400, 404, 405, 413, 415, 422, 503, 504}


class Requests:
    """Gives a classifier, directly or through the web service of the examples, the request of a number."""

    def __init__(self, folder: Path) -> None:
        os.environ |= {"TNN_BUNDLE": str(BUNDLE), "TNN_DEVICE": "cpu"}
        sys.path.insert(0, str(EXAMPLES))
        self._service = importlib.import_module("service")
        self._service.MAX_BODY = 1 << 16
        self._runner = asyncio.Runner()
        self._lifespan = self._service.lifespan(self._service.app)
        self._runner.run(self._lifespan.__aenter__())
        self._seeds = make_seeds()
        self._folder = folder

    def judge(self, number: int) -> str:
        random = np.random.default_rng(number)
        return self._call(random) if number % 2 else self._runner.run(self._send(random))

    def close(self) -> None:
        self._runner.run(self._lifespan.__aexit__(None, None, None))
        self._runner.close()

    def _call(self, random: Random) -> str:
        classifier = self._service.app.state.classifier
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
            answer = getattr(classifier, name)(first, **options)
            if name == "submit":
                return answer.result(SECONDS)
            return self._runner.run(answer) if name.endswith("_async") else answer

        return judged(call, TnnError)

    async def _send(self, random: Random) -> str:
        """Send a request as a server would hand it over, without the client that would refuse to send most of them."""
        seed = pick(random, self._seeds[pick(random, list(self._seeds))])
        bodies = [b"", seed, seed, mutate(self._seeds, random), random.bytes(100), b'{"a": 1}', bytes(1 << 17)]
        # Each part of the request is sound as often as not, so that what is wrong with the others comes to light.
        body = pick(random, [pick(random, bodies), seed])
        count = int(pick(random, [0, 0, 0, 1, 2, 3]))
        headers = [(pick(random, HEADERS), pick(random, HEADER_VALUES)) for _ in range(count)]
        query = pick(random, [pick(random, QUERIES), b"top_k=2", b"explain=true"])
        method = pick(random, [pick(random, METHOD_NAMES), "POST"])
        size = int(random.integers(1, max(2, len(body) + 1)))
        pieces = [body[start : start + size] for start in range(0, len(body), size)][:50]
        events = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
        last = pick(
            random, [{"type": "http.request", "body": b"", "more_body": False}] * 4 + [{"type": "http.disconnect"}]
        )
        coming, sent = deque([*events, last]), []
        path = pick(random, [pick(random, PATHS), "/predict"])
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(errors="replace"),
            "root_path": "",
            "query_string": query,
            "headers": headers,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }

        async def receive() -> Any:
            return coming.popleft() if coming else {"type": "http.disconnect"}

        async def send(event: Any) -> None:
            sent.append(event)

        try:
            async with asyncio.timeout(SECONDS):
                await self._service.app(scope, receive, send)
        except Exception as error:
            return f"{type(error).__name__}: {str(error)[:300]} for {scope['method']} {path!r:.50} {headers!r:.200}"
        status = sent[0]["status"] if sent else None
        answer = b"".join(event.get("body", b"") for event in sent)
        if status not in STATUSES:
            return f"status {status} for {scope['method']} {path!r:.50} {scope['query_string']!r:.100}"
        if status >= 400 and scope["method"] != "HEAD" and not json.loads(answer)["detail"]:
            return f"status {status} with {answer!r:.100}"
        return "answered" if status < 400 else "refused"


KINDS = {"images": Images, "requests": Requests}


def main(kind: str, first: int, last: int) -> None:
    """Judge what the numbers from ``first`` to ``last`` stand for."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))
    logging.disable()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        judge = KINDS[kind](Path(folder))
        judge.judge(first)
        judge.judge(first + 1)
        files, memory = open_files(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(first, last):
            print(f"{number}\t", end="", flush=True)
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            print(json.dumps(judge.judge(number)), flush=True)
            faulthandler.cancel_dump_traceback_later()
        left = open_files() - files
        judge.close()
    threads = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) >> 10
    print(json.dumps({"threads": threads, "files": left, "mib": grown}))


def open_files() -> int:
    with contextlib.suppress(OSError):
        return len(os.listdir("/proc/self/fd"))
    return 0


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
