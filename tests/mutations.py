"""Bundles that are damaged in every way we could think of, and a judge: ``python tests/mutations.py 7``.

The number of a mutation decides all of it. A range of them is judged in a process of its own, which prints a line
before and after each: what dies or hangs is known by name, also if it is the process. Nothing is written outside a
temporary folder.
"""

from __future__ import annotations

import contextlib
import copy
import faulthandler
import hashlib
import io
import json
import os
import resource
import shutil
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tnn_runtime import Classifier, Manifest, TnnError
from tnn_runtime.bundle.manifest import SCHEMA_VERSION

SOURCE = Path(__file__).parent / "fixtures" / f"bundle-v{SCHEMA_VERSION}"
FILES = sorted(path.name for path in SOURCE.iterdir())
LISTED = [name for name in FILES if name != "manifest.json"]
USED = ["golden.npz", "head.npz", "model.onnx"]
Random = np.random.Generator

_SECONDS = 120
_MEMORY = 6 << 30


def flip(content: bytes, random: Random) -> bytes:
    values = bytearray(content)
    for _ in range(int(random.choice([1, 1, 1, 2, 16]))):
        values[int(random.integers(len(values)))] ^= 1 << int(random.integers(8))
    return bytes(values)


def truncate(content: bytes, random: Random) -> bytes:
    return content[: int(random.integers(len(content)))]


def append(content: bytes, random: Random) -> bytes:
    return content + random.bytes(int(random.integers(1, 100)))


def zero(content: bytes, random: Random) -> bytes:
    start, length = int(random.integers(len(content))), int(random.integers(1, 64))
    return content[:start] + bytes(len(content[start : start + length])) + content[start + length :]


def insert(content: bytes, random: Random) -> bytes:
    place = int(random.integers(len(content)))
    return content[:place] + random.bytes(int(random.integers(1, 16))) + content[place:]


def double(content: bytes, random: Random) -> bytes:
    start, end = sorted(int(place) for place in random.integers(len(content), size=2))
    return content[:end] + content[start:]


def replace(content: bytes, random: Random) -> bytes:
    return random.bytes(int(random.integers(200)))


BYTES: list[Callable[[bytes, Random], bytes]] = [flip, flip, flip, truncate, append, zero, insert, double, replace]


def pick(random: Random, choices: Any) -> Any:
    return choices[int(random.integers(len(choices)))]


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 3, 7, 1 << 31, 1 << 63, -(1 << 63), 10**400, 0.5, -0.0, 1e308, 1e-320),
    *(float("nan"), float("inf"), -float("inf"), "", "x", "fp16", "\0", "a\nb", "\ud800", "ümläut", "x" * 10_000),
    *([], {}, [None], [[]], {"": {}}, {"passed": True}, [1, 2, 3], nested(100), nested(900), nested(990)),
]
NAMES = [
    *(
        "/etc/passwd",
        "../manifest.json",
        "..",
        ".",
        "",
        "a/b",
        "a\\b",
        "C:\\x",
        "\\\\host\\x",
        "~",
        "-rf",
        ".hidden",
        "\0",
    ),
    *("model.onnx\0", "model.onnx\n", "model.onnx ", " model.onnx", "mödel.onnx", "model.onnx\u202e", "\uff0e\uff0e/x"),
    *(
        "a" * 255,
        "a" * 256,
        "a" * 5000,
        "%2e%2e",
        "manifest.json",
        "MODEL.ONNX",
        "\ud800",
        "a\nb",
        "file:///etc/passwd",
    ),
]


def write_manifest(bundle: Path, content: Any) -> None:
    (bundle / "manifest.json").write_text(json.dumps(content))


def places(content: Any) -> list[tuple[Any, Any]]:
    """Return every place ``(container, key)`` in a JSON value."""
    found = []
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        found += [(content, key), *places(value)]
    return found


def edit_manifest(bundle: Path, random: Random) -> None:
    content = json.loads((bundle / "manifest.json").read_text())
    for name in ("training", "metrics", "versions"):
        if random.random() < 0.9:
            content[name] = {}
    for parity in content["parity"].values():
        del parity["relative"]
    for _ in range(int(random.choice([1, 1, 2]))):
        container, key = pick(random, places(content))
        way = int(random.integers(5))
        if way < 2:
            container[key] = pick(random, VALUES)
        elif way == 2:
            del container[key]
        elif way == 3 and isinstance(container, dict):
            container[pick(random, ["x", *NAMES])] = container.pop(key)
        else:
            other, place = pick(random, places(content))
            container[key] = copy.deepcopy(other[place])
    write_manifest(bundle, content)


def edit_names(bundle: Path, random: Random) -> None:
    content = json.loads((bundle / "manifest.json").read_text())
    files = content["files"]
    name, old = pick(random, NAMES), pick(random, LISTED)
    way = int(random.integers(4))
    if way == 0:
        files[name] = files.pop(old)
    elif way == 1:
        files[name] = files[old]
    elif way == 2:
        files[name] = pick(random, VALUES)
    else:
        # Never written: names that lead out of the folder.
        if "/" not in name and name not in ("", ".", ".."):
            with contextlib.suppress(OSError, ValueError):
                (bundle / name).write_bytes((bundle / old).read_bytes())
        files[name] = files.pop(old)
    write_manifest(bundle, content)


