"""What a file is by its first bytes, whatever its name says."""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["HEAD", "Kind", "kind_of"]

HEAD = 1024
"""How many of the first bytes tell."""


class Kind(NamedTuple):
    """What a file is.

    Args:
        name: Such as ``"a HEIC picture"``.
        remedy: What to do with such a file, whatever it was taken for; empty if that depends.
        is_picture: Whether it can be converted to another image format.
    """

    name: str
    remedy: str = ""
    is_picture: bool = False


def _picture(name: str) -> Kind:
    return Kind(name, is_picture=True)


_AGAIN = "its download failed: download it again"
_BRAND = rb".{4}ftyp(?:.{4}){0,16}?"

_KINDS: tuple[tuple[bytes, Kind], ...] = (
    (rb"\xff\xd8\xff", _picture("a JPEG")),
    (rb"\x89PNG\r\n\x1a\n", _picture("a PNG")),
    (rb"RIFF.{4}WEBP", _picture("a WebP picture")),
    (rb"BM.{4}\0{4}", _picture("a BMP picture")),
    (rb"(?:II\x2a\0.{4}CR|FUJIFILMCCD-RAW|IIR[OS]|MMOR|IIU\0|\0MRM|FOVb)", _picture("a camera RAW file")),
    (rb"(?:II[\x2a\x2b]\0|MM\0[\x2a\x2b])", _picture("a TIFF")),
    (rb"GIF8[79]a", _picture("a GIF")),
    (rb".{4}ftypcrx ", _picture("a camera RAW file")),
    (_BRAND + rb"avi[fs]", _picture("an AVIF picture")),
    (_BRAND + rb"(?:hei[cxms]|hev[cxms])", _picture("a HEIC picture")),
    (rb".{4}ftyp(?:mif1|msf1)", _picture("a HEIF picture")),
    (rb".{4}ftyp", Kind("a video")),
    (rb"(?:\0{3}\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51)", _picture("a JPEG 2000 picture")),
    (rb"(?:\0{3}\x0cJXL \r\n\x87\n|\xff\x0a)", _picture("a JPEG XL picture")),
    (rb"II\xbc", _picture("a JPEG XR picture")),
    (rb"8BPS", _picture("a Photoshop file")),
    (rb"gimp xcf", _picture("a GIMP file")),
    (rb"\0\0[\x01\x02]\0[^\0]\0", _picture("an icon")),
    (rb"v/1\x01", _picture("an OpenEXR picture")),
    (rb"DDS ", _picture("a DDS texture")),
    (rb"P[1-7]\s", _picture("a PNM picture")),
    (rb"%!PS|\xc5\xd0\xd3\xc6", _picture("a PostScript file")),
    (rb"%PDF-", _picture("a PDF")),
    (rb"(?:RIFF.{4}AVI |\x1aE\xdf\xa3)", Kind("a video")),
    (rb"\0\0\0\x01Bud1", Kind("a .DS_Store, which macOS leaves in folders")),
    (rb"\0\x05\x16[\0\x07]", Kind("what macOS keeps beside a file on other disks, not the file itself")),
    (rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", Kind("a file of Windows or an old Office, such as Thumbs.db")),
    (rb"PK(?:\x03\x04|\x05\x06)", Kind("a ZIP archive")),
    (rb"\x1f\x8b", Kind("a gzip archive")),
    (rb"7z\xbc\xaf\x27\x1c", Kind("a 7-Zip archive")),
    (rb"Rar!\x1a\x07", Kind("a RAR archive")),
    (rb"(?:BZh|\xfd7zXZ\0|\x28\xb5\x2f\xfd)", Kind("a compressed file")),
    (rb".{257}ustar", Kind("a tar archive")),
    (rb"\x89HDF\r\n\x1a\n", Kind("an HDF5 file, as Keras writes")),
    (rb"\x93NUMPY", Kind("a NumPy array")),
    (rb".{4}TFL3", Kind("a TensorFlow Lite model")),
    (rb"GGUF", Kind("a GGUF model")),
    (rb".{8}\{\s*\"", Kind("a safetensors file")),
    (rb"\x08[\x01-\x14](?:\x12|\x3a|\x1a|\x22)", Kind("an ONNX model")),
    (rb"\x80[\x02-\x05]", Kind("a pickle")),
    (rb"version https://git-lfs", Kind("a Git LFS pointer", "the file itself is not here: run git lfs pull")),
    (rb"(?i)\s*(?>(?:<!--.*?-->\s*)*)<(?:!doctype html|html|head|body|title|script)\b", Kind("an HTML page", _AGAIN)),
    (rb"(?i)\s*(?:<\?xml.*?)?(?>(?:<!--.*?-->\s*|<!doctype svg.*?>\s*)*)<svg\b", _picture("an SVG drawing")),
    (rb"(?i)\s*<\?xml\b", Kind("an XML file", _AGAIN)),
    (rb"\s*[{\[]\s*[\"\[{\]}]", Kind("a JSON file", _AGAIN)),
    (rb"\0+\Z", Kind("nothing but zero bytes", "it was not copied or downloaded to its end: copy it again")),
    (rb"\s*\Z", Kind("nothing but blanks", "it was not copied or downloaded to its end: copy it again")),
)
"""Patterns of the first bytes, in the order in which they are tried."""

_PATTERNS = [(re.compile(pattern, re.DOTALL), kind) for pattern, kind in _KINDS]


def kind_of(head: bytes) -> Kind | None:
    """Return what a file is; ``None`` if its bytes do not tell.

    Args:
        head: Its first `HEAD` bytes, or all that it has.
    """
    text = head.removeprefix(b"\xef\xbb\xbf")
    for pattern, kind in _PATTERNS:
        if pattern.match(text):
            return kind
    return Kind("a text file") if _is_text(head) else None


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # else the last character is cut off
            return False
        text = head[: error.start].decode()
    return all(character.isprintable() or character in "\t\r\n\f" for character in text)
