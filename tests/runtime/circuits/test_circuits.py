"""Circuits against truth tables: simplified, evaluated on words, and as C."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from oracles import logic as oracle

from tnn_runtime import ArtifactError, ProviderUnavailable
from tnn_runtime.circuits import Circuit, PixelCircuit, c_source, circuit_of
from tnn_runtime.engines.compiler import load_program

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler on this system")


def random_network(
    random: np.random.Generator, inputs: int, layers: int, width: int, passes: float = 0.3
) -> dict[str, NDArray[np.int64]]:
    sizes = [inputs, *[width] * (layers - 1)]
    left, right = (np.stack([random.integers(0, size, width) for size in sizes]) for _ in range(2))
    tables = random.integers(0, 16, (layers, width))
    tables[random.random(tables.shape) < passes] = 0b1100
    return {"thresholds": np.zeros((inputs, 1), np.int64), "left": left, "right": right, "tables": tables}


@given(st.integers(0, 1 << 30), st.integers(1, 9), st.integers(1, 5), st.integers(1, 4), st.integers(1, 12))
@settings(max_examples=150)
def test_a_simplified_circuit_votes_as_every_gate_in_its_table(
    seed: int, inputs: int, layers: int, classes: int, share: int
) -> None:
    random = np.random.default_rng(seed)
    network = random_network(random, inputs, layers, classes * share)
    circuit = circuit_of(network, classes)
    bits = random.integers(0, 2, (130, inputs)).astype(bool)
    np.testing.assert_array_equal(circuit.counts(bits), oracle.votes(network, bits, classes))
    assert circuit.size - len(circuit.bits) <= network["tables"].size


@pytest.mark.parametrize("table", range(16))
@pytest.mark.parametrize("wires", [(0, 1), (1, 0), (0, 0)])
def test_each_gate_alone(table: int, wires: tuple[int, int]) -> None:
    network = {
        "thresholds": np.zeros(2),
        "left": np.array([[wires[0]]]),
        "right": np.array([[wires[1]]]),
        "tables": np.array([[table]]),
    }
    bits = np.array([[0, 0], [0, 1], [1, 0], [1, 1]], bool)
    circuit = circuit_of(network, 1)
    np.testing.assert_array_equal(circuit.counts(bits), oracle.votes(network, bits, 1))
    is_wire = table in (0, 15, 12, 3, 10, 5) or wires == (0, 0)
    assert len(circuit.levels) == (0 if is_wire else 1)


def test_equal_gates_are_one_and_unused_ones_are_gone() -> None:
    left, right = np.array([[0, 1, 0, 2], [0, 1, 2, 2]]), np.array([[1, 0, 1, 3], [1, 2, 0, 0]])
    tables = np.array([[8, 8, 7, 6], [8, 8, 8, 8]])
    circuit = circuit_of({"thresholds": np.zeros(4), "left": left, "right": right, "tables": tables}, 2)
    assert circuit.bits.tolist() == [0, 1]
    assert [len(level.left) for level in circuit.levels] == [1]
    assert [votes.tolist() for votes in circuit.votes] == [[2], []]


@pytest.mark.parametrize(
    "change", [{"left": [[9]]}, {"right": [[-1]]}, {"tables": [[16]]}, {"tables": [[-1]]}, {"left": [[2]]}]
)
def test_arrays_that_are_no_circuit_are_refused(change: dict[str, list[list[int]]]) -> None:
    arrays = {"thresholds": [0, 0], "left": [[0]], "right": [[1]], "tables": [[8]]} | change
    with pytest.raises(ArtifactError, match="the arrays of the head are no circuit"):
        circuit_of({name: np.array(array) for name, array in arrays.items()}, 1)
    with pytest.raises(ArtifactError, match="cannot share the gates"):
        circuit_of(
            {"thresholds": np.zeros(2), **{name: np.zeros((1, 3), int) for name in ("left", "right", "tables")}}, 2
        )


def on_pixels(circuit: Circuit, thresholds: NDArray[np.float32], shape: tuple[int, int, int]) -> PixelCircuit:
    channels = shape[2]
    return PixelCircuit.of(circuit, thresholds, np.float32(3.7), shape, [0.4] * channels, [0.3] * channels, "fp32")


@needs_compiler
@pytest.mark.parametrize(
    ("shape", "bits", "layers", "width", "classes", "images"),
    [
        ((1, 1, 1), 3, 2, 6, 2, 1),
        ((2, 3, 1), 1, 1, 6, 2, 5),
        ((3, 3, 3), 2, 3, 12, 3, 64),
        ((5, 5, 1), 3, 3, 300, 10, 700),
        ((4, 5, 3), 1, 2, 64, 4, 257),
        ((2, 2, 1), 3, 4, 2, 2, 65),
        ((9, 7, 1), 2, 1, 3000, 2, 130),
    ],
)
def test_the_program_gives_the_logits_and_embeddings_of_the_network(
    shape: tuple[int, int, int], bits: int, layers: int, width: int, classes: int, images: int, tmp_path: Path
) -> None:
    random = np.random.default_rng(width)
    size = int(np.prod(shape))
    thresholds = random.normal(0, 1.5, (size, bits)).astype(np.float32)
    thresholds.flat[:2] = -9, 9
    network = random_network(random, size * bits, layers, width)
    pixels = on_pixels(circuit_of(network | {"thresholds": thresholds}, classes), thresholds, shape)
    library, path, _ = load_program(c_source(pixels), tmp_path)
    batch = random.integers(0, 256, (images, *shape), dtype=np.uint8)
    logits, embedding = np.empty((images, classes), np.float32), np.empty((images, size), np.float32)
    arguments = batch.ctypes.data, ctypes.c_int64(images), logits.ctypes.data, embedding.ctypes.data
    assert library.run(*(ctypes.c_void_p(one) if isinstance(one, int) else one for one in arguments)) == 0
    scale, shift = np.float32(1) / (np.float32(255) * np.float32(0.3)), -np.float32(0.4) / np.float32(0.3)
    expected = (batch.astype(np.float32) * scale + shift).transpose(0, 3, 1, 2).reshape(images, -1)
    np.testing.assert_array_equal(embedding, expected)
    present = (expected[:, :, None] > thresholds).reshape(images, -1)
    votes = oracle.votes(network, present, classes).astype(np.float32)
    np.testing.assert_array_equal(logits, votes / np.float32(3.7))
    assert path.parent == tmp_path


def test_thresholds_of_pixels_are_exact() -> None:
    scale, shift = np.float32(1) / (np.float32(255) * np.float32(0.3)), -np.float32(0.4) / np.float32(0.3)
    values = np.arange(256, dtype=np.float32) * scale + shift
    thresholds = np.concatenate([values, values - 1e-4, [-99, 99]]).astype(np.float32)[None]
    network = {
        "left": np.arange(513)[None],
        "right": np.arange(1, 514)[None],
        "tables": np.full((1, 513), 6),
        "thresholds": thresholds,
    }
    pixels = on_pixels(circuit_of(network, 1), thresholds, (1, 1, 1))
    for level in range(256):
        np.testing.assert_array_equal(level >= pixels.least, pixels.values[0, level] > thresholds[0])


def test_a_precision_that_numpy_lacks_is_refused() -> None:
    arrays = {name: np.zeros((1, 1), np.int64) for name in ("left", "right", "tables")}
    circuit = circuit_of({"thresholds": np.zeros((1, 1)), **arrays}, 1)
    with pytest.raises(ProviderUnavailable, match="computes in fp32, int8, fp16, and the bundle is in bf16"):
        PixelCircuit.of(circuit, np.zeros((1, 1), np.float32), np.float32(1), (1, 1, 1), [0.5], [0.5], "bf16")
