"""What images cost to decode, for each pixel that they declare and each byte that they have, beside an honest one.

``python tests/costs.py 0 20000`` decodes the images of these numbers, of all formats and many made to cost
(`costly.MAKERS`), and prints the slowest and the hungriest of each format. It needs Linux, whose kernel tells the
largest memory that a process took.

The unit of time is what an honest JPEG takes for a pixel on the same machine, measured in between: a file that takes
ten times as long for each of its pixels and bytes has the cost 10. To the pixels of a file are added those of the
model's input, and some that small files may cost whatever they declare.
"""

from __future__ import annotations

import ctypes
import faulthandler
import io
import json
import logging
import resource
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from costly import MAKERS
from mutations import pick
from PIL import Image, features

from tnn_runtime import TnnError
from tnn_runtime.images.pixels import FITS
from tnn_runtime.images.preprocess import Preprocessing, open_image

SMALL, SMALL_FOR_MEMORY = 1 << 17, 1 << 19
"""Pixels that are added to those of each file, for time and for memory: 362 x 362, and 724 x 724."""


class Bound(NamedTuple):
    """What a file may cost.

    Args:
        time: So many times what an honest JPEG takes for a pixel.
        memory: In bytes for each pixel or byte.
    """

    time: float
    memory: float


STARTS = {b"\xff\xd8": "JPEG", b"\x89PNG": "PNG", b"RIFF": "WebP", b"BM": "BMP", b"II": "TIFF", b"MM": "TIFF"}
"""How files of each format begin."""

BOUND = Bound(32, 64)
BOUNDS = {"WebP": Bound(128, 512)}
"""The lossless WebP may have a code of its own for each 4 x 4 pixels, which only its decoder can count. libwebp allows
65,536 of them, with 12 KB of tables each, so that it ends at 0.8 GB whatever a file declares."""

SECONDS = 120
MEMORY = 8 << 30
_REPEATS = 5
_REFERENCE_EVERY = 200
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Cost(NamedTuple):
    """What an image cost.

    Args:
        number: What it is made of.
        form: Its format, or ``none``.
        maker: What it is.
        verdict: ``answered`` or ``refused``.
        size: The pixels that it declares, and its bytes.
        time: In units of the reference.
        memory: In bytes for each pixel or byte.
        seconds: Of the processor, in all.
        mib: The most memory, in all.
    """

    number: int
    form: str
    maker: str
    verdict: str
    size: tuple[int, int]
    time: float
    memory: float
    seconds: float
    mib: float


def form_of(content: bytes) -> str:
    """Return the format of a file by how it begins."""
    return next((form for start, form in STARTS.items() if content.startswith(start)), "none")


