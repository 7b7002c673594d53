"""The steps around the network in Triton: files to images before it, logits to answers behind it.

This file is the ``model.py`` of both steps. It runs in Triton's Python, 3.11 or newer, with NumPy (1.26 or newer) and
Pillow from there. The package ``tnn_runtime`` and the manifest of the bundle lie beside it.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

if sys.version_info < (3, 11):  # noqa: UP036
    raise ImportError(
        f"this model needs Python 3.11 or newer, and this Triton has {sys.version.split()[0]}; use Triton 2.53 "
        "(container 24.12) or newer"
    )
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import triton_python_backend_utils as triton
from numpy.typing import NDArray

from tnn_runtime.answers.outputs import Outputs, not_finite
from tnn_runtime.answers.results import Answers
from tnn_runtime.bundle.density import read_density
from tnn_runtime.bundle.manifest import BUNDLE, DENSITY_FILE, Manifest
from tnn_runtime.bundle.reading import OpenFolder
from tnn_runtime.errors import InputError, TnnError
from tnn_runtime.images.limits import Limits
from tnn_runtime.server.outputs import OUTPUTS, Answered
from tnn_runtime.server.statuses import status_of

__all__ = ["TritonPythonModel"]

_FOLDER = Path(__file__).parent
_CODES = {"INVALID_ARGUMENT": "INVALID_ARG", "UNAVAILABLE": "UNAVAILABLE"}
"""What Triton calls the status codes of gRPC; all others are internal errors."""


class TritonPythonModel:
    """A step, as Triton's Python backend runs it. Each request gets its own answer or its own error."""

    def initialize(self, arguments: Mapping[str, str]) -> None:
        """Read the manifest, and make the step that the configuration asks for.

        Raises:
            ArtifactError: If the manifest cannot be used.
            UsageError: If an environment variable of the limits has no meaning.
        """
        config = json.loads(arguments["model_config"])
        with contextlib.closing(OpenFolder(_FOLDER, BUNDLE)) as folder:
            manifest, _ = Manifest.of(folder)
        make = {"files": _decode_step, "logits": _rank_step}[config["input"][0]["name"]]
        self._answer = make(manifest, config)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer requests, one by one: what is wrong with one is no matter of the others."""
        return [self._respond(request) for request in requests]

    def _respond(self, request: Any) -> Any:
        try:
            return triton.InferenceResponse(self._answer(request))
        except TnnError as error:
            return _failed(str(error), _CODES.get(status_of(error).grpc, "INTERNAL"))
        except Exception as error:  # whatever it is, it must not reach the requests of others
            return _failed(f"{type(error).__name__}: {error}", "INTERNAL")


def _decode_step(manifest: Manifest, config: Mapping[str, Any]) -> Callable[[Any], list[Any]]:
    limits, preprocessing = Limits.from_environment(), manifest.preprocessing

    def decode(request: Any) -> list[Any]:
        files = _input(request, "files").ravel()
        images = np.empty((len(files), *preprocessing.shape), np.uint8)
        for index, content in enumerate(files):
            try:
                images[index] = preprocessing(content, limits)
            except InputError as error:
                raise InputError(f"files[{index}]: {error}") from error
        return [_tensor("images", images)]

    return decode


def _rank_step(manifest: Manifest, config: Mapping[str, Any]) -> Callable[[Any], list[Any]]:
    (top_k,) = (int(output["dims"][0]) for output in config["output"] if output["name"] == "labels")
    file = _FOLDER / DENSITY_FILE
    make_answers = partial(
        Answers,
        class_names=manifest.class_names,
        rule=manifest.reject,
        temperature=manifest.temperature,
        density=read_density(manifest, _FOLDER, file.read_bytes() if file.exists() else None),
    )

    def rank(request: Any) -> list[Any]:
        outputs = Outputs(_input(request, "logits"), _input(request, "embedding"))
        bad = outputs.bad_rows
        if len(bad):
            raise not_finite(int(bad[0]))
        found = Answered(make_answers(outputs), [], top_k)
        return [_tensor(name, OUTPUTS[name].make(found)) for name in request.requested_output_names()]

    return rank


def _input(request: Any, name: str) -> Any:
    return triton.get_input_tensor_by_name(request, name).as_numpy()


def _tensor(name: str, values: NDArray[Any]) -> Any:
    """Return an output; Triton knows none that has the dimension of the batch alone."""
    return triton.Tensor(name, values[:, None] if values.ndim == 1 else values)


def _failed(message: str, code: str) -> Any:
    return triton.InferenceResponse(error=triton.TritonError(message, getattr(triton.TritonError, code)))
