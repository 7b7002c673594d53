"""Pixels worked out with NumPy: transparency, deep images, and how an image gets to the model's size."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import FIXTURES
from image_files import chunk, encode, png, png_of_rows, tiff
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tnn_runtime import InputError
from tnn_runtime.bundle.manifest import Manifest
from tnn_runtime.images.decoders import Decoders
from tnn_runtime.images.limits import LIMITS
from tnn_runtime.images.preprocess import Preprocessing, Traits
from tnn_runtime.images.reading import read_images
from tnn_runtime.queue.metrics import Metrics

Pixels = NDArray[np.uint8]
HEIGHT, WIDTH = 6, 4
RGB = Preprocessing(HEIGHT, WIDTH, 3, (0.5,) * 3, (0.5,) * 3)
COLOURS = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
ALPHA = np.random.default_rng(2).integers(0, 256, (HEIGHT, WIDTH), np.uint8)
ALPHA[0, :2] = 0, 255
GREY = COLOURS[..., 0].copy()
INDEXED = np.random.default_rng(3).integers(0, 4, (HEIGHT, WIDTH), np.uint8)
PALETTE = np.array([[10, 20, 30], [200, 0, 100], [0, 255, 9], [77, 78, 79]], np.uint8)
LEVELS = np.array([0, 255, 90, 255], np.uint8)
KEY = 2
IS_KEY = np.where(INDEXED == KEY, 0, 255).astype(np.uint8)


def keyed(content: bytes, *values: int) -> bytes:
    """Return a PNG with a transparent colour, in the depth of the file."""
    at = content.index(b"IDAT") - 4
    return content[:at] + chunk(b"tRNS", b"".join(value.to_bytes(2, "big") for value in values)) + content[at:]


def few_bits(bits: int) -> bytes:
    """Return INDEXED as a grey PNG of 2 or 4 bits a pixel."""
    shifts = np.arange(8 - bits, -1, -bits)
    packed = (INDEXED.reshape(HEIGHT, -1, len(shifts)) << shifts).sum(-1).astype(np.uint8)
    return png_of_rows([row.tobytes() for row in packed], WIDTH, bits, 0)


def three(grey: Pixels) -> Pixels:
    return np.repeat(grey[..., None], 3, axis=2)


def paletted() -> Image.Image:
    image = Image.fromarray(INDEXED, "P")
    image.putpalette(PALETTE.tobytes())
    return image


RGBA = Image.fromarray(np.dstack([COLOURS, ALPHA]))
LA = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)])
DEEP = (COLOURS.astype(np.uint16) << 8) + 7
COLOUR_KEY, DEEP_KEY = (tuple(image[0, 0].tolist()) for image in (COLOURS, DEEP))
IS_COLOUR_KEY = np.where((COLOURS[0, 0] == COLOURS).all(-1), 0, 255).astype(np.uint8)
DEEP_GREY = (INDEXED.astype(np.uint16)[..., None] << 12) + 5
OPAQUE = np.full_like(ALPHA, 255)

TRANSPARENT: dict[str, tuple[bytes | Image.Image, Pixels, Pixels]] = {
    "RGBA": (encode(RGBA), COLOURS, ALPHA),
    "RGBA of a TIFF": (encode(RGBA, "TIFF"), COLOURS, ALPHA),
    "RGBA of a WebP": (encode(RGBA, "WEBP", lossless=True, exact=True), COLOURS, ALPHA),
    "RGBA of 16 bits": (png(np.dstack([DEEP, ALPHA.astype(np.uint16) << 8]), 6), COLOURS, ALPHA),
    "LA": (encode(LA), three(GREY), ALPHA),
    "PA": (paletted().convert("PA"), PALETTE[INDEXED], OPAQUE),
    "a palette with levels": (encode(paletted(), transparency=LEVELS.tobytes()), PALETTE[INDEXED], LEVELS[INDEXED]),
    "a palette with an index": (encode(paletted(), transparency=KEY), PALETTE[INDEXED], IS_KEY),
    "L with a grey": (keyed(encode(Image.fromarray(INDEXED)), KEY), three(INDEXED), IS_KEY),
    "grey of 2 bits": (keyed(few_bits(2), KEY), three(INDEXED * 85), IS_KEY),
    "grey of 4 bits": (keyed(few_bits(4), KEY), three(INDEXED * 17), IS_KEY),
    "grey of 16 bits": (keyed(png(DEEP_GREY, 0), (KEY << 12) + 5), three(INDEXED << 4), IS_KEY),
    "another grey of 16 bits": (keyed(png(DEEP_GREY, 0), (KEY << 12) + 6), three(INDEXED << 4), OPAQUE),
    "black and white": (keyed(encode(Image.fromarray(IS_KEY > 0)), 0), three(IS_KEY), IS_KEY),
    "RGB with a colour": (encode(Image.fromarray(COLOURS), transparency=COLOUR_KEY), COLOURS, IS_COLOUR_KEY),
    "RGB of 16 bits": (keyed(png(DEEP, 2), *DEEP_KEY), COLOURS, IS_COLOUR_KEY),
    "no transparency": (encode(Image.fromarray(COLOURS)), COLOURS, OPAQUE),
}


@pytest.mark.parametrize("background", [(255,), (0,), (20, 200, 90), None])
@pytest.mark.parametrize("name", TRANSPARENT)
def test_what_is_transparent_lies_on_the_background(name: str, background: tuple[int, ...] | None) -> None:
    source, colours, alpha = TRANSPARENT[name]
    share = alpha[..., None] / 255
    below = np.broadcast_to(np.array(background or 0, float), (3,))
    expected = colours if background is None else np.round(colours * share + below * (1 - share))
    found = dataclasses.replace(RGB, background=background)(source)
    np.testing.assert_allclose(found.astype(int), expected, atol=0 if background is None else 1)
    if background is not None and len(background) == 1:
        grey = Preprocessing(HEIGHT, WIDTH, 1, (0.5,), (0.5,), background=background)(source)
        luma = expected @ (0.299, 0.587, 0.114)
        np.testing.assert_allclose(grey[..., 0].astype(int), luma, atol=2)


def pillow_alone(image: Image.Image, mode: str) -> Pixels:
    """What versions without a background gave: Pillow's conversion of a picture whose transparency is forgotten."""
    image = ImageOps.exif_transpose(image)
    image.info.pop("transparency", None)
    return np.asarray(ImageOps.fit(image.convert(mode), (8, 8), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("name", [name for name in TRANSPARENT if not name.endswith("grey of 16 bits")])
def test_bundles_of_earlier_schemas_give_the_pixels_that_they_gave(version: int, name: str) -> None:
    source = TRANSPARENT[name][0]
    manifest, _ = Manifest.read(FIXTURES / f"bundle-v{version}")
    assert (manifest.preprocessing.fit, manifest.preprocessing.background) == ("crop", None)
    image = Image.open(io.BytesIO(source)) if isinstance(source, bytes) else source.copy()
    image.load()
    np.testing.assert_array_equal(manifest.preprocessing(source), pillow_alone(image, "RGB"))


def stripes(height: int, width: int) -> Pixels:
    """Return an image whose columns have the levels of their place."""
    return np.broadcast_to(np.arange(width, dtype=np.uint8)[None, :, None], (height, width, 3)).copy()


def cropped(image: Pixels) -> Pixels:
    left = (image.shape[1] - 8) // 2
    return image[:, left : left + 8]


def padded(image: Pixels) -> Pixels:
    rows = round(8 * image.shape[0] / image.shape[1])
    top = round((8 - rows) / 2)
    out = np.full((8, 8, 3), (1, 2, 3), np.uint8)
    out[top : top + rows] = np.asarray(Image.fromarray(image).resize((8, rows), Image.Resampling.BILINEAR))
    return out


def squashed(image: Pixels) -> Pixels:
    return np.asarray(Image.fromarray(image).resize((8, 8), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("width", [8, 16, 32, 200])
@pytest.mark.parametrize(("fit", "expected"), [("crop", cropped), ("pad", padded), ("squash", squashed)])
def test_every_fit(fit: str, expected: Callable[[Pixels], Pixels], width: int) -> None:
    image = stripes(8, width)
    preprocessing = Preprocessing(8, 8, 3, (0.5,) * 3, (0.5,) * 3, fit, (1, 2, 3))
    pixels, traits = preprocessing.decode(image)
    if width == 200:  # 8 rows become a third of a row, of which ImageOps.pad leaves nothing
        assert fit != "pad" or ((pixels != (1, 2, 3)).any(axis=(1, 2)).sum() == 1)
    if fit != "pad" or width < 200:
        np.testing.assert_array_equal(pixels, expected(image))
    assert traits == Traits(None, pytest.approx(1 - 8 / width if fit == "crop" else 0.0))
    turned = dataclasses.replace(preprocessing)(np.rot90(image).copy())
    if width == 8 or fit == "squash":
        np.testing.assert_allclose(turned.astype(int), np.rot90(pixels).astype(int), atol=1)


def integers(values: Pixels) -> bytes:
    """Return values as a TIFF of 32 bits."""
    return encode(Image.fromarray(values.astype(np.int32)), "TIFF")


@pytest.mark.parametrize(
    ("content", "peak"),
    [
        (lambda peak: png(np.full((6, 4, 1), peak, np.uint16), 0), 4095),
        (lambda peak: tiff(np.full((6, 4, 1), peak, np.uint16), 1), 4095),
        (lambda peak: integers(np.full((6, 4), peak)), 255),
        (lambda peak: png(np.full((6, 4, 3), peak, np.uint16), 2), 4095),
        (lambda peak: tiff(np.full((6, 4, 3), peak, np.uint16), 2), 4095),
    ],
    ids=["grey PNG", "grey TIFF", "32-bit TIFF", "colour PNG", "colour TIFF"],
)
def test_deep_images_that_are_nearly_black_are_told_once(
    content: Callable[[int], bytes], peak: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = {"a": 4096, "b": peak, "c": peak, "d": 65535}
    for name, value in values.items():
        (tmp_path / name).write_bytes(content(value))
    (tmp_path / "e").write_bytes(encode(Image.new("L", (4, 6), 9)))
    images = read_images(sorted(tmp_path.iterdir()), RGB)
    assert images[:, 0, 0, 0].tolist() == [16, peak // 256, peak // 256, 255, 9]
    (note,) = caplog.messages
    assert note.startswith("2 of 4 images of more than 8 bits never pass the value 4095")
    assert f"the first is {tmp_path / 'b'}: scale their values" in note


@pytest.mark.parametrize(
    ("fit", "sizes", "told"),
    [
        ("crop", [(8, 8), (16, 8), (8, 16)], "50%"),
        ("crop", [(30, 10), (10, 30), (30, 10)], "67%"),
        ("crop", [(40, 30), (30, 40), (60, 8)], None),
        ("pad", [(30, 10)], None),
        ("squash", [(30, 10)], None),
    ],
)
def test_much_that_is_cropped_is_told(
    fit: str, sizes: list[tuple[int, int]], told: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number, size in enumerate(sizes):
        Image.new("RGB", size).save(tmp_path / f"{number}.png")
    read_images(sorted(tmp_path.iterdir()), Preprocessing(8, 8, 3, (0.5,) * 3, (0.5,) * 3, fit))
    assert [note.split(" ")[5] for note in caplog.messages] == ([] if told is None else [told])


def test_threads_and_single_calls_decode_alike() -> None:
    sources = [source for source, _, _ in TRANSPARENT.values()]
    decoders = Decoders(RGB, LIMITS, 2, Metrics())
    batches: Iterator[Pixels] = decoders.batches(sources, 5)
    np.testing.assert_array_equal(np.concatenate(list(batches)), RGB.batch(sources))
    decoders.close()


def test_what_is_shown_is_what_the_model_sees() -> None:
    shown = RGB.picture(encode(RGBA))
    np.testing.assert_array_equal(np.asarray(shown), RGB(encode(RGBA)))
    with pytest.raises(InputError, match="cannot be decoded"):
        RGB.picture(encode(Image.new("F", (4, 4), 0.5), "TIFF"))


def test_manifests_say_what_happens_to_an_image() -> None:
    newest = json.loads((FIXTURES / "bundle-v4" / "manifest.json").read_text())["preprocessing"]
    assert (newest["fit"], newest["background"]) == ("crop", [255])
    assert RGB.steps == (
        "turned upright (EXIF)",
        "laid on the background 255 where it is transparent",
        "converted to RGB",
        "scaled so that it covers 6x4 pixels, and cropped at the centre",
    )
    assert dataclasses.replace(RGB, background=None).steps[1] == "transparency dropped"
