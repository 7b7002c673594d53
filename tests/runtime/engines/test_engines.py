"""Engines are built once, kept whole, and refused with reasons; TensorRT for RTX builds them without a GPU."""

from __future__ import annotations

import ctypes
import errno
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from forms import SIZE, random_head, to_onnx
from waiting import FOREVER

from tnn_export import lower_head
from tnn_runtime import EngineError, ProviderUnavailable, TnnError, UsageError
from tnn_runtime.engines import Library, build, build_engine, find_tensorrt
from tnn_runtime.engines.hardware import build_target
from tnn_runtime.engines.spec import fingerprint
from tnn_train import TverskyConfig

RTX = find_tensorrt("tensorrt_rtx") if find_spec("tensorrt_rtx_bindings") else None
ASKED: dict[str, Any] = {"input_name": "x", "shape": (SIZE,), "batch": (1, 8, 64), "library": RTX}
needs_rtx = pytest.mark.skipif(RTX is None, reason="TensorRT for RTX is not installed")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head as ONNX; read only."""
    return to_onnx(lower_head(random_head(TverskyConfig(6))[0]), tmp_path_factory.mktemp("onnx") / "head.onnx")


@pytest.fixture
def model(exported: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copy(exported, tmp_path))


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[bytes | None]:
    """The timings that each build started from."""
    done = []
    serialize = build.serialize

    def counted(library: Library, model: Path, spec: Any, timings: bytes | None) -> Any:
        done.append(timings)
        return serialize(library, model, spec, timings)

    monkeypatch.setattr(build, "serialize", counted)
    return done


def change(model: Path, what: Callable[[onnx.GraphProto], None]) -> Path:
    proto = onnx.load(model)
    what(proto.graph)
    onnx.save(proto, model)
    return model


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {"engines.lock"}


# The library


FULL = {"Builder": object, "OnnxParser": object}


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes these and no other TensorRT modules importable, with their versions; ``full`` ones have a builder."""

    def replace(full: dict[str, str], bare: dict[str, str] | None = None) -> None:
        for name in ("tensorrt", "tensorrt_rtx_bindings", "tensorrt_rtx", "tensorrt_lean", "tensorrt_dispatch"):
            monkeypatch.setitem(sys.modules, name, None)
        for name, version in full.items():
            monkeypatch.setitem(sys.modules, name, SimpleNamespace(__version__=version, **FULL))
        for name, version in (bare or {}).items():
            monkeypatch.setitem(sys.modules, name, SimpleNamespace(__version__=version, Runtime=object))

    return replace


@pytest.mark.parametrize(
    ("full", "bare", "expected"),
    [
        ({"tensorrt": "11.4.0.106", "tensorrt_rtx_bindings": "1.7.1.116"}, {}, "tensorrt 11.4.0.106"),
        ({"tensorrt": "10.13.0.35", "tensorrt_rtx": "1.7.1.116"}, {}, "tensorrt 10.13.0.35"),
        ({"tensorrt_rtx": "1.7.1.116"}, {}, "tensorrt_rtx 1.7.1.116"),
        ({"tensorrt_rtx_bindings": "1.7.1.116"}, {"tensorrt": "11.4.0"}, "tensorrt_rtx 1.7.1.116"),
        ({"tensorrt_rtx_bindings": "1.7.1.116", "tensorrt": "8.6.1"}, {}, "tensorrt_rtx 1.7.1.116"),
    ],
)
def test_the_first_library_that_builds_is_found(
    install: Callable[..., None], full: dict[str, str], bare: dict[str, str], expected: str
) -> None:
    install(full, bare)
    assert str(find_tensorrt()) == expected


def test_a_kind_may_be_asked_for(install: Callable[..., None]) -> None:
    install({"tensorrt": "11.4.0.106", "tensorrt_rtx": "1.7.1.116"}, {"tensorrt_rtx_bindings": "1.7.1.116"})
    assert str(find_tensorrt("tensorrt_rtx")) == "tensorrt_rtx 1.7.1.116"
    install({"tensorrt": "11.4.0.106"})
    with pytest.raises(ProviderUnavailable, match=r"no tensorrt_rtx that builds engines: none is installed; install"):
        find_tensorrt("tensorrt_rtx")
    with pytest.raises(UsageError, match=r"unknown kind of TensorRT 'onnx'; choose tensorrt or tensorrt_rtx"):
        find_tensorrt("onnx")