def edit_folder(bundle: Path, random: Random) -> None:
    name, other = (str(value) for value in random.choice(FILES, 2, replace=False))
    path = bundle / name
    content = path.read_bytes()
    way = int(random.integers(6))
    if way == 0:
        path.write_bytes((bundle / other).read_bytes())
        (bundle / other).write_bytes(content)
        return
    path.unlink()
    if way == 1:
        path.mkdir()
    elif way == 2:
        path.symlink_to(SOURCE / name)
    elif way == 3:
        path.symlink_to(path)
    elif way == 4:
        os.mkfifo(path)


def edit_bytes(bundle: Path, random: Random) -> None:
    path = bundle / pick(random, FILES)
    path.write_bytes(pick(random, BYTES)(path.read_bytes(), random))


def rehash(bundle: Path, name: str, content: bytes) -> None:
    (bundle / name).write_bytes(content)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    write_manifest(bundle, manifest)


def edit_bytes_and_hash(bundle: Path, random: Random) -> None:
    name = pick(random, [*USED, "model.onnx"])
    rehash(bundle, name, pick(random, BYTES)((SOURCE / name).read_bytes(), random))


def edit_graph(bundle: Path, random: Random) -> None:
    """Change the graph and not only its bytes, so that what is parsed is still a model."""
    import onnx

    model = onnx.load(SOURCE / "model.onnx")
    graph = model.graph
    for _ in range(int(random.choice([1, 1, 3]))):
        node, tensor = pick(random, graph.node), pick(random, graph.initializer)
        way = int(random.integers(12))
        if way == 0:
            node.op_type = pick(
                random, [other.op_type for other in graph.node] + ["Nothing", "Shape", "Loop", "NonZero", ""]
            )
        elif way == 1 and node.attribute:
            attribute = pick(random, node.attribute)
            attribute.i = pick(random, [0, -1, 1 << 40, -(1 << 63)])
            attribute.ints[:] = [pick(random, [0, -1, 3, 1 << 40]) for _ in attribute.ints]
        elif way == 2 and node.attribute:
            del node.attribute[:]
        elif way == 3:
            graph.node.remove(node)
        elif way == 4 and node.input:
            node.input[int(random.integers(len(node.input)))] = pick(
                random, [tensor.name, "images", "logits", "", "nothing"]
            )
        elif way == 5:
            tensor.dims[:] = [pick(random, [0, 1, -1, 3, 1 << 31, 1 << 40]) for _ in tensor.dims]
        elif way == 6:
            tensor.data_type = int(random.integers(0, 24))
        elif way == 7:
            values = np.full(list(tensor.dims), pick(random, [np.nan, np.inf, -1e38, 0.0, 1e-45]), np.float32)
            if tensor.data_type == onnx.TensorProto.FLOAT:
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        elif way == 8:
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            location = pick(
                random, ["../../../etc/passwd", "/etc/passwd", "/dev/zero", "golden.npz", "nothing", "", "."]
            )
            for key, value in (("location", location), ("offset", pick(random, ["0", "-1", str(1 << 60)]))):
                tensor.external_data.add(key=key, value=value)
        elif way == 9:
            pick(random, model.opset_import).version = pick(random, [0, -1, 1, 7, 1000])
        elif way == 10:
            value = pick(random, [*graph.input, *graph.output])
            dim = pick(random, value.type.tensor_type.shape.dim)
            dim.dim_value = pick(random, [0, 1, -1, 5, 1 << 40])
        else:
            graph.output.reverse()
    rehash(bundle, "model.onnx", model.SerializeToString())


DTYPES = ["bool", "i1", "u8", "f2", "f8", ">f4", "c8", "U3", "S3", "M8[s]", "m8[s]", "V4"]


def edit_arrays(bundle: Path, random: Random) -> None:
    """Change the arrays of an archive and not only its bytes, so that what is read are still arrays."""
    name = pick(random, ["golden.npz", "head.npz"])
    with np.load(SOURCE / name) as file:
        arrays = dict(file)
    key = pick(random, list(arrays))
    array = arrays[key]
    way = int(random.integers(8))
    if way == 0:
        arrays[key] = np.zeros(array.shape, pick(random, DTYPES))
    elif way == 1:
        arrays[key] = np.full(array.shape, pick(random, [np.nan, np.inf, -1e38, 0, 255]), np.float64).astype(
            array.dtype
        )
    elif way == 2:
        arrays[key] = pick(
            random, [array[..., None], array.reshape(-1), np.atleast_1d(array)[:0], np.float32(1), array.T]
        )
    elif way == 3:
        del arrays[key]
    elif way == 4:
        arrays[key] = arrays[pick(random, list(arrays))]
    elif way == 5:
        arrays[pick(random, ["x", *NAMES[:4]])] = arrays.pop(key)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    if way > 5:
        with zipfile.ZipFile(buffer, "w") as archive:
            for entry, value in arrays.items():
                stream = io.BytesIO()
                np.lib.format.write_array(stream, value)
                content = stream.getvalue()
                header = pick(random, [b"(10**18,)", b"(-1,)", b"(999999999999,)", b"'x'", b"()", b"((((", b"(1,)*9"])
                if entry == key and way == 6:
                    content = content.replace(b"'shape': (", b"'shape': " + header + b", 'x': (", 1)
                elif entry == key:
                    content = pick(random, BYTES)(content, random)
                archive.writestr(f"{entry}.npy", content)
    rehash(bundle, name, buffer.getvalue())