def image_of(number: int) -> tuple[str, str, bytes]:
    """Return the format, what it is, and the content of the image of a number."""
    random = np.random.default_rng(number)
    some = list(MAKERS.values())[number % len(MAKERS)]
    maker = some[number // len(MAKERS) % len(some)]
    content = maker(random)
    return form_of(content), maker.__name__.replace("_", " "), content


def some_preprocessing(number: int) -> Preprocessing:
    """Return one of the ways that images get to the size of a model, by a number."""
    random = np.random.default_rng([number, 1])
    height, width = pick(random, [(8, 8), (64, 64), (224, 224), (32, 96)])
    channels = pick(random, [1, 3])
    return Preprocessing(height, width, channels, (0.5,) * channels, (0.5,) * channels, pick(random, FITS))


def reference() -> Callable[[], float]:
    """Return what measures the seconds of the processor that an honest JPEG takes for a pixel."""
    coarse = Image.frombytes("RGB", (16, 16), np.random.default_rng(0).bytes(768))
    picture = coarse.resize((512, 512), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=90)
    content = file.getvalue()
    decode = Preprocessing(64, 64, 3, (0.5,) * 3, (0.5,) * 3)
    return lambda: min(seconds_of(lambda: decode(content)) for _ in range(5)) / (512 * 512)


def seconds_of(work: Callable[[], object]) -> float:
    """Return how long the processor works, whatever other processes do."""
    start = time.process_time()
    work()
    return time.process_time() - start


class Costs:
    """Measures what images cost."""

    def __init__(self) -> None:
        self._reference = reference()
        self._unit, self._age = self._reference(), 0
        self._trim = ctypes.CDLL(None).malloc_trim

    def of(self, number: int) -> Cost:
        """Decode the image of a number; what comes out near the bound is measured again."""
        form, maker, content = image_of(number)
        preprocessing = some_preprocessing(number)
        verdict, seconds, memory = self._decode(preprocessing, content)
        pixels = declared(content)
        size = pixels + len(content) + preprocessing.height * preprocessing.width
        divisor = size + SMALL
        if self._age % _REFERENCE_EVERY == 0:
            self._unit = self._reference()
        self._age += 1
        if seconds / divisor > BOUND.time / 4 * self._unit:
            self._unit = self._reference()
            again = _REPEATS if seconds < 1 else 1
            seconds = min(seconds, *(self._decode(preprocessing, content)[1] for _ in range(again)))
        return Cost(
            number,
            form,
            maker,
            verdict,
            (pixels, len(content)),
            seconds / divisor / self._unit,
            memory / (size + SMALL_FOR_MEMORY),
            seconds,
            memory / (1 << 20),
        )

    def _decode(self, preprocessing: Preprocessing, content: bytes) -> tuple[str, float, int]:
        verdicts = []

        def work() -> None:
            try:
                preprocessing(content)
                verdicts.append("answered")
            except TnnError as error:
                verdicts.append(f"refused: {error}")

        self._trim(0)
        _CLEAR.write_text("5")
        before = resident("VmRSS")
        seconds = seconds_of(work)
        return verdicts[0], seconds, max(0, resident("VmHWM") - before)


def declared(content: bytes) -> int:
    """Return how many pixels a file declares; 0 if it is refused before that is known."""
    try:
        with open_image(content) as image:
            return image.width * image.height
    except TnnError:
        return 0


def resident(field: str) -> int:
    """Return the memory of this process in bytes: now (``VmRSS``), or the most since it was reset (``VmHWM``)."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) << 10
    raise ValueError(f"no {field} in {_STATUS}")


def over(costs: list[Cost]) -> list[Cost]:
    """Return those beyond a bound."""
    bounds = [BOUNDS.get(cost.form, BOUND) for cost in costs]
    return [
        cost for cost, most in zip(costs, bounds, strict=True) if cost.time > most.time or cost.memory > most.memory
    ]


def table(costs: list[Cost]) -> str:
    """Return the slowest and the hungriest of each format, as a table in Markdown."""
    lines = [
        "| format | images | answered | | cost | what it is | pixels | bytes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for form in [*dict.fromkeys(STARTS.values()), "none"]:
        some = [cost for cost in costs if cost.form == form]
        if some:
            slow, hungry = max(some, key=lambda cost: cost.time), max(some, key=lambda cost: cost.memory)
            answered = sum(cost.verdict == "answered" for cost in some)
            lines.append(f"| {form} | {len(some)} | {answered} | slowest | {slow.time:.1f} | {told(slow)} |")
            lines.append(f"| | | | hungriest | {hungry.memory:.1f} B | {told(hungry)} |")
    return "\n".join(lines)


def told(cost: Cost) -> str:
    verdict = cost.verdict.partition(":")[0]
    return f"{cost.maker} (number {cost.number}, {verdict}) | {cost.size[0]:,} | {cost.size[1]:,}"


def measured(first: int, last: int, tell: Callable[[Cost], object] = lambda cost: None) -> list[Cost]:
    """Return what the images of the numbers from ``first`` to ``last`` cost."""
    logging.disable()
    warnings.simplefilter("ignore")
    costs, found = Costs(), []
    for number in range(first, last):
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        found.append(costs.of(number))
        faulthandler.cancel_dump_traceback_later()
        tell(found[-1])
    return found


def main(first: int, last: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.RLIM_INFINITY))
    found = measured(first, last, lambda cost: print(json.dumps(cost), file=sys.stderr, flush=True))
    print(f"Pillow {features.version('pil')}, libjpeg-turbo {features.version('libjpeg_turbo')}, ", end="")
    print(f"libtiff {features.version('libtiff')}, libwebp {features.version('webp')}\n")
    print(table(found))
    print(f"\n{len(over(found))} of {len(found)} over the bound")
    for cost in over(found):
        print(f"{cost.number}: {cost.maker}, cost {cost.time:.1f}, {cost.memory:.1f} bytes a pixel")
    sys.exit(bool(over(found)))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