@pytest.mark.parametrize(
    ("full", "bare", "named"),
    [
        ({}, {}, "none is installed"),
        ({}, {"tensorrt_lean": "11.4"}, "tensorrt_lean 11.4 can only run engines, it has no Builder and no OnnxParser"),
        ({}, {"tensorrt_dispatch": "11.4"}, "tensorrt_dispatch 11.4 can only run engines"),
        ({"tensorrt": "10.9.0.34"}, {}, "tensorrt 10.9.0.34 is older than 10.13"),
        (
            {"tensorrt": "8.6.1"},
            {"tensorrt_lean": "11.4"},
            "tensorrt 8.6.1 is older than 10.13; tensorrt_lean 11.4 can",
        ),
    ],
)
def test_what_builds_no_engines_is_named_with_the_remedy(
    install: Callable[..., None], full: dict[str, str], bare: dict[str, str], named: str
) -> None:
    install(full, bare)
    with pytest.raises(ProviderUnavailable) as caught:
        find_tensorrt()
    message = str(caught.value)
    assert message.startswith(f"no TensorRT that builds engines: {named}")
    assert "install one with pip install 'tensorrt<12,>=10.13' (needs an NVIDIA GPU) or pip install " in message


def test_a_broken_installation_is_named(
    install: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install({})
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.11: cannot open shared object file')")
    monkeypatch.delitem(sys.modules, "tensorrt")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ProviderUnavailable, match=r"tensorrt cannot be imported \(libnvinfer.so.11: cannot open"):
        find_tensorrt()


# The hardware


def fake_driver(*, fails: str | None = None) -> SimpleNamespace:
    names, capabilities = (b"NVIDIA H100 80GB HBM3", b"NVIDIA A100"), (9, 8)

    def get(pointer: Any, number: int) -> int:
        pointer._obj.value = number
        return 0

    def name(buffer: Any, size: int, device: Any) -> int:
        buffer.value = names[device.value]
        return 0

    def attribute(pointer: Any, number: int, device: Any) -> int:
        pointer._obj.value = {75: capabilities[device.value], 76: 0}[number]
        return 0

    functions = {
        "cuInit": lambda flags: 0,
        "cuDeviceGet": get,
        "cuDeviceGetName": name,
        "cuDeviceGetAttribute": attribute,
    }
    return SimpleNamespace(**functions | ({fails: lambda *arguments: 100} if fails else {}))


def test_tensorrt_builds_for_the_gpu_that_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: fake_driver())
    assert build_target(Library(None, "tensorrt", "10.13")) == "sm90-NVIDIA H100 80GB HBM3"
    assert build_target(Library(None, "tensorrt", "10.13"), 1) == "sm80-NVIDIA A100"
    assert build_target(Library(None, "tensorrt_rtx", "1.7")) == "ampere_and_later"


@pytest.mark.parametrize("fails", ["cuInit", "cuDeviceGet"])
def test_tensorrt_without_a_gpu_is_an_error_with_a_way_out(monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: fake_driver(fails=fails))
    with pytest.raises(ProviderUnavailable, match=rf"none works here \({fails}: CUDA error 100\); .*needs no GPU"):
        build_target(Library(None, "tensorrt", "10.13"))


def test_tensorrt_without_a_driver_is_an_error_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(ProviderUnavailable, match=r"driver is not here \(.*cannot open.*\); build on the machine that"):
        build_target(Library(None, "tensorrt", "10.13"))


# Building and keeping


@needs_rtx
def test_an_engine_is_built_once_and_named_for_what_it_is(
    model: Path, tmp_path: Path, builds: list[bytes | None], caplog: pytest.LogCaptureFixture
) -> None:
    assert RTX
    with caplog.at_level(logging.WARNING):
        engine = build_engine(model, tmp_path / "deep" / "engines", **ASKED)
    assert not caplog.records
    assert engine.parent == tmp_path / "deep" / "engines"
    assert engine.name.endswith(f"-tensorrt_rtx-{RTX.version}-ampere_and_later-b1-8-64.engine")
    assert engine.stat().st_size > 1000
    assert names(engine.parent) == {engine.name, engine.with_suffix(".json").name}
    written = engine.stat().st_mtime_ns
    assert build_engine(str(model), str(engine.parent), **ASKED) == engine
    assert engine.stat().st_mtime_ns == written
    assert builds == [None]


