from __future__ import annotations

import dataclasses
import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import chunk, encode, png, tiff
from PIL import Image, ImageOps

from tnn_runtime import ArtifactError, InputError
from tnn_runtime.images.limits import FORMATS, Limits
from tnn_runtime.images.preprocess import Preprocessing

RGB = Preprocessing(6, 4, 3, (0.5,) * 3, (0.5,) * 3)
GREY = Preprocessing(6, 4, 1, (0.5,), (0.5,))
AS_BEFORE = dataclasses.replace(RGB, background=None)


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)


class ForeignPath(os.PathLike[str]):
    """A path of another library."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


@pytest.mark.parametrize("kind", ["bytearray", "memoryview", "PathLike", "file", "BytesIO"])
def test_other_kinds_of_sources_give_the_same_pixels(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    Image.fromarray(np.arange(108, dtype=np.uint8).reshape(6, 6, 3)).save(path)
    content = path.read_bytes()
    with path.open("rb") as file:
        sources = {
            "bytearray": bytearray(content),
            "memoryview": memoryview(content),
            "PathLike": ForeignPath(path),
            "file": file,
            "BytesIO": io.BytesIO(content),
        }
        np.testing.assert_array_equal(RGB(sources[kind]), RGB(path))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (io.StringIO("text"), "got a file that gives str; expected one that was opened with mode 'rb'"),
        (7, "got an image of type int; expected a path, bytes, an open file, a PIL image or a uint8 array"),
        (None, "got an image of type NoneType; expected a path"),
        (io.BytesIO(), "the image is not an image that can be read"),
    ],
)
def test_what_is_no_source(source: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        RGB(source)


def test_every_kind_of_source_gives_the_same_pixels(pixels: np.ndarray, tmp_path: Path) -> None:
    image = Image.fromarray(pixels)
    image.save(tmp_path / "image.png")
    for source in (pixels, image, encode(image), tmp_path / "image.png", str(tmp_path / "image.png")):
        assert np.array_equal(RGB(source), pixels)
    assert np.array_equal(RGB.batch([pixels, image]), np.stack([pixels, pixels]))
    assert RGB.batch([]).shape == (0, 6, 4, 3)


def test_other_sizes_are_covered_and_cropped_at_the_centre() -> None:
    wide = np.zeros((6, 12, 3), np.uint8)
    wide[:, 4:8] = 200
    assert (RGB(wide) == 200).all()
    assert RGB(np.zeros((100, 3), np.uint8)).shape == (6, 4, 3)


def test_grey_colour_palette_and_alpha_are_converted(pixels: np.ndarray) -> None:
    grey = pixels[..., 0]
    assert np.array_equal(GREY(grey)[..., 0], grey)
    assert np.array_equal(GREY(grey[..., None])[..., 0], grey)
    assert np.array_equal(RGB(grey), np.repeat(grey[..., None], 3, 2))
    assert GREY(pixels).shape == (6, 4, 1)
    image = Image.fromarray(pixels)
    assert np.array_equal(RGB(image.convert("RGBA")), pixels)
    assert RGB(encode(image.convert("P"))).shape == (6, 4, 3)
    np.testing.assert_allclose(RGB(image.convert("CMYK")).astype(int), pixels.astype(int), atol=2)


def test_sixteen_bit_grey_is_scaled_not_clipped(pixels: np.ndarray) -> None:
    deep = Image.fromarray((pixels[..., 0].astype(np.uint16) << 8) + 7)
    assert np.array_equal(GREY(encode(deep))[..., 0], pixels[..., 0])


def test_phone_pictures_with_a_preview_are_read(pixels: np.ndarray) -> None:
    image = Image.fromarray(np.full_like(pixels, 90))
    content = encode(image, "MPO", save_all=True, append_images=[Image.new("RGB", (4, 6))])
    assert (RGB(content) == 90).all()


def test_exif_orientation_is_applied(pixels: np.ndarray) -> None:
    lying = Image.fromarray(np.rot90(pixels).copy())
    exif = Image.Exif()
    exif[0x0112] = 6
    assert np.array_equal(RGB(encode(lying, exif=exif)), pixels)


ORIENTATIONS = [None, *range(10)]


def with_orientation(image: Image.Image, orientation: int | None, style: str, **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x010E] = "a description"
    if orientation is not None:
        exif[0x0112] = orientation
    return encode(image, style, exif=exif, **options)


def by_copies(preprocessing: Preprocessing, image: Image.Image) -> np.ndarray:
    """What the pixels are where each step makes an image of its own."""
    image = ImageOps.exif_transpose(image).convert({1: "L", 3: "RGB"}[preprocessing.channels])
    size = preprocessing.width, preprocessing.height
    return np.asarray(ImageOps.fit(image, size, Image.Resampling.BILINEAR)).reshape(preprocessing.shape)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK", "P", "1"])
@pytest.mark.parametrize("size", [(4, 6), (6, 4), (31, 17)])
def test_pixels_are_those_of_pillow_in_every_orientation(
    orientation: int | None, mode: str, size: tuple[int, int]
) -> None:
    random = np.random.default_rng(size)
    image = Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), np.uint8)).convert(mode)
    styles = {"CMYK": ["JPEG", "TIFF"], "P": ["PNG"], "1": ["PNG"], "RGBA": ["PNG", "WEBP"]}
    for style in styles.get(mode, ["JPEG", "PNG", "TIFF"]):
        content = with_orientation(image, orientation, style)
        for preprocessing in (RGB, GREY):
            expected = by_copies(preprocessing, Image.open(io.BytesIO(content)))
            assert np.array_equal(preprocessing(content), expected), style
            with Image.open(io.BytesIO(content)) as opened:
                assert np.array_equal(preprocessing(opened), expected), style


@pytest.mark.parametrize("orientation", [None, 0, 1, 9])
@pytest.mark.parametrize("size", [(4, 6), (40, 50)])
def test_a_picture_that_does_not_turn_is_not_copied(
    orientation: int | None, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = {
        preprocessing: with_orientation(Image.new(mode, size, 9), orientation, "PNG")
        for preprocessing, mode in ((RGB, "RGB"), (GREY, "L"))
    }
    copies: list[Image.Image] = []
    copy = Image.Image.copy
    monkeypatch.setattr(Image.Image, "copy", lambda image: copies.append(image) or copy(image))
    for preprocessing, content in contents.items():
        preprocessing(content)
        with Image.open(io.BytesIO(content)) as opened:
            preprocessing(opened)
    assert copies == []
    ImageOps.exif_transpose(Image.new("RGB", size))
    assert len(copies) == 1


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "I;16"])
def test_the_image_of_a_caller_stays_as_it_is(orientation: int | None, mode: str, pixels: np.ndarray) -> None:
    image = Image.fromarray(pixels)
    image = Image.fromarray(pixels[..., 0].astype(np.uint16)) if mode == "I;16" else image.convert(mode)
    options = {"transparency": b"\0\x80" if mode == "P" else 0} if mode in ("P", "L") else {}
    with Image.open(io.BytesIO(with_orientation(image, orientation, "PNG", **options))) as opened:
        opened.load()
        before = opened.tobytes(), dict(opened.info), opened.mode, opened.size, dict(opened.getexif())
        for preprocessing in (RGB, GREY):
            preprocessing(opened)[:].sum()
            assert (opened.tobytes(), opened.info, opened.mode, opened.size, dict(opened.getexif())) == before


class TestBadInput:
    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.zeros((4, 4, 3), np.float32), r"dtype float32 and shape \[4, 4, 3\]; expected uint8"),
            (np.zeros((4, 4, 4), np.uint8), r"shape \[4, 4, 4\]; expected uint8 \[H, W\], \[H, W, 1\] or \[H, W, 3\]"),
            (np.zeros((1, 4, 4, 3), np.uint8), r"shape \[1, 4, 4, 3\]"),
            (np.zeros((0, 4, 3), np.uint8), "expected at least one pixel"),
            (np.zeros(4, np.uint8), r"shape \[4\]"),
        ],
    )
    def test_arrays(self, array: np.ndarray, message: str) -> None:
        with pytest.raises(InputError, match=message):
            RGB(array)

    def test_files(self, tmp_path: Path) -> None:
        (tmp_path / "note.txt").write_text("no image")
        (tmp_path / "empty.png").touch()
        with pytest.raises(InputError, match=r"gone.png does not exist; expected an image file"):
            RGB(tmp_path / "gone.png")
        with pytest.raises(InputError, match="is a folder; expected an image file"):
            RGB(tmp_path)
        with pytest.raises(
            InputError, match=r"note.txt is not an image that can be read \(it is a text file, not JPEG"
        ):
            RGB(tmp_path / "note.txt")
        with pytest.raises(InputError, match=r"empty.png is not an image"):
            RGB(tmp_path / "empty.png")

    def test_truncated_file(self, pixels: np.ndarray) -> None:
        content = encode(Image.fromarray(np.repeat(pixels, 50, 0)))
        with pytest.raises(InputError, match="the image cannot be decoded"):
            RGB(content[: len(content) // 2])

    def test_a_format_that_is_not_allowed(self, pixels: np.ndarray) -> None:
        with pytest.raises(InputError, match="is not an image that can be read"):
            RGB(encode(Image.fromarray(pixels), "PPM"))

    def test_several_frames(self, pixels: np.ndarray) -> None:
        image = Image.fromarray(pixels)
        with pytest.raises(InputError, match="has several frames; expected a single picture"):
            RGB(encode(image, "TIFF", save_all=True, append_images=[image]))

    def test_floating_point_pixels(self) -> None:
        with pytest.raises(InputError, match="floating-point pixels, expected 8 or 16 bits"):
            RGB(encode(Image.new("F", (4, 4), 0.5), "TIFF"))

    def test_zero_size(self) -> None:
        with pytest.raises(InputError, match="has the size 0x5; expected at least one pixel"):
            RGB(Image.new("RGB", (0, 5)))

    def test_too_many_pixels_are_refused_before_decoding(self) -> None:
        content = encode(Image.new("L", (100, 100)))
        with pytest.raises(InputError, match="has 100x100 = 10000 pixels; the limit is 9999; scale it down first"):
            RGB(content[:60], Limits(max_pixels=9999))

    def test_a_decompression_bomb(self) -> None:
        header = encode(Image.new("1", (1, 1)))
        bomb = header[:16] + (60_000).to_bytes(4, "big") * 2 + header[24:]
        with pytest.raises(InputError):
            RGB(bomb)

    def test_another_type(self) -> None:
        with pytest.raises(
            InputError, match="got an image of type int; expected a path, bytes, an open file, a PIL image"
        ):
            RGB(3)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "options",
        [
            (0, 4, 3, (0.5,) * 3, (0.5,) * 3),
            (6, 4, 2, (0.5,) * 2, (0.5,) * 2),
            (6, 4, 3, (0.5,), (0.5,) * 3),
            (6, 4, 1, (0.5,), (0.0,)),
            (6, 4, 1, (float("nan"),), (1.0,)),
            (10**6, 10**6, 1, (0.5,), (0.5,)),
            (6, 4, 1, (0.5,), (0.5,), "stretch"),
            (6, 4, 1, (0.5,), (0.5,), "pad", None),
            (6, 4, 1, (0.5,), (0.5,), "crop", (0, 0, 0)),
            (6, 4, 3, (0.5,) * 3, (0.5,) * 3, "crop", (0, 0, 256)),
        ],
    )
    def test_preprocessing_out_of_range(self, options: tuple) -> None:
        with pytest.raises(ArtifactError, match="preprocessing has"):
            Preprocessing(*options)


class TestDeepAndRareFormats:
    """What every format gives, in training and in serving: there is one way from a file to pixels."""

    def test_sixteen_bit_colour_keeps_the_upper_byte(self, pixels: np.ndarray) -> None:
        deep = (pixels.astype(np.uint16) << 8) + 7
        assert np.array_equal(RGB(png(deep, 2)), pixels)
        alpha = np.concatenate([deep, np.full_like(deep[..., :1], 300)], axis=2)
        assert np.array_equal(AS_BEFORE(png(alpha, 6)), pixels)
        for order in "<>":
            assert np.array_equal(RGB(tiff(deep, 2, order=order)), pixels)
            assert np.array_equal(GREY(tiff(deep[..., :1], 1, order=order)), pixels[..., :1])

    def test_sixteen_bit_grey_with_alpha(self, pixels: np.ndarray) -> None:
        deep = (pixels[..., :2].astype(np.uint16) << 8) + 7
        as_before = dataclasses.replace(GREY, background=None)
        assert np.array_equal(as_before(png(deep, 4)), pixels[..., :1])

    def test_one_bit_is_black_and_white(self, pixels: np.ndarray) -> None:
        image = Image.fromarray(pixels[..., 0]).point(lambda value: value > 127, "1")
        expected = np.where(pixels[..., :1] > 127, 255, 0)
        for style in ("PNG", "BMP", "TIFF"):
            assert np.array_equal(GREY(encode(image, style)), expected)
            assert np.array_equal(RGB(encode(image, style)), expected.repeat(3, 2))

    def test_cmyk(self) -> None:
        image = Image.new("CMYK", (4, 6), (255, 0, 0, 0))
        for style in ("JPEG", "TIFF"):
            np.testing.assert_allclose(RGB(encode(image, style)), np.full((6, 4, 3), (0, 255, 255)), atol=3)

    def test_orientation_is_applied_in_every_format_that_has_it(self, pixels: np.ndarray) -> None:
        lying = Image.fromarray(np.rot90(pixels).copy())
        exif = Image.Exif()
        exif[0x0112] = 6
        for style, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
            assert np.array_equal(RGB(encode(lying, style, exif=exif, **options)), pixels), style
        assert RGB(encode(lying.resize((60, 40)), "JPEG", exif=exif)).shape == (6, 4, 3)

    @pytest.mark.parametrize(("photometric", "bits"), [(0, 16), (1, 12)])
    def test_grey_that_pillow_reads_wrongly_is_refused(self, pixels: np.ndarray, photometric: int, bits: int) -> None:
        with pytest.raises(InputError, match="grey of 12 bits, or of 16 bits where 0 is white; expected 8 bits"):
            GREY(tiff(pixels[..., :1].astype(np.uint16), photometric, bits))


class TestLimits:
    def test_what_is_no_regular_file_is_refused_at_once(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.png")
        for path in (tmp_path / "pipe.png", Path("/dev/zero")):
            with pytest.raises(InputError, match=f"{path} is a pipe, a socket or a device; expected an image file"):
                RGB(path)

    @pytest.mark.parametrize("name", ["a\0b.png", "\ud800.png", "x" * 5000, "file.png/more", ""])
    def test_names_that_no_file_has(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "file.png").touch()
        with pytest.raises(InputError, match="expected an image file|is not an image that can be read"):
            RGB(f"{tmp_path}/{name}" if name else name)

    def test_a_name_stays_on_its_line(self) -> None:
        with pytest.raises(InputError, match=r"^'a\\nb.png' does not exist; expected an image file$"):
            RGB("a\nb.png")

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, Path, io.BytesIO])
    def test_too_many_bytes_are_refused_before_reading(
        self, kind: Callable[[Any], Any], pixels: np.ndarray, tmp_path: Path
    ) -> None:
        content = encode(Image.fromarray(pixels))
        (tmp_path / "a.png").write_bytes(content)

        def source() -> Any:
            return kind(tmp_path / "a.png" if kind is Path else content)

        assert RGB(source(), Limits(max_bytes=len(content))).shape == RGB.shape
        with pytest.raises(InputError, match=f"has {len(content)} bytes; the limit is {len(content) - 1}; scale"):
            RGB(source(), Limits(max_bytes=len(content) - 1))

    @pytest.mark.parametrize("style", FORMATS)
    def test_formats_that_are_not_allowed(self, style: str, pixels: np.ndarray) -> None:
        content = encode(Image.fromarray(pixels), style)
        others = tuple(name for name in FORMATS if name != style)
        assert RGB(content, Limits(formats=(style.lower(),))).shape == RGB.shape
        with pytest.raises(InputError, match=f"it is an? .*, not {', '.join(others[:-1])} or {others[-1]}.; convert"):
            RGB(content, Limits(formats=others))

    def test_a_progressive_jpeg_that_paints_its_pixels_again_and_again(self, pixels: np.ndarray) -> None:
        content = encode(Image.fromarray(pixels), "JPEG", progressive=True)
        *start, last = content[:-2].split(b"\xff\xda")
        several = [b"\xff\xda".join([*start, *[last] * count]) + b"\xff\xd9" for count in (5, 100)]
        assert np.array_equal(RGB(several[0] + several[1]), RGB(several[0])), "what follows the image does not count"
        with pytest.raises(InputError, match=r"cannot be decoded \(scans that refine its pixels more than 8 times\)"):
            RGB(several[1])
        comment = b"\xff\xfe\0\4\xff\xd9"
        with pytest.raises(InputError, match="more than 8 times"):
            RGB((b"\xff\xda".join(start) + (b"\xff\xda" + last + comment) * 101) + b"\xff\xd9")
        with pytest.raises(InputError, match="more than 10000 segments"):
            RGB(content[:2] + b"\xff\xfe\0\2" * 10_001 + content[2:])

    @pytest.mark.parametrize("kind", [b"zTXt", b"iCCP", b"iTXt"])
    def test_a_png_with_text_that_swells(self, pixels: np.ndarray, kind: bytes) -> None:
        content, swollen = encode(Image.fromarray(pixels)), zlib.compress(bytes(8 << 20), 9)
        head = b"k\0\1\0\0\0" if kind == b"iTXt" else b"k\0\0"
        with pytest.raises(InputError, match="is not an image that can be read"):
            RGB(content[:33] + chunk(kind, head + swollen) + content[33:])

    def test_a_png_with_more_pixels_than_it_says(self, pixels: np.ndarray) -> None:
        content = encode(Image.fromarray(pixels))
        more = chunk(b"IDAT", zlib.compress(bytes(8 << 20), 9))
        assert RGB(content[:33] + more + content[-12:]).max() == 0

    def test_a_png_of_comments(self, pixels: np.ndarray, tmp_path: Path) -> None:
        content = encode(Image.fromarray(pixels))
        assert np.array_equal(RGB(content[:33] + chunk(b"tEXt", b"k\0v") * 1000 + content[33:]), pixels)
        many = content[:33] + chunk(b"tEXt", b"k\0" + bytes(9)) * (1 << 17) + content[33:]
        (tmp_path / "many.png").write_bytes(many)
        for source in (many, tmp_path / "many.png"):
            with pytest.raises(InputError, match="more than [0-9]+ chunks in [0-9]+ bytes"):
                RGB(source)

    def test_a_tiff_with_absurd_tags(self, pixels: np.ndarray) -> None:
        assert np.array_equal(RGB(tiff(pixels, 2, 8)), pixels)
        with pytest.raises(InputError, match="1000000 values of tag 273"):
            RGB(tiff(pixels, 2, 8, tag_273=1_000_000))
        big = b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 5000)
        with pytest.raises(InputError, match="5000 tags"):
            RGB(big)
        for content in (b"II*\0", b"MM\0+\0\0\0\x08", b"II*\0\xff\xff\xff\xff", tiff(pixels, 2, 8)[:60]):
            with pytest.raises(InputError, match="is not an image that can be read"):
                RGB(content)

    def test_a_tiff_with_a_chain_of_frames_is_not_walked(self, pixels: np.ndarray) -> None:
        content = tiff(pixels, 2, 8)
        start, count = len(content), 100_000
        chain = b"".join(struct.pack("<HI", 0, start + 6 * (number + 1)) for number in range(count))
        with pytest.raises(InputError, match="has several frames"):
            RGB(content[:-4] + struct.pack("<I", start) + chain)

    def test_errors_of_pillow_that_are_no_os_errors(self) -> None:
        content = bytearray(encode(Image.new("L", (4, 4)), "TIFF"))
        (directory,) = struct.unpack_from("<I", content, 4)
        struct.pack_into("<H", content, directory, 0)
        with pytest.raises(InputError, match="is not an image that can be read"):
            RGB(bytes(content))

    def test_a_file_is_read_like_its_bytes(self, pixels: np.ndarray, tmp_path: Path) -> None:
        content = bytearray(tiff(pixels[..., :1], 1, 8))
        rows_per_strip = content.index(struct.pack("<HHI", 278, 3, 1))
        struct.pack_into("<HII", content, rows_per_strip + 2, 12, 1, 8)
        (tmp_path / "a.tif").write_bytes(content)
        with Image.open(tmp_path / "a.tif") as mapped:
            mapped.load()
        for source in (bytes(content), tmp_path / "a.tif"):
            with pytest.raises(InputError, match="cannot be decoded"):
                GREY(source)
