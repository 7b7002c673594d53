"""A backend for ONNX models in Triton's Python backend, for tests: those binaries that PyPI has lack the real one."""

from __future__ import annotations

import json
import os
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime
import triton_python_backend_utils as triton

_THREADS = ("intra_op_thread_count", "inter_op_thread_count")


class TritonPythonModel:
    """Runs ``model.onnx`` on the CPU, all requests of a batch one after the other."""

    def initialize(self, arguments):
        """Load the model of a version, with the threads that the configuration says."""
        config = json.loads(arguments["model_config"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = (
            int(config["parameters"][name]["string_value"]) for name in _THREADS
        )
        path = Path(arguments["model_repository"], arguments["model_version"], config["default_model_filename"])
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def execute(self, requests):
        """Answer each request with the outputs that it asks for."""
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        feed = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        names = request.requested_output_names()
        found = self._session.run(names, feed)
        return triton.InferenceResponse([triton.Tensor(name, array) for name, array in zip(names, found, strict=True)])