@needs_rtx
def test_every_difference_is_another_engine(model: Path, tmp_path: Path, builds: list[bytes | None]) -> None:
    folder = tmp_path / "engines"
    paths = [
        build_engine(model, folder, **ASKED),
        build_engine(model, folder, **ASKED | {"batch": (1, 1, 1)}),
        build_engine(model, folder, **ASKED, tf32=True),
        build_engine(
            change(model, lambda graph: graph.initializer.add().CopyFrom(onnx.helper.make_tensor("y", 1, [], [0.0]))),
            folder,
            **ASKED,
        ),
    ]
    assert len(set(paths)) == len(builds) == 4
    assert [path.stem.split("-b")[1] for path in paths] == ["1-8-64", "1-1-1", "1-8-64-tf32", "1-8-64"]


@needs_rtx
@pytest.mark.parametrize(
    "damage",
    [
        lambda engine, record: engine.write_bytes(engine.read_bytes()[:-1]),
        lambda engine, record: engine.write_bytes(b"x" + engine.read_bytes()[1:]),
        lambda engine, record: engine.unlink(),
        lambda engine, record: record.unlink(),
        lambda engine, record: record.write_text("{"),
        lambda engine, record: record.write_text('{"schema_version": 1}'),
        lambda engine, record: record.write_text(record.read_text().replace('"input_name": "x"', '"input_name": "z"')),
        lambda engine, record: record.write_text(record.read_text().replace("64\n", "1\n")),
    ],
    ids=["truncated", "altered", "gone", "no record", "no JSON", "empty record", "another spec", "an impossible spec"],
)
def test_a_damaged_engine_is_built_again(
    model: Path, tmp_path: Path, builds: list[bytes | None], damage: Callable[[Path, Path], None]
) -> None:
    engine = build_engine(model, tmp_path, **ASKED)
    size = engine.stat().st_size
    damage(engine, engine.with_suffix(".json"))
    assert build_engine(model, tmp_path, **ASKED) == engine
    assert len(builds) == 2
    assert engine.stat().st_size == size
    build_engine(model, tmp_path, **ASKED)
    assert len(builds) == 2


