"""From layers of gates to the smallest circuit that simple rules find; what it computes stays exactly the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.circuits.circuit import KINDS, Circuit, Level
from tnn_runtime.errors import ArtifactError

__all__ = ["circuit_of", "simplified"]

_OFF, _ON = 0, 1
"""The literals of what never and always is on. Literal 2 k is node k, and 2 k + 1 its negation; node 0 is constant."""

_KIND = {name: number for number, name in enumerate(KINDS)}


def circuit_of(arrays: Mapping[str, NDArray[Any]], classes: int) -> Circuit:
    """Return the circuit of a logic head.

    Args:
        arrays: Those of its ``head.npz``: ``thresholds [D, B]``, and ``left``, ``right`` and ``tables [L, W]``.
        classes: How many classes share the gates of the last layer.

    Raises:
        ArtifactError: If they are no circuit.
    """
    left, right, tables = (arrays[name].astype(np.int64) for name in ("left", "right", "tables"))
    try:
        return simplified(arrays["thresholds"].size, left, right, tables, classes)
    except ValueError as error:
        raise ArtifactError(f"the arrays of the head are no circuit ({error}); export the bundle again") from error


def simplified(
    inputs: int, left: NDArray[np.int64], right: NDArray[np.int64], tables: NDArray[np.int64], classes: int
) -> Circuit:
    """Return the circuit of a network of gates with two inputs.

    Gates that pass an input on, or its negation, become wires; constants are carried through; negations move to what
    uses a gate; of gates that compute the same one is left; and those that no output depends on go.

    Args:
        inputs: How many bits there are.
        left: The first input of each gate, ``[L, W]``: of the first layer a bit, of the others a gate before it.
        right: The second input.
        tables: The truth table of each gate, ``[L, W]``: bit ``2a + b`` is the value at ``a, b``.
        classes: How many classes share the gates of the last layer equally, in their order.

    Raises:
        ValueError: If a gate has an input or a table that there is not.
    """
    sizes = [inputs, *(left.shape[1:] * (len(left) - 1))]
    for size, wires in zip(sizes, np.stack([left, right], 1), strict=True):
        if wires.min() < 0 or wires.max() >= size:
            raise ValueError(f"a gate has the input {wires.max()} of {size}")
    if tables.min() < 0 or tables.max() > 15 or left.shape[1] % classes:
        raise ValueError("a gate has no truth table, or the classes cannot share the gates")
    builder = _Builder(inputs)
    literals = [2 * (1 + bit) for bit in range(inputs)]
    for layer in zip(left.tolist(), right.tolist(), tables.tolist(), strict=True):
        literals = [builder.gate(literals[a], literals[b], table) for a, b, table in zip(*layer, strict=True)]
    share = len(literals) // classes
    return builder.circuit([literals[start : start + share] for start in range(0, len(literals), share)])


class _Builder:
    """Gates that are added one by one; equal ones once.

    Args:
        inputs: How many bits there are.
    """

    def __init__(self, inputs: int) -> None:
        self._inputs = inputs
        self._gates: list[tuple[int, int, int]] = []
        self._known: dict[tuple[int, int, int], int] = {}

    def gate(self, a: int, b: int, table: int) -> int:
        """Return the literal of a gate with the literals of its inputs."""
        if a & 1:
            a, table = a ^ 1, _swapped_rows(table)
        if b & 1:
            b, table = b ^ 1, _swapped_columns(table)
        if a == _OFF:
            table = (table & 0b0011) * 0b0101
        if b == _OFF:
            table = (table & 0b0101) * 0b0011
        if a == b:  # only the values at 00 and at 11 matter
            table = (table & 1) * 0b0011 | (table >> 3) * 0b1100
        if table in (0b0000, 0b1111):
            return _ON if table else _OFF
        if table in (0b1100, 0b0011):
            return a ^ (table & 1)
        if table in (0b1010, 0b0101):
            return b ^ (table & 1)
        if table in (0b0110, 0b1001):
            return self._node("xor", a, b) ^ (table & 1)
        if table.bit_count() == 3:
            return self.gate(a, b, table ^ 0b1111) ^ 1
        if table == 0b0001:
            return self._node("or", a, b) ^ 1
        if table == 0b1000:
            return self._node("and", a, b)
        return self._node("andnot", *((a, b) if table == 0b0100 else (b, a)))

    def circuit(self, outputs: list[list[int]]) -> Circuit:
        """Return what the outputs depend on, in levels.

        Args:
            outputs: The literals that each class counts.
        """
        used = {literal >> 1 for literals in outputs for literal in literals}
        for number in reversed(range(len(self._gates))):
            if number + 1 + self._inputs in used:
                used.update(literal >> 1 for literal in self._gates[number][1:])
        bits = np.array([bit for bit in range(self._inputs) if bit + 1 in used], np.int32)
        depth = dict.fromkeys((bits + 1).tolist(), 0)
        by_level: dict[int, list[tuple[int, int]]] = {}
        for number, (kind, a, b) in enumerate(self._gates):
            node = number + 1 + self._inputs
            if node in used:
                depth[node] = 1 + max(depth[a >> 1], depth[b >> 1])
                by_level.setdefault(depth[node], []).append((kind, node))
        places = {node: place for place, node in enumerate((bits + 1).tolist())}
        levels = []
        for _, gates in sorted(by_level.items()):
            gates.sort(key=lambda one: (one[0], self._places(one[1], places)))
            levels.append(self._level(gates, places))
            places |= {node: len(places) + number for number, (_, node) in enumerate(gates)}
        votes = [[literal for literal in literals if literal > _ON] for literals in outputs]
        return Circuit(
            bits,
            tuple(levels),
            tuple(np.array([places[literal >> 1] for literal in some], np.int32) for some in votes),
            tuple(np.array([-1 if literal & 1 else 1 for literal in some], np.int8) for some in votes),
            np.array([literals.count(_ON) for literals in outputs], np.int64),
        )

    def _node(self, kind: str, a: int, b: int) -> int:
        key = (_KIND[kind], *((a, b) if kind == "andnot" or a < b else (b, a)))
        if key not in self._known:
            self._gates.append(key)
            self._known[key] = 2 * (len(self._gates) + self._inputs)
        return self._known[key]

    def _places(self, node: int, places: dict[int, int]) -> tuple[int, ...]:
        return tuple(places[literal >> 1] for literal in self._gates[node - 1 - self._inputs][1:])

    def _level(self, gates: Iterable[tuple[int, int]], places: dict[int, int]) -> Level:
        wires = np.array([self._places(node, places) for _, node in gates], np.int32).reshape(-1, 2)
        counts = np.bincount([kind for kind, _ in gates], minlength=len(KINDS)).tolist()
        return Level(np.ascontiguousarray(wires[:, 0]), np.ascontiguousarray(wires[:, 1]), tuple(counts))


def _swapped_rows(table: int) -> int:
    """Return the table of a gate whose first input is negated."""
    return table >> 2 | (table & 0b0011) << 2


def _swapped_columns(table: int) -> int:
    """Return the table of a gate whose second input is negated."""
    return (table & 0b1010) >> 1 | (table & 0b0101) << 1
