"""Configurations of Triton's models, as its own protocol buffers: ``config.pbtxt`` is their text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tnn_export.triton.options import KINDS, TritonOptions
from tnn_runtime.bundle.manifest import Manifest
from tnn_runtime.errors import ProviderUnavailable
from tnn_runtime.installation import install_command
from tnn_runtime.server.outputs import offered
from tnn_runtime.server.requests import INPUTS

try:
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig
except ImportError as error:
    raise ProviderUnavailable(
        f"configurations of Triton need the package tritonclient, which cannot be imported ({error}); run: "
        f"{install_command('triton')}"
    ) from error

__all__ = ["DECODE", "LABELS_FILE", "NETWORK", "RANK", "TENSORRT", "Configs"]

NETWORK, TENSORRT, DECODE, RANK = "_onnx", "_tensorrt", "_decode", "_rank"
"""How the names of the models go on that are no ensembles."""

LABELS_FILE = "labels.txt"

_LABELLED = ("logits", "probabilities")
_TYPES = {"BYTES": "TYPE_STRING", "float32": "TYPE_FP32", "uint8": "TYPE_UINT8"}


@dataclass(frozen=True)
class Configs:
    """The configurations of the models of a bundle, as text.

    Args:
        name: What clients call the bundle.
        version: The version of all of its models.
        manifest: The manifest of the bundle.
        options: How Triton is to run it.
    """

    name: str
    version: int
    manifest: Manifest
    options: TritonOptions

    def onnx(self, file: str) -> str:
        """Return that of the network in ONNX Runtime."""
        threads = {"intra_op_thread_count": self.options.threads, "inter_op_thread_count": 1, "execution_mode": 0}
        return self._network(
            NETWORK,
            self.options.device,
            backend="onnxruntime",
            platform="onnxruntime_onnx",
            default_model_filename=file,
            parameters={key: {"string_value": str(value)} for key, value in threads.items()},
        )

    def tensorrt(self, file: str) -> str:
        """Return that of the network as an engine of TensorRT."""
        return self._network(
            TENSORRT, "cuda", backend="tensorrt", platform="tensorrt_plan", default_model_filename=file
        )

    def decode(self) -> str:
        """Return that of the step from files to images."""
        return self._model(
            DECODE,
            self._files,
            self._images,
            backend="python",
            instance_group=[{"kind": KINDS["cpu"], "count": self.options.decoders}],
        )

    def rank(self) -> str:
        """Return that of the step from logits to answers."""
        return self._model(
            RANK,
            self._given("logits", "embedding"),
            self._answers,
            backend="python",
            instance_group=[{"kind": KINDS["cpu"], "count": 1}],
            dynamic_batching={},
        )

    def ensemble(self) -> str:
        """Return that of the model that clients call: from files to answers.

        What the network gives has other names here than what clients get, also where it is the same: Triton leaves out
        a step if all that it gives are outputs that a client does not ask for, although another step needs them.
        """
        found = {name: f"network_{name}" for name in ("logits", "embedding")}
        answers = {one["name"]: one["name"] for one in self._answers}
        return self._model(
            "",
            self._files,
            self._answers,
            platform="ensemble",
            ensemble_scheduling={
                "step": [
                    self._step(DECODE, {"files": "files"}, {"images": "images"}),
                    self._step(NETWORK, {"images": "images"}, found),
                    self._step(RANK, found, answers),
                ]
            },
        )

    @property
    def _files(self) -> list[dict[str, Any]]:
        return [{"name": "files", "data_type": _type(INPUTS["files"]), "dims": [1]}]

    @property
    def _images(self) -> list[dict[str, Any]]:
        return [_tensor(spec.name, spec.dtype, spec.shape[1:]) for spec in self.manifest.inputs]

    def _given(self, *names: str) -> list[dict[str, Any]]:
        """Return outputs of the network; all if none is named."""
        return [
            _tensor(spec.name, spec.dtype, spec.shape[1:])
            for spec in self.manifest.outputs
            if spec.name in names or not names
        ]

    @property
    def _answers(self) -> list[dict[str, Any]]:
        rule = self.manifest.reject
        classes = len(self.manifest.class_names)
        best = min(self.options.top_k, classes)
        dims = {
            "logits": [classes],
            "probabilities": [classes],
            "embedding": self.manifest.outputs[1].shape[1:],
            "labels": [best],
            "scores": [best],
            "reject": [1],
        }
        can_reject = rule is not None and rule.threshold is not None
        known = offered(frozenset({"reject"} if can_reject else ()))
        return [_tensor(name, output.datatype, dims[name]) for name, output in known.items()]

    def _network(self, suffix: str, device: str, **fields: Any) -> str:
        return self._model(
            suffix,
            self._images,
            self._given(),
            instance_group=[{"kind": KINDS[device], "count": self.options.instances}],
            dynamic_batching={"max_queue_delay_microseconds": self.options.max_queue_delay_us},
            **fields,
        )

    def _model(
        self, suffix: str, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[dict[str, Any]], **fields: Any
    ) -> str:
        labelled = {"label_filename": LABELS_FILE} if suffix not in (DECODE, RANK) else {}
        config = ModelConfig(
            name=f"{self.name}{suffix}",
            max_batch_size=self.options.batch_for(self.manifest),
            version_policy={"specific": {"versions": [self.version]}},
            input=inputs,
            output=[{**one, **(labelled if one["name"] in _LABELLED else {})} for one in outputs],
            **fields,
        )
        return str(text_format.MessageToString(config))

    def _step(self, suffix: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> dict[str, Any]:
        return {
            "model_name": f"{self.name}{suffix}",
            "model_version": self.version,
            "input_map": inputs,
            "output_map": outputs,
        }


def _tensor(name: str, dtype: str, dims: Iterable[int | None]) -> dict[str, Any]:
    return {"name": name, "data_type": _type(dtype), "dims": list(dims)}


def _type(dtype: str) -> str:
    return _TYPES.get(dtype, f"TYPE_{dtype}")
