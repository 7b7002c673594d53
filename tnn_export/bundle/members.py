"""Bundles that can be taken together as the members of an ensemble."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tnn_export.ensemble.member import MEMBERS, Member
from tnn_export.errors import ExportError
from tnn_runtime.bundle.manifest import ONNX_FILE, PRECISIONS, PT2_FILE, TORCHSCRIPT_FILE, BatchBounds, Manifest
from tnn_runtime.bundle.opened import Bundle, open_bundle
from tnn_runtime.images.preprocess import Preprocessing
from tnn_runtime.text import printable

__all__ = ["Members", "read_members"]

_FILES = {"onnx": ONNX_FILE, "torchscript": TORCHSCRIPT_FILE, "pt2": PT2_FILE}
"""The formats that members have, each with its file."""


@dataclass(frozen=True)
class Members:
    """Bundles that can be taken together.

    Args:
        bundles: The bundles.
        records: What the ensemble records of each.
        preprocessing: What happens to images before they enter any of them.
        batch: The batch sizes that all of them take.
        precision: The least exact of theirs.
    """

    bundles: tuple[Bundle, ...]
    records: tuple[Member, ...]
    preprocessing: Preprocessing
    batch: BatchBounds
    precision: str

    @property
    def manifests(self) -> list[Manifest]:
        """The manifest of each."""
        return [bundle.manifest for bundle in self.bundles]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, in the order of the first of them."""
        return self.bundles[0].manifest.class_names

    def files(self, kind: str) -> list[Path]:
        """Return the artifact of each in a format that all have.

        Raises:
            ExportError: If one has none.
        """
        for bundle in self.bundles:
            if _FILES[kind] not in bundle.manifest.files:
                raise ExportError(
                    f"{bundle.folder} has no {_FILES[kind]}, which the format {kind} of an ensemble is made from; "
                    "export it again with that format, or choose --formats that all have"
                )
        return [bundle.folder / _FILES[kind] for bundle in self.bundles]

    @property
    def formats(self) -> list[str]:
        """The formats that all of them have."""
        return [kind for kind, file in _FILES.items() if all(file in one.files for one in self.manifests)]


def read_members(members: Sequence[str | Path], public_key: str | Path | None = None) -> Members:
    """Read bundles, and make sure that they can be taken together.

    Args:
        members: Two or more bundle folders.
        public_key: The PEM file of the Ed25519 key whose owner must have signed each of them.

    Raises:
        SignatureError: If a key is given and a bundle is not signed with it.
        ArtifactError: If a bundle is missing, damaged or altered.
        ExportError: If they do not go together.
    """
    if isinstance(members, str | Path) or len(members) < 2:
        count = 1 if isinstance(members, str | Path) else len(members)
        raise ExportError(f"got {count} bundle{'s' * (count != 1)} for an ensemble; expected 2 or more")
    bundles = tuple(open_bundle(Path(member), public_key) for member in members)
    first = bundles[0]
    seen: dict[str, Path] = {}
    for bundle in bundles:
        for digest in _digests(bundle):
            if digest in seen:
                verb = "is" if digest == bundle.digest else "has a member that is"
                raise ExportError(
                    f"{bundle.folder} {verb} the same bundle as {seen[digest]}, or one of its members; expected each "
                    "one once, as an ensemble counts all alike"
                )
        seen |= dict.fromkeys(_digests(bundle), bundle.folder)
        _refuse_other_classes(first, bundle)
        _refuse_other_images(first, bundle)
    manifests = [bundle.manifest for bundle in bundles]
    names = first.manifest.class_names
    together = Members(
        bundles,
        tuple(_record(bundle, names) for bundle in bundles),
        _preprocessing(manifests),
        _batch(bundles),
        max((manifest.precision for manifest in manifests), key=PRECISIONS.index),
    )
    if not together.formats:
        raise ExportError(
            "the bundles have no format in common: "
            + "; ".join(f"{one.folder} has {', '.join(_kinds(one.manifest))}" for one in bundles)
            + "; export them again with --formats onnx"
        )
    return together


def _record(bundle: Bundle, class_names: Sequence[str]) -> Member:
    manifest = bundle.manifest
    order = tuple(manifest.class_names.index(name) for name in class_names)
    return Member(
        bundle.folder.absolute().name,
        bundle.digest,
        manifest.model,
        manifest.precision,
        tuple(size or 0 for size in manifest.outputs[1].shape[1:]),
        manifest.temperature,
        None if order == tuple(range(len(order))) else order,
    )


def _kinds(manifest: Manifest) -> list[str]:
    return [kind for kind, file in _FILES.items() if file in manifest.files]


def _digests(bundle: Bundle) -> list[str]:
    """Return the digest of a bundle, and if it is an ensemble, those of its members and theirs."""

    def inside(model: Mapping[str, Any]) -> Iterator[str]:
        for member in model.get(MEMBERS, ()):
            yield member["digest"]
            yield from inside(member["model"])

    return [bundle.digest, *inside(bundle.manifest.model)]


def _refuse_other_classes(first: Bundle, other: Bundle) -> None:
    ours, theirs = ({*bundle.manifest.class_names} for bundle in (first, other))
    if ours != theirs:
        name, where, lacks = min(
            [(name, first.folder, other.folder) for name in ours - theirs]
            + [(name, other.folder, first.folder) for name in theirs - ours]
        )
        raise ExportError(
            f"{where} has the class {printable(name)!r}, and {lacks} has not; expected bundles of the same classes, in "
            "any order"
        )


def _refuse_other_images(first: Bundle, other: Bundle) -> None:
    ours, theirs = first.manifest.preprocessing, other.manifest.preprocessing
    for name in ("height", "width", "channels", "fit", "background"):
        values = getattr(ours, name), getattr(theirs, name)
        if values[0] != values[1]:
            raise ExportError(
                f"{first.folder} has images of {name} {values[0]}, and {other.folder} of {name} {values[1]}; all "
                "members get the same image: train them with the same --image-size, --fit and --background, on "
                "images of as many channels"
            )


def _preprocessing(manifests: Sequence[Manifest]) -> Preprocessing:
    """Return that of all; where they normalise differently, the pixels as they are, since each graph does it itself."""
    first = manifests[0].preprocessing
    if all((one.preprocessing.mean, one.preprocessing.std) == (first.mean, first.std) for one in manifests):
        return first
    return dataclasses.replace(first, mean=(0.0,) * first.channels, std=(1.0,) * first.channels)


def _batch(bundles: Sequence[Bundle]) -> BatchBounds:
    """Return the batch sizes that all take."""
    low = max(bundles, key=lambda bundle: bundle.manifest.batch.smallest)
    bounded = [bundle for bundle in bundles if bundle.manifest.batch.largest is not None]
    if not bounded:
        return BatchBounds(low.manifest.batch.smallest)
    high = min(bounded, key=lambda bundle: bundle.manifest.batch.largest or 0)
    smallest, largest = low.manifest.batch.smallest, high.manifest.batch.largest
    if largest is not None and largest < smallest:
        raise ExportError(
            f"{high.folder} takes at most {largest} images at once, and {low.folder} at least {smallest}; export "
            "one of them again with another --min-batch or --max-batch"
        )
    return BatchBounds(smallest, largest)