@needs_rtx
@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX")
def test_tensorrt_keeps_its_timings_for_the_next_build(
    model: Path, tmp_path: Path, builds: list[bytes | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "build_target", lambda library, gpu: "sm90-NVIDIA H100")
    assert RTX
    asked = ASKED | {"library": Library(RTX.module, "tensorrt", "10.13.0.35")}
    engine = build_engine(model, tmp_path / "engines", **asked)
    assert engine.name.endswith("-tensorrt-10.13.0.35-sm90-NVIDIA_H100-b1-8-64.engine")
    timings = engine.parent / "timings-tensorrt-10.13.0.35-sm90-NVIDIA_H100.cache"
    learnt = timings.read_bytes()
    assert learnt
    build_engine(model, engine.parent, **asked | {"batch": (1, 2, 3)})
    timings.write_bytes(b"damaged")
    build_engine(model, engine.parent, **asked | {"batch": (2, 2, 3)})
    assert builds == [b"", learnt, b"damaged"]
    assert timings.read_bytes() != b"damaged"


PROGRAM = """
import os, sys, time
from pathlib import Path
from filelock import FileLock
from tnn_runtime.bundle import storage
from tnn_runtime.engines import build, build_engine, find_tensorrt
model, folder, kind = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
serialize, acquire = build.serialize, FileLock.acquire

def ask(lock):
    (folder / f"asks-{kind}").touch()
    return acquire(lock)

def slow(*arguments):
    with open(folder / "builds", "a") as file:
        file.write(kind)
    while not all((folder / f"asks-{name}").exists() for name in "ab"):
        time.sleep(0.01)
    return serialize(*arguments)

if kind == "killed":
    storage._fsync = lambda path: os.kill(os.getpid(), 9)
else:
    build.serialize, FileLock.acquire = slow, ask
asked = {"input_name": "x", "shape": (5,), "batch": (1, 8, 64), "library": find_tensorrt("tensorrt_rtx")}
print(build_engine(model, folder / "engines", **asked).name)
"""


def start(model: Path, folder: Path, kind: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM, str(model), str(folder), kind]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@needs_rtx
def test_two_processes_that_ask_at_once_build_once(model: Path, tmp_path: Path) -> None:
    """The one that builds goes on when the other one asks for the lock, having found no engine."""
    processes = [start(model, tmp_path, kind) for kind in "ab"]
    answers = [process.communicate(timeout=FOREVER) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    assert len({out for out, _ in answers}) == 1
    assert len((tmp_path / "builds").read_text()) == 1
    assert len(names(tmp_path / "engines")) == 2


@needs_rtx
def test_a_killed_build_leaves_nothing_half_written_and_holds_nobody_up(model: Path, tmp_path: Path) -> None:
    killed = start(model, tmp_path, "killed")
    killed.communicate(timeout=FOREVER)
    assert killed.returncode == -9
    (partial,) = names(tmp_path / "engines")
    assert partial.endswith(".engine.partial")
    engine = build_engine(model, tmp_path / "engines", **ASKED)
    assert names(tmp_path / "engines") == {engine.name, engine.with_suffix(".json").name}


@needs_rtx
def test_no_space_is_an_error_that_leaves_nothing(
    model: Path, tmp_path: Path, builds: list[bytes | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def full(path: Path, content: memoryview) -> None:
        write(path, content[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(
            EngineError, match=r"of \d+\.\d MiB cannot be written \(No space left on device\); make room"
        ):
            build_engine(model, tmp_path / "engines", **ASKED)
    assert names(tmp_path / "engines") == set()
    assert build_engine(model, tmp_path / "engines", **ASKED).exists()


@needs_rtx
def test_a_folder_that_cannot_be_made_is_an_error(model: Path) -> None:
    with pytest.raises(EngineError, match=r"cannot be written to .*head.onnx \(File exists\); make it writable"):
        build_engine(model, model, **ASKED)


@needs_rtx
def test_without_filelock_the_remedy_is_told(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "filelock", None)
    with pytest.raises(ProviderUnavailable, match=r"under a lock of filelock .*install it with pip install"):
        build_engine(model, tmp_path, **ASKED)


# Refusals


def rename_operator(graph: onnx.GraphProto) -> None:
    graph.node[1].op_type = "NoSuchOperator"


def fix_the_batch(graph: onnx.GraphProto) -> None:
    graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2


def add_an_input(graph: onnx.GraphProto) -> None:
    graph.input.add().CopyFrom(onnx.helper.make_tensor_value_info("second", onnx.TensorProto.FLOAT, [1]))


@needs_rtx
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            rename_operator,
            r"node 'node_relu' \(NoSuchOperator\): neither an operator .*export it again without this node",
        ),
        (fix_the_batch, r"takes batches of 2 alone, and an engine for \(1, 8, 64\) .* ask for \(2, 2, 2\)"),
        (add_an_input, r"has the inputs \['x', 'second'\], expected 'x' alone; export it again"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(
    model: Path, tmp_path: Path, damage: Callable[[onnx.GraphProto], None], message: str
) -> None:
    with pytest.raises(EngineError, match=message):
        build_engine(change(model, damage), tmp_path / "engines", **ASKED)
    assert names(tmp_path / "engines") == set()


@needs_rtx
@pytest.mark.parametrize("content", [b"", b"no ONNX at all" * 9])
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with pytest.raises(EngineError, match="model.onnx"):
        build_engine(tmp_path / "model.onnx", tmp_path, **ASKED)


@needs_rtx
@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"input_name": "images"}, EngineError, r"has the inputs \['x'\], expected 'images' alone"),
        ({"shape": (7,)}, EngineError, r"takes 'x' of shape \(-1, 5\), expected a batch of \(7,\)"),
        ({"shape": (5, 1)}, EngineError, r"takes 'x' of shape \(-1, 5\), expected a batch of \(5, 1\)"),
        ({"shape": (0,)}, UsageError, r"shape \(0,\) of one input; expected whole numbers"),
        ({"batch": (0, 8, 64)}, UsageError, r"batch sizes \(0, 8, 64\); expected three whole numbers"),
        ({"batch": (1, 64, 8)}, UsageError, r"batch sizes \(1, 64, 8\); expected three"),
        ({"batch": (1, 8)}, UsageError, r"batch sizes \(1, 8\); expected three"),
        ({"batch": (1, 8.0, 64)}, UsageError, r"batch sizes \(1, 8.0, 64\); expected three"),
        ({"batch": (True, 8, 64)}, UsageError, r"batch sizes \(True, 8, 64\); expected three"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(
    model: Path, tmp_path: Path, asked: dict[str, Any], error: type[TnnError], message: str
) -> None:
    with pytest.raises(error, match=message):
        build_engine(model, tmp_path / "engines", **ASKED | asked)


@needs_rtx
def test_a_model_that_tensorrt_cannot_build_is_refused(model: Path, tmp_path: Path) -> None:
    def no_outputs(graph: onnx.GraphProto) -> None:
        graph.ClearField("output")

    with pytest.raises(
        EngineError, match=r"builds no engine of .*\(.*at least one output.*\); choose other batch sizes"
    ):
        build_engine(change(model, no_outputs), tmp_path / "engines", **ASKED)


def test_a_library_that_does_not_start_is_an_error(model: Path, tmp_path: Path) -> None:
    class Broken:
        Severity = SimpleNamespace(ERROR=1, INTERNAL_ERROR=0)

    def nothing(logger: Any) -> None:
        logger.log(1, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    library = Library(SimpleNamespace(ILogger=Broken, Builder=nothing), "tensorrt_rtx", "1.7")
    with pytest.raises(ProviderUnavailable, match=r"tensorrt_rtx 1.7 does not work here \(CUDA initialization failure"):
        build_engine(model, tmp_path, **ASKED | {"library": library})


# Weights in other files


@pytest.fixture
def spread(model: Path) -> Path:
    """The model with its weights in ``weights.bin``."""
    onnx.save(onnx.load(model), model, save_as_external_data=True, location="weights.bin", size_threshold=64)
    return model


@needs_rtx
def test_weights_in_another_file_are_part_of_the_model(
    spread: Path, tmp_path: Path, builds: list[bytes | None]
) -> None:
    engine = build_engine(spread, tmp_path, **ASKED)
    assert build_engine(spread, tmp_path, **ASKED) == engine
    weights = spread.with_name("weights.bin")
    weights.write_bytes(b"\0\0\0\0" + weights.read_bytes()[4:])
    assert build_engine(spread, tmp_path, **ASKED) != engine
    assert len(builds) == 2


@needs_rtx
def test_missing_weights_are_named(spread: Path, tmp_path: Path) -> None:
    spread.with_name("weights.bin").unlink()
    with pytest.raises(EngineError, match=r"keeps weights in 'weights.bin', which is not there; copy it into"):
        build_engine(spread, tmp_path, **ASKED)


@needs_rtx
def test_weights_elsewhere_are_refused(spread: Path, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    proto = onnx.load(spread, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../weights.bin"
    (inside / "model.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(EngineError, match=r"keeps weights in '../weights.bin', which leaves its folder"):
        build_engine(inside / "model.onnx", tmp_path, **ASKED)


@pytest.mark.parametrize("name", ["loop", "x" * 3000, "a/" * 2000, ""])
def test_names_that_lead_to_no_file_are_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    proto = onnx.ModelProto()
    proto.graph.initializer.add().external_data.add(key="location", value=name)
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(EngineError, match=r"keeps weights in '.*', which is not there; copy it into"):
        fingerprint(tmp_path / "model.onnx")


def test_bytes_that_are_no_model_have_no_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\xff" * 99)
    with pytest.raises(EngineError, match=r"model.onnx is no ONNX model that can be read \(a number that has no end\)"):
        fingerprint(tmp_path / "model.onnx")


def test_a_model_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    library = Library(None, "tensorrt_rtx", "1.7")
    with pytest.raises(EngineError, match=r"model.onnx is not a file; expected an ONNX model"):
        build_engine(tmp_path / "model.onnx", tmp_path, **ASKED | {"library": library})
