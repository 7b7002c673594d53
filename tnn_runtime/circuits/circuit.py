"""A circuit: bits, levels of gates of few kinds, and sums of gates; evaluated on 64 samples a machine word."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["KINDS", "Circuit", "Level", "Words"]

Words: TypeAlias = NDArray[np.uint64]

KINDS: dict[str, tuple[Callable[[Words, Words], Words], str]] = {
    "and": (lambda a, b: a & b, "{a} & {b}"),
    "andnot": (lambda a, b: a & ~b, "{a} & ~{b}"),
    "or": (lambda a, b: a | b, "{a} | {b}"),
    "xor": (lambda a, b: a ^ b, "{a} ^ {b}"),
}
"""What each kind of gate makes of its inputs: as a function of words, and in C. All other gates follow from these by
the negation of what is made of them."""


@dataclass(frozen=True)
class Level:
    """Gates that depend on earlier levels alone.

    Args:
        left: The first input of each gate, int32 ``[G]``: a place among the bits, or after them the gates of earlier
            levels.
        right: The second input.
        counts: How many gates are of each of the `KINDS`, which they are ordered by.
    """

    left: NDArray[np.int32]
    right: NDArray[np.int32]
    counts: tuple[int, ...]

    def parts(self) -> list[slice]:
        """Return where the gates of each kind are."""
        ends = np.cumsum(self.counts).tolist()
        return [slice(end - count, end) for end, count in zip(ends, self.counts, strict=True)]


@dataclass(frozen=True)
class Circuit:
    """A Boolean circuit whose outputs are counted.

    Args:
        bits: The inputs that it looks at, of those that the network has, int32 ``[I]`` in ascending order.
        levels: The gates.
        votes: Which bits and gates each class counts, a sequence of places for each.
        signs: For each of these votes 1 if it counts where it is on, -1 if it counts where it is off.
        constants: How many votes each class has whatever the bits are.
    """

    bits: NDArray[np.int32]
    levels: tuple[Level, ...]
    votes: tuple[NDArray[np.int32], ...]
    signs: tuple[NDArray[np.int8], ...]
    constants: NDArray[np.int64]

    @property
    def size(self) -> int:
        """The number of bits and gates."""
        return len(self.bits) + sum(len(level.left) for level in self.levels)

    def counts(self, bits: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return the votes for each class, ``[N, C]``.

        Args:
            bits: All bits that the network has, ``[N, bits]``.
        """
        values = np.empty((self.size, -(-len(bits) // 64)), np.uint64)
        end = len(self.bits)
        values[:end] = _packed(bits[:, self.bits].T)
        for level in self.levels:
            left, right = values[level.left], values[level.right]
            for (make, _), part in zip(KINDS.values(), level.parts(), strict=True):
                values[end + part.start : end + part.stop] = make(left[part], right[part])
            end += len(level.left)
        found = np.empty((len(bits), len(self.votes)), np.int64)
        for label, (places, signs) in enumerate(zip(self.votes, self.signs, strict=True)):
            on = _unpacked(values[places], len(bits))
            found[:, label] = self.constants[label] + (on ^ (signs < 0)[:, None]).sum(0)
        return found


def _packed(rows: NDArray[np.bool_]) -> Words:
    """Return rows of bits ``[R, N]`` as words, ``[R, W]``: bit k of word w is that of sample 64 w + k."""
    octets = np.packbits(rows, axis=1, bitorder="little")
    octets = np.pad(octets, ((0, 0), (0, -octets.shape[1] % 8)))
    return octets.view("<u8").astype(np.uint64)


def _unpacked(words: Words, count: int) -> NDArray[np.uint8]:
    octets = np.ascontiguousarray(words.astype("<u8")).view(np.uint8)
    return np.unpackbits(octets, axis=1, count=count, bitorder="little")
