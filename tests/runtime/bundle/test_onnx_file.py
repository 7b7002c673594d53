"""The names of external files, against what the package ``onnx`` reads from the same bytes."""

from __future__ import annotations

import contextlib
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError, Message
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tnn_runtime import ArtifactError
from tnn_runtime.bundle import onnx_file as module
from tnn_runtime.bundle.onnx_file import external_files


def kept_in(name: str) -> TensorProto:
    """A tensor that a file has."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[3], data_location=TensorProto.EXTERNAL)
    for key, value in (("offset", "0"), ("location", name), ("length", "12")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def everywhere() -> onnx.ModelProto:
    """A model with a tensor in each place that there is."""
    model = onnx.ModelProto(graph=helper.make_graph([], "g", [], [], [kept_in("initializer.bin")]))
    graph = model.graph
    graph.sparse_initializer.add(values=kept_in("values.bin"), indices=kept_in("indices.bin"))
    body = helper.make_graph([], "body", [], [], [kept_in("body.bin")])
    inner = helper.make_graph([helper.make_node("Loop", [], [], body=body)], "then", [], [], [kept_in("then.bin")])
    other = helper.make_graph([helper.make_node("Constant", [], ["c"], value=kept_in("else.bin"))], "else", [], [])
    graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=other))
    attribute = graph.node.add(op_type="Custom").attribute.add(name="lists")
    attribute.tensors.append(kept_in("tensors.bin"))
    attribute.graphs.add().initializer.append(kept_in("graphs.bin"))
    attribute.sparse_tensor.values.CopyFrom(kept_in("sparse_tensor.bin"))
    attribute.sparse_tensors.add().indices.CopyFrom(kept_in("sparse_tensors.bin"))
    function = model.functions.add(name="f", domain="d")
    function.node.append(helper.make_node("Constant", [], ["c"], value=kept_in("function.bin")))
    function.attribute_proto.add(name="default").t.CopyFrom(kept_in("attribute_proto.bin"))
    training = model.training_info.add()
    training.initialization.initializer.append(kept_in("initialization.bin"))
    training.algorithm.initializer.append(kept_in("algorithm.bin"))
    for properties in (model.metadata_props, graph.metadata_props, graph.initializer[0].metadata_props):
        properties.add(key="location", value="no-tensor.bin")
    return model


def read_by_onnx(message: Message) -> Iterator[str]:
    """Yield the names of the files of all tensors in a message."""
    if isinstance(message, TensorProto):
        for entry in message.external_data:
            if entry.key == "location":
                yield entry.value if isinstance(entry.value, str) else os.fsdecode(entry.value)
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in [value] if isinstance(value, Message) else value:
                yield from read_by_onnx(inner)


def field(number: int, content: bytes) -> bytes:
    """Return a field with its length before it."""
    length, encoded = len(content), bytearray([number << 3 | 2])
    while length >= 0x80:
        encoded.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes(encoded) + bytes([length]) + content


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


SEED = everywhere().SerializeToString()


def test_the_messages_that_are_looked_into_are_those_that_lead_to_tensors() -> None:
    messages: dict[str, Descriptor] = {}
    waiting = [onnx.ModelProto.DESCRIPTOR]
    while waiting:
        message = waiting.pop()
        if message.name not in messages:
            messages[message.name] = message
            waiting += [part.message_type for part in message.fields if part.message_type is not None]
    parts: dict[str, dict[int, str]] = {"TensorProto": {13: "StringStringEntryProto"}}
    assert messages["TensorProto"].fields_by_number[13].name == "external_data"
    for _ in messages:
        for name in messages.keys() - {"TensorProto"}:
            inner = {part.number: part.message_type.name for part in messages[name].fields if part.message_type}
            if leading := {number: kind for number, kind in inner.items() if kind in parts}:
                parts[name] = leading
    assert parts == module._PARTS
    entry = messages["StringStringEntryProto"].fields_by_name
    assert (entry["key"].number, entry["value"].number) == (module._KEY, module._VALUE)


def test_tensors_are_found_wherever_they_may_be(path: Path) -> None:
    path.write_bytes(SEED)
    names = external_files(path)
    assert len(names) == 14
    assert names == sorted(read_by_onnx(everywhere()))


@pytest.mark.parametrize("one_file", [True, False])
def test_models_as_onnx_writes_them(one_file: bool, path: Path) -> None:
    weights = [numpy_helper.from_array(np.full((8, 8), number, np.float32), f"w{number}") for number in range(3)]
    nodes = [helper.make_node("MatMul", [f"x{number}", f"w{number}"], [f"x{number + 1}"]) for number in range(3)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 8]) for name in ("x0", "x3")]
    model = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], weights))
    onnx.save(model, path)
    assert external_files(path) == []
    options = {"all_tensors_to_one_file": one_file, "location": "weights.bin" if one_file else None}
    onnx.save(model, path, save_as_external_data=True, size_threshold=0, **options)
    written = sorted(file.name for file in path.parent.iterdir() if file != path)
    assert external_files(path) == written
    assert len(written) == (1 if one_file else 3)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    content = bytearray(SEED)
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, max(len(content) - 1, 0)))
        match draw(st.integers(0, 3)):
            case 0:
                content[start : start + 1] = draw(st.binary(min_size=1, max_size=1))
            case 1:
                del content[start : start + draw(st.integers(1, 20))]
            case 2:
                content[start:start] = draw(st.sampled_from([b"\x0b", b"\x0c", b"\x80", b"\xff" * 9, b"\x0a", b"\0"]))
            case 3:
                other = draw(st.integers(0, len(content)))
                content[start:start] = content[other : other + draw(st.integers(1, 40))]
    return bytes(content)


@given(content=damaged() | st.binary(max_size=40))
def test_damaged_bytes_are_read_as_onnx_reads_them_or_refused(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(content)
    try:
        expected = sorted(set(read_by_onnx(onnx.ModelProto.FromString(content))))
    except DecodeError:
        with contextlib.suppress(ArtifactError):
            external_files(path)
    else:
        if any("\0" in name for name in expected):
            with pytest.raises(ArtifactError, match="a name that no file has"):
                external_files(path)
        else:
            assert external_files(path) == expected


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x80", "a number that has no end"),
        (b"\x80" * 5 + b"\x01", "a number that has no end"),
        (b"\x3a" + b"\xff" * 11, "a number that has no end"),
        (b"\x3a\x05abc", "a field of 5 bytes where 3 are left"),
        (b"\x3a" + b"\xff" * 9 + b"\x7f", "a field of .* bytes where 0 are left"),
        (field(7, b"\x2a\x04" + b"ab"), "a field of 4 bytes where 2 are left"),
        (b"\x09abc", "a field of 8 bytes where 3 are left"),
        (b"\x0dabc", "a field of 4 bytes where 3 are left"),
        (b"\x02\x00", "a field with the number 0"),
        (b"\xff\xff\xff\xff\x7f\x00", "a field with the number"),
        (b"\x0e", "a field of the wire type 6"),
        (b"\x0b", "a group has no end"),
        (field(7, b"\x0b") + b"\x0c", "a group has no end"),
        (b"\x0c", "a group ends that did not begin"),
        (b"\x0b\x14", "a group ends that did not begin"),
        (b"\x0b" * 100_000, "more than 100 messages in each other"),
    ],
)
def test_what_is_no_message_is_refused_with_the_reason(content: bytes, reason: str, path: Path) -> None:
    with pytest.raises(DecodeError):
        onnx.ModelProto.FromString(content)
    path.write_bytes(content)
    with pytest.raises(
        ArtifactError, match=rf"model.onnx is no ONNX model that can be read \({reason}.*export or copy"
    ):
        external_files(path)


def test_subgraphs_may_be_as_deep_as_onnx_reads_them(path: Path) -> None:
    content, depth = field(5, kept_in("deep.bin").SerializeToString()), 0
    while depth < 200:
        path.write_bytes(field(7, content))
        try:
            onnx.ModelProto.FromString(path.read_bytes())
        except DecodeError:
            break
        assert external_files(path) == ["deep.bin"]
        content, depth = field(1, field(5, field(6, content))), depth + 1
    assert depth > 30
    with pytest.raises(ArtifactError, match="more than 100 messages in each other"):
        external_files(path)


def test_there_are_at_most_so_many_fields(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_FIELDS", 1000)
    path.write_bytes(b"\x08\x01" * 999)
    assert external_files(path) == []
    path.write_bytes(b"\x08\x01" * 1000)
    with pytest.raises(ArtifactError, match="more than 1000 fields"):
        external_files(path)


@pytest.mark.parametrize("name", ["a\0b", "x" * 4097])
def test_a_name_that_no_file_has_is_refused(name: str, path: Path) -> None:
    path.write_bytes(field(7, field(5, kept_in(name).SerializeToString())))
    with pytest.raises(ArtifactError, match="a name that no file has"):
        external_files(path)


def test_names_are_those_of_the_file_system(path: Path) -> None:
    entry = field(1, b"location") + field(2, "bär-\xff.bin".encode("latin-1"))
    path.write_bytes(field(7, field(5, field(13, entry))))
    assert [os.fsencode(name) for name in external_files(path)] == ["bär-\xff.bin".encode("latin-1")]


def test_the_last_of_several_keys_and_values_counts(path: Path) -> None:
    entry = field(2, b"a.bin") + field(1, b"offset") + field(1, b"location") + field(2, b"b.bin")
    path.write_bytes(field(7, field(5, field(13, entry) + field(13, field(1, b"location")))))
    assert external_files(path) == ["", "b.bin"] == sorted(read_by_onnx(onnx.load(path, load_external_data=False)))


def test_weights_are_not_read(path: Path) -> None:
    size = 1 << 30
    named = field(13, field(1, b"location") + field(2, b"w.bin"))
    raw = b"\x4a" + bytes([size & 0x7F | 0x80, 0x80, 0x80, 0x80, size >> 28])
    tensor = b"\x2a" + bytes([0x80 | (size + len(raw)) & 0x7F, 0x80, 0x80, 0x80, size >> 28]) + raw
    after = field(5, named)
    total = len(tensor) + size + len(after)
    graph = b"\x3a" + bytes([0x80 | total & 0x7F, 0x80, 0x80, 0x80, size >> 28])
    with path.open("wb") as file:
        file.write(graph + tensor)
        file.seek(size, os.SEEK_CUR)
        file.write(after)
    tracemalloc.start()
    assert external_files(path) == ["w.bin"]
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_a_file_that_cannot_be_read_is_an_error(path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"model.onnx cannot be read \(No such file or directory\)"):
        external_files(path)
    path.mkdir()
    with pytest.raises(ArtifactError, match=r"model.onnx cannot be read \(Is a directory\)"):
        external_files(path)
    path.rmdir()
    path.touch()
    assert external_files(path) == []
