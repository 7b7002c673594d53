from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tnn_runtime import ArtifactError, InputError
from tnn_runtime import preprocess as module
from tnn_runtime.preprocess import Preprocessing, find_images

RGB = Preprocessing(6, 4, 3, (0.5,) * 3, (0.5,) * 3)
GREY = Preprocessing(6, 4, 1, (0.5,), (0.5,))


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (6, 4, 3), dtype=np.uint8)


def encode(image: Image.Image, style: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, style, **options)
    return buffer.getvalue()


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


def test_files_are_found_in_order_without_hidden_ones(tmp_path: Path) -> None:
    for name in ("b.png", "a/1.png", ".hidden.png", ".cache/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_images(tmp_path) == [tmp_path / "a" / "1.png", tmp_path / "b.png"]


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
        with pytest.raises(InputError, match=r"note.txt is not an image that can be read \(expected one of JPEG, PNG"):
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
        with pytest.raises(InputError, match="has 2 frames; expected a single picture"):
            RGB(encode(image, "TIFF", save_all=True, append_images=[image]))

    def test_floating_point_pixels(self) -> None:
        with pytest.raises(InputError, match="floating-point pixels, expected 8 or 16 bits"):
            RGB(encode(Image.new("F", (4, 4), 0.5), "TIFF"))

    def test_zero_size(self) -> None:
        with pytest.raises(InputError, match="has the size 0x5; expected at least one pixel"):
            RGB(Image.new("RGB", (0, 5)))

    def test_too_many_pixels_are_refused_before_decoding(self, monkeypatch: pytest.MonkeyPatch) -> None:
        content = encode(Image.new("L", (100, 100)))
        monkeypatch.setattr(module, "MAX_PIXELS", 9999)
        with pytest.raises(InputError, match="has 100x100 = 10000 pixels; the limit is 9999; scale it down first"):
            RGB(content[:60])

    def test_a_decompression_bomb(self) -> None:
        header = encode(Image.new("1", (1, 1)))
        bomb = header[:16] + (60_000).to_bytes(4, "big") * 2 + header[24:]
        with pytest.raises(InputError):
            RGB(bomb)

    def test_another_type(self) -> None:
        with pytest.raises(InputError, match="got an image of type int; expected a path, bytes, a PIL image"):
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
        ],
    )
    def test_preprocessing_out_of_range(self, options: tuple) -> None:
        with pytest.raises(ArtifactError, match="preprocessing has"):
            Preprocessing(*options)
