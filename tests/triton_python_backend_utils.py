"""What the steps around the network use of Triton's Python backend, for tests without Triton."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np


@dataclass
class TritonError:
    message: str
    code: str

    INVALID_ARG: ClassVar[str] = "INVALID_ARG"
    UNAVAILABLE: ClassVar[str] = "UNAVAILABLE"
    INTERNAL: ClassVar[str] = "INTERNAL"


@dataclass
class Tensor:
    name: str
    values: np.ndarray

    def as_numpy(self) -> np.ndarray:
        return self.values


@dataclass
class InferenceResponse:
    output_tensors: list[Tensor] | None = None
    error: TritonError | None = None


@dataclass
class Request:
    """A request as a step gets it; `Triton` has no such constructor."""

    inputs: dict[str, np.ndarray]
    outputs: list[str]

    def requested_output_names(self) -> list[str]:
        return self.outputs


def get_input_tensor_by_name(request: Request, name: str) -> Any:
    return Tensor(name, request.inputs[name])
