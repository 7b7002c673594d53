"""The models that a server has, by name and version, and what it tells of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tnn_runtime.bundle.json_values import nearest
from tnn_runtime.classifier import Classifier, Health
from tnn_runtime.deployment import Deployment
from tnn_runtime.errors import TnnError, UsageError
from tnn_runtime.options import shown
from tnn_runtime.queue.metrics import Distribution, MetricsSnapshot
from tnn_runtime.server.options import MAX_IMAGES
from tnn_runtime.server.outputs import Answered, offered
from tnn_runtime.server.requests import INPUTS, InferRequest, Wanted
from tnn_runtime.server.responses import tensors, wanted
from tnn_runtime.server.statuses import NotAllowed, RequestTooLarge, UnknownModel
from tnn_runtime.server.tensors import Tensor
from tnn_runtime.server.threads import off_loop
from tnn_runtime.version import __version__

__all__ = ["Counted", "Model", "Models", "Peers", "server_metadata"]

_LOG = logging.getLogger(__name__)
_PLATFORM = "tnn"


def server_metadata() -> dict[str, Any]:
    """Return what the protocol wants to know of the server."""
    return {
        "name": "tnn-runtime",
        "version": __version__,
        "extensions": ["binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics"],
    }


@dataclass(frozen=True)
class Model:
    """A version of a model.

    Args:
        name: The name of the model.
        version: Its version, a number from 1 on; of several, the largest serves requests that name none.
        deployment: What answers.
        max_images: Images that a request may have.
    """

    name: str
    version: int
    deployment: Deployment
    max_images: int = MAX_IMAGES

    def __str__(self) -> str:
        return f"{self.name} (version {self.version})"

    async def infer(self, request: InferRequest) -> list[tuple[Tensor, Wanted]]:
        """Return the outputs of the answer to a request, each with how it was asked for.

        Raises:
            RequestTooLarge: If it has too many images.
            BadRequest: If it asks for what the model does not have.
            TnnError: As `Classifier.predict_async`.
        """
        if len(request.images) > self.max_images:
            raise RequestTooLarge(
                f"the request has {len(request.images)} images; expected at most {self.max_images}: send fewer"
            )

        async def answer(classifier: Classifier) -> list[tuple[Tensor, Wanted]]:
            known = offered(classifier.abilities, classifier.extra_outputs)
            chosen = wanted(request, known, classifier.missing_abilities)
            outputs = [known[one.name] for one in chosen]
            explain = request.top_k if any(output.explains for output in outputs) else 0
            maps = any("maps" in output.needs for output in outputs)
            extra = [one.name for one in chosen if known[one.name].extra]
            found = await classifier.answers_async(
                request.images, explain, maps=maps, outputs=extra, timeout_s=request.timeout_s
            )
            return await off_loop(request.is_large, tensors, Answered(*found, request.top_k), chosen, known)

        return await self.deployment.run_async(answer)

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
            "input": [
                {"name": one["name"], "data_type": _CONFIG[one["datatype"]], "dims": one["shape"][1:]}
                for one in self.metadata(())["inputs"]
            ],
            "output": [
                {"name": one["name"], "data_type": _CONFIG[one["datatype"]], "dims": one["shape"][1:]}
                for one in self._outputs()
            ],
            "info": info,
        }

    def stats(self, found: MetricsSnapshot) -> dict[str, Any]:
        """Return what its current bundle has counted, with the names of Triton; durations are in nanoseconds."""
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

    def _outputs(self) -> list[dict[str, Any]]:
        classifier = self.deployment.current
        classes = [len(classifier.class_names)]
        sizes: dict[str, Any] = {spec.name: spec.shape[1:] for spec in classifier.extra_outputs}
        sizes |= {"logits": classes, "probabilities": classes, "embedding": classifier.info["embedding_shape"]}
        return [
            {"name": name, "datatype": output.datatype, "shape": [-1, *sizes.get(name, [-1] * output.more_axes)]}
            for name, output in offered(classifier.abilities, classifier.extra_outputs).items()
        ]


_CONFIG = {"UINT8": "TYPE_UINT8", "BYTES": "TYPE_STRING", "FP32": "TYPE_FP32", "BOOL": "TYPE_BOOL"}
"""What a configuration of Triton calls the datatypes."""


@dataclass(frozen=True)
class Counted:
    """What is counted and known of a model, as `ClassifierCollector` asks a classifier.

    Args:
        metrics_by_version: As `Deployment.metrics_by_version`.
        info: As `Deployment.info`.
        health: As `Deployment.health`.
    """

    metrics_by_version: tuple[MetricsSnapshot, ...]
    info: dict[str, Any]
    health: Health

    def __add__(self, other: Counted) -> Counted:
        """Return what two processes have counted; ready if both are. The current version of this one stays the last."""
        theirs = {one.version: one for one in other.metrics_by_version}
        both = [one + theirs.pop(one.version) if one.version in theirs else one for one in self.metrics_by_version]
        return Counted((*theirs.values(), *both), self.info, self.health if other.health.ready else other.health)


class Peers:
    """The other processes of a server: none."""

    async def ask(self, what: str, *arguments: Any) -> list[Any]:
        """Return what each of them answers to a question."""
        return []


class Models:
    """The models of a server.

    Args:
        models: All of them, each version on its own.
        may_load: Whether requests may have bundles loaded again.

    Attributes:
        draining: Whether the server is about to end, and requests should be sent to another one.
        peers: The other processes of the server.

    Raises:
        UsageError: If there is none, or two have the same name and version.
    """

    def __init__(self, models: Iterable[Model], *, may_load: bool = False) -> None:
        self.draining = False
        self.peers = Peers()
        self._loader = ThreadPoolExecutor(1, "tnn-loader")
        self._may_load = may_load
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

    @property
    def first(self) -> Model:
        """The model that serves who names none: the first one, in its largest version."""
        return self.get(next(iter(self._models)))

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
        """Whether requests should be sent to this server: all models are ready, and it does not drain."""
        return not self.draining and all(model.ready for model in self)

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

    def counted_here(self) -> dict[str, Counted]:
        """Return what this process has counted of each model: by name, and by name and version if it has several."""
        return {
            self._key(model): Counted(
                model.deployment.metrics_by_version, model.deployment.info, model.deployment.health
            )
            for model in self
        }

    async def counted(self) -> dict[str, Counted]:
        """Return what all processes of the server have counted together."""
        found = self.counted_here()
        for others in await self.peers.ask("counted"):
            found = {name: one + others[name] if name in others else one for name, one in found.items()}
        return found

    async def stats(self, name: str | None = None, version: str | None = None) -> dict[str, Any]:
        """Return what models have counted, as `Model.stats` tells it: all, those of a name, or one.

        Raises:
            UnknownModel: If there is none.
        """
        if name is None:
            models = list(self)
        else:
            models = [self.get(name, one) for one in ([version] if version else map(str, self.versions(name)))]
        counted = await self.counted()
        return {"model_stats": [model.stats(counted[self._key(model)].metrics_by_version[-1]) for model in models]}

    def _key(self, model: Model) -> str:
        return model.name if len(self._models[model.name]) == 1 else f"{model.name}:{model.version}"

    async def load(self, name: str) -> None:
        """Load the bundles of a model again for a request, as `reload` does.

        Raises:
            NotAllowed: If requests may not.
            TnnError: As `reload`.
        """
        self.versions(name)
        if not self._may_load:
            raise NotAllowed("loading by request is off; start the server with --allow-load, or send it SIGHUP")
        await asyncio.gather(self.reload_async(name), self.peers.ask("reload", name))

    async def unload(self, name: str) -> None:
        """Refuse it: models are served until the server ends.

        Raises:
            NotAllowed: Always, if there is such a model.
        """
        self.versions(name)
        raise NotAllowed(f"models cannot be unloaded; restart the server without {shown(name)}")

    async def reload_async(self, name: str | None = None) -> None:
        """Do what `reload` does, in a thread of its own: one reload after the other, and no request waits for it."""
        await asyncio.get_running_loop().run_in_executor(self._loader, self.reload, name)

    def close(self) -> None:
        """Begin no reload that waits."""
        self._loader.shutdown(wait=False, cancel_futures=True)

    def reload(self, name: str | None = None) -> None:
        """Load the bundles of a model, or of all, again from their folders, while the old ones serve; in this thread.

        Raises:
            UnknownModel: If there is no such model.
            TnnError: As `Classifier.load`, with the old bundle still serving; the first of several.
        """
        errors: list[TnnError] = []
        for model in list(self) if name is None else [self.get(name, str(one)) for one in self.versions(name)]:
            try:
                model.deployment.reload()
            except TnnError as error:
                _LOG.warning("%s keeps what it has: %s", model, error)
                errors.append(error)
        if errors:
            raise errors[0]


def _duration(found: Distribution) -> dict[str, int]:
    return {"count": found.count, "ns": round(found.total * 1e9)}
