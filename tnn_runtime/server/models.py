"""The models that a server has, by name and version, and what it tells of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tnn_runtime.bundle.json_values import nearest
from tnn_runtime.deployment import Deployment
from tnn_runtime.errors import UsageError
from tnn_runtime.options import shown
from tnn_runtime.queue.metrics import Distribution
from tnn_runtime.server.requests import INPUTS, InferRequest
from tnn_runtime.server.responses import Body, output_names, response_body, tensors, wanted
from tnn_runtime.server.statuses import UnknownModel
from tnn_runtime.version import __version__

__all__ = ["Model", "Models", "server_metadata"]

_PLATFORM = "tnn"


def server_metadata() -> dict[str, Any]:
    """Return what the protocol wants to know of the server."""
    return {"name": "tnn-runtime", "version": __version__, "extensions": ["binary_tensor_data", "classification"]}


@dataclass(frozen=True)
class Model:
    """A version of a model.

    Args:
        name: The name of the model.
        version: Its version, a number from 1 on; of several, the largest serves requests that name none.
        deployment: What answers.
    """

    name: str
    version: int
    deployment: Deployment

    async def infer(self, request: InferRequest) -> Body:
        """Return the answer to a request as a body of HTTP.

        Raises:
            BadRequest: If it asks for what the model does not have.
            TnnError: As `Classifier.predict_async`.
        """
        outputs = wanted(request, self._can_reject)
        answers = await self.deployment.answers_async(request.images, timeout_s=request.timeout_s)
        found = tensors(answers, outputs, request.top_k)
        return response_body(self.name, str(self.version), request, found, outputs)

    @property
    def ready(self) -> bool:
        """Whether requests should be sent to it."""
        return self.deployment.health.ready

    def metadata(self, versions: Iterable[int]) -> dict[str, Any]:
        """Return the inputs and outputs as the protocol describes them; ``versions`` are all that are served."""
        return {
            "name": self.name,
            "versions": [str(version) for version in versions],
            "platform": _PLATFORM,
            "inputs": [
                {"name": name, "datatype": datatype, "shape": [-1, -1, -1, -1] if name == "images" else [-1]}
                for name, datatype in INPUTS.items()
            ],
            "outputs": self._outputs(),
        }

    def config(self) -> dict[str, Any]:
        """Return how the model runs: names as Triton has them, and `Classifier.info` under ``info``."""
        info = self.deployment.info
        return {
            "name": self.name,
            "platform": _PLATFORM,
            "max_batch_size": info["max_batch_size"],
            "input": [{"name": name, "data_type": f"TYPE_{_CONFIG[datatype]}"} for name, datatype in INPUTS.items()],
            "output": [
                {
                    "name": output["name"],
                    "data_type": f"TYPE_{_CONFIG[output['datatype']]}",
                    "dims": output["shape"][1:],
                }
                for output in self._outputs()
            ],
            "info": info,
        }

    def stats(self) -> dict[str, Any]:
        """Return what the current bundle has counted, with the names of Triton; durations are in nanoseconds."""
        found = self.deployment.metrics
        return {
            "name": self.name,
            "version": str(self.version),
            "inference_count": found.images,
            "execution_count": found.inference_seconds.count,
            "inference_stats": {
                "success": _duration(found.request_seconds),
                "fail": {"count": sum(found.failures.values()), "ns": 0},
                "queue": _duration(found.queue_seconds),
                "compute_input": _duration(found.decode_seconds),
                "compute_infer": _duration(found.inference_seconds),
            },
        }

    @property
    def _can_reject(self) -> bool:
        rule = self.deployment.info["reject"]
        return rule is not None and rule["threshold"] is not None

    def _outputs(self) -> list[dict[str, Any]]:
        sizes = {"logits": [len(self.deployment.class_names)], "reject": [], "labels": [-1], "scores": [-1]}
        sizes["probabilities"] = sizes["logits"]
        sizes["embedding"] = self.deployment.info["embedding_shape"]
        return [
            {"name": name, "datatype": datatype, "shape": [-1, *sizes[name]]}
            for name, datatype in output_names(self._can_reject).items()
        ]


_CONFIG = {"UINT8": "UINT8", "BYTES": "STRING", "FP32": "FP32", "BOOL": "BOOL"}
"""What a configuration of Triton calls the datatypes."""


class Models:
    """The models of a server.

    Args:
        models: All of them, each version on its own.

    Raises:
        UsageError: If there is none, or two have the same name and version.
    """

    def __init__(self, models: Iterable[Model]) -> None:
        self._models: dict[str, dict[int, Model]] = {}
        for model in models:
            versions = self._models.setdefault(model.name, {})
            if model.version in versions:
                raise UsageError(
                    f"got two models {model.name!r} of version {model.version}; name each once, or give versions"
                )
            versions[model.version] = model
        if not self._models:
            raise UsageError("got no model; expected one at least")

    def __iter__(self) -> Iterator[Model]:
        return (model for versions in self._models.values() for _, model in sorted(versions.items()))

    def get(self, name: str, version: str | None = None) -> Model:
        """Return a model; without a version, or with an empty one, that of the largest version.

        Raises:
            UnknownModel: If there is none.
        """
        versions = self.versions(name)
        if not version:
            return self._models[name][versions[-1]]
        for number in versions:
            if str(number) == version:
                return self._models[name][number]
        raise UnknownModel(
            f"unknown version {shown(version)} of the model {name!r}; served are {', '.join(map(str, versions))}"
        )

    def versions(self, name: str) -> list[int]:
        """Return the versions of a model that are served, ascending.

        Raises:
            UnknownModel: If there is no such model.
        """
        if name not in self._models:
            raise UnknownModel(
                f"unknown model {shown(name)}{nearest(name, self._models)}; served are {', '.join(self._models)}"
            )
        return sorted(self._models[name])

    @property
    def ready(self) -> bool:
        """Whether all models are."""
        return all(model.ready for model in self)

    def index(self, only_ready: bool = False) -> list[dict[str, str]]:
        """Return the models with their states, as the repository of the protocol lists them."""
        return [
            {"name": model.name, "version": str(model.version), "state": "READY", "reason": ""}
            if health.ready
            else {"name": model.name, "version": str(model.version), "state": "UNAVAILABLE", "reason": health.reason}
            for model in self
            for health in [model.deployment.health]
            if health.ready or not only_ready
        ]


def _duration(found: Distribution) -> dict[str, int]:
    return {"count": found.count, "ns": round(found.total * 1e9)}
