"""A circuit on pixels: thresholds of normalised values become exact thresholds of uint8 values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.circuits.circuit import Circuit
from tnn_runtime.errors import ArtifactError, ProviderUnavailable

__all__ = ["PixelCircuit"]

_DTYPES = {"fp32": np.float32, "int8": np.float32, "fp16": np.float16}
"""What the precisions that this knows compute normalised pixels in; int8 has no weights to quantise before the head."""


@dataclass(frozen=True)
class PixelCircuit:
    """A circuit whose bits are pixels compared with thresholds.

    Args:
        circuit: The circuit.
        shape: Rows, columns and channels of an image.
        offsets: For each of its bits the place of the value in an image as decoded, int32 ``[I]``.
        least: For each the smallest value, 0 to 255, with which the bit is on; 256 if it never is. int32 ``[I]``.
        values: What each value becomes in each channel, float32 ``[channels, 256]``: the embedding.
        temperature: What votes are divided by to give logits.
    """

    circuit: Circuit
    shape: tuple[int, int, int]
    offsets: NDArray[np.int32]
    least: NDArray[np.int32]
    values: NDArray[np.float32]
    temperature: np.float32

    @classmethod
    def of(
        cls,
        circuit: Circuit,
        thresholds: NDArray[np.float32],
        temperature: np.float32,
        shape: tuple[int, int, int],
        mean: Sequence[float],
        std: Sequence[float],
        precision: str,
    ) -> Self:
        """Work out the thresholds, from what the graph makes of each of the 256 values of a pixel.

        Args:
            circuit: The circuit. Bit ``d * B + b`` of its network is whether value d is above its threshold b.
            thresholds: float32 ``[D, B]``; values are counted channel by channel and row by row.
            temperature: What votes are divided by.
            shape: Rows, columns and channels of an image.
            mean: Of the normalisation, one a channel.
            std: Of the normalisation, one a channel.
            precision: What the graph computes normalised pixels in, a precision of a bundle.

        Raises:
            ProviderUnavailable: If the precision is none that NumPy has.
            ArtifactError: If the normalisation does not keep the order.
        """
        if precision not in _DTYPES:
            raise ProviderUnavailable(
                f"a compiled circuit computes in {', '.join(_DTYPES)}, and the bundle is in {precision}; export it "
                "again in one of these, or choose device 'cpu'"
            )
        levels = np.arange(256, dtype=np.float32)
        means, stds = (np.array(numbers, np.float32)[:, None] for numbers in (mean, std))
        scale, shift = np.float32(1) / (np.float32(255) * stds), -means / stds
        values = (levels * scale + shift).astype(_DTYPES[precision]).astype(np.float32)
        if (np.diff(values, axis=1) < 0).any():
            raise ArtifactError("the normalisation turns the order of pixel values around; export the bundle again")
        height, width, channels = shape
        value, bit = np.divmod(circuit.bits, thresholds.shape[1])
        channel, place = np.divmod(value, height * width)
        least = (values[channel] <= thresholds[value, bit][:, None]).sum(1)
        offsets = place * channels + channel
        return cls(circuit, shape, offsets.astype(np.int32), least.astype(np.int32), values, temperature)