KINDS: dict[str, tuple[int, Callable[[Path, Random], None]]] = {
    "bytes": (300, edit_bytes),
    "folder": (100, edit_folder),
    "names": (150, edit_names),
    "manifest": (600, edit_manifest),
    "rehashed bytes": (300, edit_bytes_and_hash),
    "rehashed graph": (300, edit_graph),
    "rehashed arrays": (250, edit_arrays),
}
ORDER = [kind for kind, (count, _) in KINDS.items() for _ in range(count)]


def mutate(number: int, bundle: Path) -> str:
    """Make the mutation of that number in ``bundle`` and return its kind."""
    shutil.copytree(SOURCE, bundle)
    kind = ORDER[number]
    limit = sys.getrecursionlimit()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sys.setrecursionlimit(20_000)
        KINDS[kind][1](bundle, np.random.default_rng(number))
        sys.setrecursionlimit(limit)
    return kind


def judge(bundle: Path, images: Any, expected: Any, allowed: float) -> str:
    """Load a bundle and use all of it; return ``refused``, ``intact``, or what is wrong."""
    try:
        with Classifier.load(bundle, "cpu", threads=1) as classifier:
            logits = classifier.logits(images)
            classifier.embed(images)
            classifier.predict(images[:1])
            try:
                classifier.explain(images[:1])
            except TnnError as error:
                return "refused" if "\n" not in str(error) else f"several lines: {error}"
    except TnnError as error:
        return "refused" if "\n" not in str(error) else f"several lines: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if logits.shape != expected.shape:
        return f"logits of shape {logits.shape}"
    worst = float(np.abs(logits - expected).max())
    return "intact" if worst <= allowed else f"logits that differ by {worst}"


def sign(folder: Path) -> tuple[Path, bytes]:
    """Return the file of a public key, and the signature of the source by its owner."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = Ed25519PrivateKey.generate()
    public = folder / "pub.pem"
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return public, key.sign((SOURCE / "manifest.json").read_bytes())


def is_accepted(bundle: Path, public: Path) -> bool:
    try:
        Manifest.read(bundle, public)
    except TnnError:
        return False
    return True


def is_unchanged(bundle: Path) -> bool:
    """Return whether each file is what it was; those that serving can do without may be gone."""
    optional = json.loads((SOURCE / "manifest.json").read_text()).get("optional", ())
    return all(
        (bundle / name).is_file() and (bundle / name).read_bytes() == (SOURCE / name).read_bytes()
        for name in FILES
        if name not in optional or os.path.lexists(bundle / name)
    )


def main(first: int, last: int) -> None:
    """Judge mutations ``first`` to ``last`` and print a line before and after each."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, resource.RLIM_INFINITY))
    images = np.load(SOURCE / "golden.npz")["images"]
    images = np.concatenate([images, np.random.default_rng(0).integers(0, 256, images.shape, np.uint8)])
    with Classifier.load(SOURCE, "cpu", threads=1) as classifier:
        expected = classifier.logits(images)
    tolerance = min(json.loads((SOURCE / "manifest.json").read_text())["golden_tolerance"])
    golden = len(images) // 2
    with TemporaryDirectory() as folder:
        public, signature = sign(Path(folder))
        for number in range(first, last):
            bundle = Path(folder) / "bundle"
            kind = mutate(number, bundle)
            print(f"{number}\t{kind}\t", end="", flush=True)
            faulthandler.dump_traceback_later(_SECONDS, exit=True)
            # Somebody who can change the hashes can change what a model does by less than its golden samples show.
            if kind in ("rehashed bytes", "rehashed graph"):
                verdict = judge(bundle, images[:golden], expected[:golden], tolerance)
            else:
                verdict = judge(bundle, images, expected, 0.0)
            (bundle / "manifest.sig").write_bytes(signature)
            if is_accepted(bundle, public) and not is_unchanged(bundle):
                verdict = "altered, and accepted with the signature of what it was"
            print(json.dumps(verdict), flush=True)
            faulthandler.cancel_dump_traceback_later()
            shutil.rmtree(bundle)


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    main(numbers[0], numbers[-1] if len(numbers) > 1 else numbers[0] + 1)
