"""Networks of logic gates as circuits: simplified exactly, evaluated on many samples at once, and written as C."""

from tnn_runtime.circuits.circuit import KINDS, Circuit, Level
from tnn_runtime.circuits.pixels import PixelCircuit
from tnn_runtime.circuits.simplify import circuit_of, simplified
from tnn_runtime.circuits.source import c_source

__all__ = ["KINDS", "Circuit", "Level", "PixelCircuit", "c_source", "circuit_of", "simplified"]
