"""What an image may be, by argument and by the environment."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES
from image_files import encode
from PIL import Image
from rooms import ROOT

from tnn_runtime import Classifier, InputError, Limits, UsageError
from tnn_runtime.images.limits import FORMATS

BUNDLE = FIXTURES / "bundle-v2"
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_pixels": 0}, "max_pixels is 0; expected an integer of at least 1"),
        ({"max_pixels": 1e6}, "max_pixels is 1000000.0; expected an integer"),
        ({"max_bytes": -5}, "max_bytes is -5"),
        ({"max_bytes": 1 << 50}, "max_bytes is 1125899906842624; expected an integer of at least 1 and below"),
        ({"formats": ()}, "formats is .*; expected one or more of JPEG, PNG, WEBP, BMP, TIFF"),
        ({"formats": "JPEG"}, "formats is 'JPEG'; expected one or more of"),
        ({"formats": ("JPEG", "GIF")}, r"formats is \('JPEG', 'GIF'\); expected one or more of"),
        ({"formats": None}, "formats is None"),
    ],
)
def test_limits_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Limits(**options)


def test_formats_are_in_one_order_and_spelling() -> None:
    assert Limits(formats=("png", "Jpeg", "PNG")) == Limits(formats=("JPEG", "PNG"))
    assert Limits(formats=["tiff"]).formats == ("TIFF",)


@pytest.mark.parametrize(
    ("name", "value", "key", "expected"),
    [
        ("TNN_MAX_PIXELS", "100", "max_pixels", 100),
        ("TNN_MAX_PIXELS", "", "max_pixels", 50_000_000),
        ("TNN_MAX_PIXELS", "  4_096 ", "max_pixels", 4096),
        ("TNN_MAX_BYTES", "1000", "max_bytes", 1000),
        ("TNN_FORMATS", "png, jpeg", "formats", ("JPEG", "PNG")),
        ("TNN_FORMATS", "PNG", "formats", ("PNG",)),
        ("TNN_FORMATS", " , ", "formats", FORMATS),
    ],
)
def test_the_environment_sets_limits_unless_an_argument_does(
    name: str, value: str, key: str, expected: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with Classifier.load(BUNDLE, "cpu") as classifier:
        assert classifier.info["limits"][key] == expected
    with Classifier.load(BUNDLE, "cpu", limits=Limits()) as classifier:
        assert classifier.info["limits"] == {"max_pixels": 50_000_000, "max_bytes": 200_000_000, "formats": FORMATS}


@pytest.mark.parametrize(("name", "key"), [("TNN_THREADS", "threads"), ("TNN_DECODERS", "decoders")])
def test_the_environment_sets_threads_unless_an_argument_does(
    name: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "3")
    for options, expected in (({}, 3), ({key: 2}, 2)):
        with Classifier.load(BUNDLE, "cpu", **options) as classifier:  # type: ignore[arg-type]
            assert classifier.info[key] == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TNN_MAX_PIXELS", "many"),
        ("TNN_MAX_PIXELS", "0"),
        ("TNN_MAX_BYTES", "1e6"),
        ("TNN_FORMATS", "GIF"),
        ("TNN_THREADS", "-1"),
        ("TNN_DECODERS", "2.5"),
        ("TNN_DECODERS", "9" * 5000),
    ],
)
def test_a_variable_without_a_meaning_is_named(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=rf"{name} is .*{re.escape(value[:20])}.*; expected"):
        Classifier.load(BUNDLE, "cpu")


def test_limits_hold_wherever_images_come_in(tmp_path: Path) -> None:
    content = encode(Image.fromarray(PIXELS), "BMP")
    (tmp_path / "a.bmp").write_bytes(content)
    good = encode(Image.fromarray(PIXELS[:9]))
    limits = Limits(max_pixels=100, max_bytes=10_000, formats=("PNG", "JPEG"))
    refused = [
        (PIXELS, "has 10x12 = 120 pixels; the limit is 100"),
        (Image.fromarray(PIXELS), "has 10x12 = 120 pixels; the limit is 100"),
        (content, "it is a BMP picture, not JPEG or PNG); convert it to JPEG or PNG"),
        (tmp_path / "a.bmp", "it is a BMP picture, not JPEG or PNG); convert it to JPEG or PNG"),
        (good + bytes(10_000), f"has {10_000 + len(good)} bytes; the limit is 10000"),
    ]
    with Classifier.load(BUNDLE, "cpu", limits=limits) as classifier:
        for image, message in refused:
            with pytest.raises(InputError, match=re.escape(message)):
                classifier.predict([image])
            with pytest.raises(InputError, match=rf"images\[1\]: .*{re.escape(message)}"):
                classifier.predict([good, image])
            with pytest.raises(InputError, match=re.escape(message)):
                classifier.submit(image).result()
        assert classifier.predict([good])[0]
    with Classifier.load(BUNDLE, "cpu") as classifier:
        assert all(classifier.predict([image for image, _ in refused[:4]]))


def test_every_variable_is_in_the_table_of_the_docs() -> None:
    sources = (ROOT / "tnn_runtime").rglob("*.py")
    used = {name for source in sources for name in re.findall(r"\bTNN_[A-Z_]+\b", source.read_text())}
    listed = re.findall(r"^\|.*`(TNN_[A-Z_]+)` \|", (ROOT / "docs" / "serving.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(used)
