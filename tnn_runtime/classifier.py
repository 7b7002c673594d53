"""The one class that services embed."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeGuard, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.answers.density import Density
from tnn_runtime.answers.outputs import Outputs, not_finite
from tnn_runtime.answers.reject import check_score
from tnn_runtime.answers.results import Answers, Predictions
from tnn_runtime.backends import BackendOptions, open_backend
from tnn_runtime.bundle.density import read_density
from tnn_runtime.bundle.golden import replay_golden_samples
from tnn_runtime.bundle.manifest import DENSITY_FILE, EXEMPLARS_FILE, FEATURE_MAPS, Manifest, TensorSpec
from tnn_runtime.bundle.opened import open_bundle
from tnn_runtime.errors import DeadlineExceeded, InputError, NotAnswered, QueueFull, RunError, UsageError
from tnn_runtime.explain import Explainer, open_explainer
from tnn_runtime.explain.exemplars import KINDS, Exemplars, Gallery
from tnn_runtime.explain.result import Explanation
from tnn_runtime.images.decoders import Decoders, numbered
from tnn_runtime.images.limits import Limits
from tnn_runtime.images.preprocess import AnyImage
from tnn_runtime.options import MOST_THREADS, at_least_one, device_list, environment_number, seconds, shown
from tnn_runtime.queue.batching import Batcher, QueueOptions, Request
from tnn_runtime.queue.cores import usable_cores
from tnn_runtime.queue.failures import Failures
from tnn_runtime.queue.lifecycle import Lifecycle
from tnn_runtime.queue.metrics import Metrics, MetricsSnapshot
from tnn_runtime.queue.replicas import Replica, Replicas
from tnn_runtime.replies import (
    NUM_FEATURES,
    NUM_PROTOTYPES,
    Answer,
    Replies,
    Reply,
    embedding,
    logits,
)

__all__ = ["Classifier", "Health"]

_LOG = logging.getLogger(__name__)

T = TypeVar("T")
Images = Sequence[AnyImage] | NDArray[np.uint8]

_UINT8 = np.dtype(np.uint8)
_LOOK_AGAIN_S = 0.005
_VERSION_DIGITS = 12
_CLOSED = "this classifier is closed; load the bundle again"
_DRAINING = "this classifier drains: it answers what it has accepted, and takes nothing new; send it elsewhere"


@dataclass(frozen=True)
class Health:
    """Whether a classifier serves.

    Args:
        ready: Whether requests should be sent to it. Once a device was lost, this is never true again: restart the
            process then.
        reason: Why it is not ready; empty if it is.
        waiting: Submitted images that wait for their batch.
        open_requests: Requests that were accepted and are not yet answered.
    """

    ready: bool
    reason: str
    waiting: int
    open_requests: int


class Classifier:
    """A bundle, loaded and ready. Make one with `Classifier.load`.

    There are two ways to the model. ``predict``, ``logits``, ``embed`` and ``explain`` run it at once, in batches of
    what they are given. ``submit``, and the methods for asyncio, put each image into a queue, where the images of all
    callers gather into batches. All of them may be called from several threads at once.

    Use it as a context manager, which answers what was submitted and then closes; or call `drain` and `close`.
    """

    def __init__(
        self,
        manifest: Manifest,
        folder: Path,
        replicas: Replicas,
        queue: QueueOptions,
        metrics: Metrics,
        explainer: Explainer | None,
        *,
        exemplars: bytes | None = None,
        density: Density | None = None,
        digest: str = "",
        limits: Limits | None = None,
        decoders: int = 1,
        max_concurrent_calls: int | None = None,
        timeout_s: float | None = None,
        tracer: Any = None,
    ) -> None:
        """Take parts that `load` has made and checked.

        Args:
            manifest: The manifest of the bundle.
            folder: The bundle folder.
            replicas: The loaded models.
            queue: How submitted images wait.
            metrics: Where the replicas count.
            explainer: What explains the logits; ``None`` if the bundle cannot be explained.
            exemplars: The content of ``exemplars.npz``; ``None`` if the bundle has none.
            density: What the reject score needs; ``None`` if it needs none.
            digest: SHA-256 of the manifest, which has the hashes of all files.
            limits: What an image may be; by default the default limits.
            decoders: As for `load`.
            max_concurrent_calls: As for `load`.
            timeout_s: As for `load`, in seconds.
            tracer: As for `load`; the replicas have it already, and here it decides whether requests are linked.
        """
        self._manifest = manifest
        self._shape = manifest.preprocessing.shape
        self._folder = folder
        self._digest = digest
        self._replicas = replicas
        self._queue = queue
        self._metrics = metrics
        self._failures = Failures(metrics, _LOG)
        self._replies = Replies(manifest, explainer, metrics)
        self._explainer = explainer
        self._exemplars = exemplars
        self._limits = limits or Limits()
        self._max_concurrent_calls = max_concurrent_calls
        self._places = None if max_concurrent_calls is None else threading.Semaphore(max_concurrent_calls)
        self._timeout_s = timeout_s
        self._tracer = tracer
        self._make_answers = partial(
            Answers,
            class_names=manifest.class_names,
            rule=manifest.reject,
            temperature=manifest.temperature,
            density=density,
        )
        self._lifecycle = Lifecycle()
        self._decoders = Decoders(manifest.preprocessing, self._limits, decoders, metrics)
        self._batcher: Batcher | None = None
        self._making = threading.Lock()

    @classmethod
    def load(
        cls,
        bundle: str | Path,
        device: str | Sequence[str] = "auto",
        *,
        providers: Sequence[str] | None = None,
        provider_options: Mapping[str, str] | None = None,
        threads: int | None = None,
        spin: bool = False,
        tf32: bool = False,
        cuda_graphs: bool = False,
        max_batch_size: int = 64,
        max_queue_delay_ms: float = 2.0,
        max_queue_size: int = 1024,
        max_concurrent_calls: int | None = None,
        timeout_s: float | None = None,
        limits: Limits | None = None,
        decoders: int | None = None,
        cache_dir: str | Path | None = None,
        warmup: bool = True,
        self_check: bool = True,
        public_key: str | Path | None = None,
        tracer: Any = None,
    ) -> Self:
        """Load a bundle, check every file's hash, and replay its golden samples on each device.

        Args:
            bundle: The bundle folder.
            device: ``"auto"`` takes a compiled program for a logic head on pixels, and else CUDA where it works and the
                CPU otherwise (`info` tells which and why); ``"cpu"``, ``"compiled"``, ``"cuda"``, ``"cuda:N"``,
                ``"tensorrt"`` and ``"tensorrt:N"`` mean just that, or an error. A list makes a replica of the model for
                each of its devices; a device may be in it more than once.
            providers: Execution providers of ONNX Runtime to use instead of those of the device, first choice first,
                such as ``("TensorrtExecutionProvider", "CUDAExecutionProvider")`` on a CUDA device.
            provider_options: Options of the first provider, as ONNX Runtime spells them.
            threads: CPU threads for one call; by default ``TNN_THREADS``, or the usable cores (affinity and quota of
                the control group) shared among the replicas.
            spin: Whether idle CPU threads wait actively: a little faster for a process that has its cores for itself,
                much slower for one that shares them.
            tf32: Whether float32 products on CUDA may round their factors to 10 bits.
            cuda_graphs: Whether CUDA work is recorded once for each batch size, and replayed.
            max_batch_size: Images a batch, at most; larger inputs are split.
            max_queue_delay_ms: How long a submitted image waits for others while a model is free, in milliseconds.
            max_queue_size: Submitted images that may wait; more are refused with `QueueFull`.
            max_concurrent_calls: How many calls of ``predict``, ``logits``, ``embed``, ``explain`` and
                ``reject_scores`` may run at once; more wait until one of them has ended. By default there is no limit.
            timeout_s: Seconds within which the batch of a submitted image must begin, and a call may wait for others
                to end, or it gets `DeadlineExceeded`; by default there is no limit.
            limits: What an image may be; by default ``TNN_MAX_PIXELS``, ``TNN_MAX_BYTES`` and ``TNN_FORMATS``, or the
                defaults of `Limits`.
            decoders: Images that are decoded at once; by default ``TNN_DECODERS``, or the usable cores.
            cache_dir: Where engines of TensorRT and compiled programs are kept; by default in the user's cache folder.
            warmup: Whether to run each batch size that the device is prepared for, so that no request waits for it.
            self_check: Whether to replay the golden samples.
            public_key: The PEM file of the Ed25519 key whose owner must have signed the bundle; without one, a
                signature is not looked at.
            tracer: An OpenTelemetry tracer; each run of the model is then a span, with links to those of its requests.

        Raises:
            SignatureError: If a key is given and the bundle is not signed with it.
            ArtifactError: If the bundle is missing, damaged, altered, or of a newer schema.
            SelfCheckError: If the golden samples come out differently here.
            ProviderUnavailable: If a device does not work on this machine.
            UsageError: If an argument is out of its range.
        """
        devices = device_list(device)
        cores = usable_cores()
        if threads is None:
            threads = environment_number("TNN_THREADS", max(1, cores // len(devices)), MOST_THREADS)
        decoders = environment_number("TNN_DECODERS", cores, MOST_THREADS) if decoders is None else decoders
        limits = Limits.from_environment() if limits is None else limits
        at_least_one(MOST_THREADS, threads=threads, decoders=decoders)
        at_least_one(
            max_batch_size=max_batch_size,
            max_queue_size=max_queue_size,
            max_concurrent_calls=1 if max_concurrent_calls is None else max_concurrent_calls,
        )
        delay_s = seconds(max_queue_delay_ms, "max_queue_delay_ms", "milliseconds") / 1000
        timeout_s = None if timeout_s is None else seconds(timeout_s, "timeout_s")
        opened = open_bundle(bundle, public_key)
        manifest, folder = opened.manifest, opened.folder
        explainer = open_explainer(opened)
        density = read_density(manifest, folder, opened.contents.get(DENSITY_FILE))
        max_batch_size = min(max_batch_size, manifest.batch.largest or max_batch_size)
        options = BackendOptions(
            threads=threads,
            max_batch_size=max_batch_size,
            providers=providers,
            provider_options=dict(provider_options or {}),
            spin=spin,
            tf32=tf32,
            cuda_graphs=cuda_graphs,
            cache_dir=None if cache_dir is None else Path(cache_dir),
        )
        metrics = Metrics(max_batch_size, opened.digest[:_VERSION_DIGITS])
        replicas: list[Replica] = []
        try:
            for name in devices:
                backend, reason = open_backend(opened, name, options)
                replicas.append(Replica(backend, manifest.batch.smallest, reason, metrics, tracer))
                if warmup:
                    replicas[-1].warm_up()
                if self_check:
                    replay_golden_samples(opened, backend.device, replicas[-1].logits, max_batch_size)
        except BaseException:
            Replicas(replicas).close()
            raise
        metrics.reset()
        for replica in replicas:
            _LOG.info("%s runs on %s: %s", folder, replica.backend.device, replica.reason)
        queue = QueueOptions(max_batch_size, delay_s, max_queue_size)
        return cls(
            manifest,
            folder,
            Replicas(replicas),
            queue,
            metrics,
            explainer,
            exemplars=opened.contents.get(EXEMPLARS_FILE),
            density=density,
            digest=opened.digest,
            limits=limits,
            decoders=decoders,
            max_concurrent_calls=max_concurrent_calls,
            timeout_s=timeout_s,
            tracer=tracer,
        )

    def predict(self, images: Images, top_k: int = 5, *, reject: bool = False) -> list[Predictions]:
        """Classify images.

        Args:
            images: Paths, the content of image files (``bytes``, ``bytearray``, ``memoryview``), open files, PIL
                images, or uint8 arrays ``[H, W]``, ``[H, W, 1]`` or ``[H, W, 3]``, mixed as you like and of any size;
                or one uint8 array ``[N, H, W, C]``.
            top_k: How many classes to return for each image; all of them if there are fewer.
            reject: Whether to give no prediction for images whose `reject_scores` are below the bundle's threshold.

        Returns:
            For each image, in order, the list of its ``top_k`` predictions, best first, which also says whether the
            image is rejected, and its reject score. The list of a rejected image is empty.

        Raises:
            UsageError: If images are to be rejected, and the bundle has no threshold.
            InputError: If an image cannot be used; the message names it.
            NotAnswered: If the classifier is closed or drains, its device is lost, or the model fails.
        """
        make = self._replies.predictions(top_k, reject).make
        answers = self._make_answers(self._run(images))
        return [make(answers, row) for row in range(len(answers.logits))]

    def logits(self, images: Images) -> NDArray[np.float32]:
        """Return the logits, float32 ``[N, classes]``, of the images that `predict` accepts.

        An array ``[N, height, width, channels]`` of the model's own size goes to the model as it is.
        """
        return self._run(images).logits

    def embed(self, images: Images) -> NDArray[np.float32]:
        """Return the embeddings that the head sees, float32 ``[N, D]``."""
        return self._run(images).embedding

    def outputs(self, images: Images, *names: str) -> dict[str, NDArray[np.float32]]:
        """Return outputs of the graph beside logits and embedding, each float32 ``[N, ...]``, by their names.

        Args:
            images: As for `predict`.
            names: Which of `extra_outputs`; by default all of them.

        Raises:
            UsageError: If the bundle lacks one; the message lists those that it has.
        """
        extra = self._replies.extra_names(names)
        found = self._counted(partial(self._outputs, images, extra)).extra
        return {name: found[name] for name in extra}

    def reject_scores(self, images: Images) -> NDArray[np.float32]:
        """Return how sure the model is of the images that `predict` accepts, ``[N]``: the larger, the surer.

        ``info["reject"]`` tells which score it is, and the threshold below which `predict` can reject.

        Raises:
            UsageError: If the bundle does not say which score to use.
        """
        check_score(self._manifest.reject)
        return self._make_answers(self._run(images)).reject_scores

    def explain(
        self,
        images: Images,
        top_k: int = 3,
        num_features: int = NUM_FEATURES,
        num_prototypes: int = NUM_PROTOTYPES,
        *,
        against: str | None = None,
        maps: bool = False,
    ) -> list[list[Explanation]]:
        """Split the logits of the ``top_k`` best classes of each image into parts for and against the class.

        Which parts these are depends on the head: `Explanation.formula` tells. Those of a Tversky head are
        `TverskyExplanation`.

        Args:
            images: As for `predict`.
            top_k: How many classes to explain for each image.
            num_features: How many of the strongest features to list for each class.
            num_prototypes: How many of the prototypes that the image is most like to list, if the head has prototypes.
            against: The class that the explained ones are compared with in `Explanation.contrast`: its name, or
                ``"runner-up"`` for the best of the others, which is the default. The class itself is compared with the
                best one.
            maps: Whether to tell where in the image all that comes from: `Explanation.maps`.

        Returns:
            For each image its explanations, the class with the largest logit first.

        Raises:
            UsageError: If the bundle cannot be explained: an older one with a linear head, or one whose head this
                version does not know. If there is no class to compare with: none of that name, the best class of an
                image itself, or a bundle with a single class. If maps are asked for, and it has none.
        """
        make = self._replies.explanations(top_k, num_features, num_prototypes, against, maps).make

        def explain() -> list[list[Explanation]]:
            explained: list[list[Explanation]] = []
            # Feature maps are large: those of one batch at a time are held.
            for outputs in self._with_maps(images) if maps else [self._outputs(images)]:
                answers = self._make_answers(outputs)
                for row in range(len(answers.logits)):
                    try:
                        explained.append(make(answers, row))
                    except UsageError as error:
                        index = len(explained)
                        told = UsageError(f"images[{index}]: {error}")
                        told.index = index
                        raise told from None
            return explained

        return self._counted(explain)

    def exemplars(self, *, feature: int | None = None, prototype: int | None = None) -> Exemplars:
        """Return what a feature or a prototype looks like: the training images that have it most.

        Args:
            feature: The number of a feature, as explanations have it in ``index``.
            prototype: The number of a prototype, likewise. One of the two is given.

        Raises:
            UsageError: If not one of the two is given, or the bundle has no exemplars of it.
        """
        asked = {kind: one for kind, one in zip(KINDS, (feature, prototype), strict=True) if one is not None}
        if len(asked) != 1:
            raise UsageError(f"got {len(asked)} of {' and '.join(KINDS)}; give one of them: exemplars(feature=3)")
        ((kind, number),) = asked.items()
        if type(number) is not int:
            raise UsageError(f"{kind} is {shown(number)}; expected its number, as explanations have it")
        gallery = self._gallery
        if gallery is None:
            raise UsageError(
                f"{self._folder} has no {EXEMPLARS_FILE}; export a checkpoint that was trained with exemplars, or give "
                "training images with tnn-export --exemplars FOLDER"
            )
        found = gallery.find(kind, number)
        if found is None:
            raise UsageError(f"the bundle has no exemplars of {kind} {shown(number)}; it has {gallery.told(kind)}")
        return found

    @cached_property
    def _gallery(self) -> Gallery | None:
        return None if self._exemplars is None else Gallery.read(self._folder / EXEMPLARS_FILE, self._exemplars)

    @overload
    def submit(
        self,
        image: AnyImage,
        top_k: int = 5,
        *,
        answer: Literal["prediction"] = "prediction",
        reject: bool = False,
        timeout_s: float | None = None,
    ) -> Future[Predictions]: ...

    @overload
    def submit(
        self,
        image: AnyImage,
        top_k: int = 5,
        *,
        answer: Literal["logits", "embedding"],
        timeout_s: float | None = None,
    ) -> Future[NDArray[np.float32]]: ...

    @overload
    def submit(
        self,
        image: AnyImage,
        top_k: int = 5,
        *,
        answer: Literal["explanation"],
        num_features: int = NUM_FEATURES,
        num_prototypes: int = NUM_PROTOTYPES,
        against: str | None = None,
        maps: bool = False,
        timeout_s: float | None = None,
    ) -> Future[list[Explanation]]: ...

    @overload
    def submit(
        self,
        image: AnyImage,
        top_k: int = 5,
        *,
        answer: Literal["all"],
        reject: bool = False,
        num_features: int = NUM_FEATURES,
        num_prototypes: int = NUM_PROTOTYPES,
        against: str | None = None,
        maps: bool = False,
        timeout_s: float | None = None,
    ) -> Future[Answer]: ...

    @overload
    def submit(
        self, image: AnyImage, top_k: int = 5, *, answer: str, timeout_s: float | None = None
    ) -> Future[Any]: ...

    def submit(
        self,
        image: AnyImage,
        top_k: int = 5,
        *,
        answer: str = "prediction",
        reject: bool = False,
        num_features: int = NUM_FEATURES,
        num_prototypes: int = NUM_PROTOTYPES,
        against: str | None = None,
        maps: bool = False,
        timeout_s: float | None = None,
    ) -> Future[Any]:
        """Put one image into the queue, to be classified in a batch with others, and return at once.

        Files are decoded in the background. Callbacks of the future run one after another in a thread that the
        classifier has for them; they may call it, and even close it.

        Args:
            image: An image as `predict` accepts it.
            top_k: How many classes to return, or to explain.
            answer: What to return, all of it from one run of the model: ``"prediction"``, what `predict` returns for
                the image; ``"logits"``, float32 ``[classes]``; ``"embedding"``, float32 ``[D]``; ``"explanation"``,
                what `explain` returns for it; ``"all"``, an `Answer` with all of these; or the name of one of
                `extra_outputs`, float32.
            reject: As for `predict`.
            num_features: As for `explain`.
            num_prototypes: As for `explain`.
            against: As for `explain`.
            maps: As for `explain`.
            timeout_s: Seconds within which its batch must begin, instead of those of `load`.

        Returns:
            A future of the answer, which can be cancelled until its batch begins. Its errors are those of `predict`
            and `DeadlineExceeded`.

        Raises:
            QueueFull: If too many images wait.
            NotAnswered: If the classifier is closed or drains, or its device is lost.
            UsageError: If an argument is out of its range.
        """
        reply = self._replies.named(answer, top_k, reject, num_features, num_prototypes, against, maps)
        (request,) = self._enqueue([image], reply, timeout_s)
        return request

    async def predict_async(
        self, images: Images, top_k: int = 5, *, reject: bool = False, timeout_s: float | None = None
    ) -> list[Predictions]:
        """Classify images like `predict`, in batches with the images of other callers, without blocking the event loop.

        Either all images are accepted or none; more than the queue can hold are sent in pieces, one after another. If
        the task is cancelled or an image fails, the others are cancelled.
        Files are decoded in the background; Pillow images, and arrays of another size than the model's, are scaled
        at once, in the calling thread.

        Raises:
            QueueFull: If there is no room for all images.
            DeadlineExceeded: If a batch did not begin in time.
            InputError, NotAnswered: As `predict`.
        """
        return await self._await_answers(images, self._replies.predictions(top_k, reject), timeout_s)

    async def logits_async(self, images: Images, *, timeout_s: float | None = None) -> NDArray[np.float32]:
        """Return what `logits` returns; see `predict_async`."""
        rows = await self._await_answers(images, logits, timeout_s)
        return np.stack(rows) if rows else self._nothing().logits

    async def embed_async(self, images: Images, *, timeout_s: float | None = None) -> NDArray[np.float32]:
        """Return what `embed` returns; see `predict_async`."""
        rows = await self._await_answers(images, embedding, timeout_s)
        return np.stack(rows) if rows else self._nothing().embedding

    async def outputs_async(
        self, images: Images, *names: str, timeout_s: float | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Return what `outputs` returns; see `predict_async`."""
        extra = self._replies.extra_names(names)
        answers, _ = await self.answers_async(images, outputs=extra, timeout_s=timeout_s)
        return {name: answers.extra[name] for name in extra}

    async def answers_async(
        self,
        images: Images,
        explain: int = 0,
        *,
        maps: bool = False,
        outputs: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> tuple[Answers, list[list[Explanation]]]:
        """Return all that logits and embeddings tell, from one run of the model for each image; see `predict_async`.

        Args:
            images: As for `predict`.
            explain: How many of the best classes of each image to explain; 0 for none.
            maps: As for `explain`.
            outputs: Which of `extra_outputs` the answers have in ``extra``.
            timeout_s: As for `submit`.

        Returns:
            The answers, whose scores, rankings and rejections follow from the same bundle as their logits; and for each
            image the explanations of its best classes, as `explain` returns them.
        """
        extra = self._replies.extra_names(outputs) if outputs else ()
        rows = await self._await_answers(images, self._replies.outputs(extra, explain, maps), timeout_s)
        joined = self._joined([one for one, _ in rows], extra)
        return self._make_answers(joined), [explanations for _, explanations in rows]

    async def explain_async(
        self,
        images: Images,
        top_k: int = 3,
        num_features: int = NUM_FEATURES,
        num_prototypes: int = NUM_PROTOTYPES,
        *,
        against: str | None = None,
        maps: bool = False,
        timeout_s: float | None = None,
    ) -> list[list[Explanation]]:
        """Return what `explain` returns; see `predict_async`."""
        reply = self._replies.explanations(top_k, num_features, num_prototypes, against, maps)
        return await self._await_answers(images, reply, timeout_s)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the logits."""
        return self._manifest.class_names

    @property
    def abilities(self) -> frozenset[str]:
        """What the bundle allows: ``"reject"`` if it has a threshold, ``"explain"``, and ``"maps"`` of explanations."""
        return frozenset({"reject", "explain", "maps"} - self.missing_abilities.keys())

    @property
    def missing_abilities(self) -> Mapping[str, str]:
        """Those of the `abilities` that the bundle lacks, each with the reason and what to do."""
        return self._replies.missing

    @property
    def extra_outputs(self) -> tuple[TensorSpec, ...]:
        """What `outputs` can return, with names and shapes: the outputs of the graph beside logits and embedding."""
        return self._manifest.extra_outputs

    @property
    def info(self) -> dict[str, Any]:
        """Where and how the bundle runs: devices, the reasons for them, threads, versions, classes, limits."""
        first = next(iter(self._replicas)).backend
        return {
            "bundle": str(self._folder),
            "digest": self._digest,
            "version": self._digest[:_VERSION_DIGITS],
            "device": ", ".join(replica.backend.device for replica in self._replicas),
            "reason": "; ".join(dict.fromkeys(replica.reason for replica in self._replicas)),
            "threads": first.threads,
            "backbone": self._manifest.model["backbone"],
            "head": self._manifest.model["head"],
            "precision": self._manifest.precision,
            "class_names": list(self._manifest.class_names),
            "input_shape": list(self._manifest.preprocessing.shape),
            "embedding_shape": list(self._manifest.outputs[1].shape[1:]),
            "outputs": [spec.name for spec in self._manifest.outputs],
            "preprocessing": asdict(self._manifest.preprocessing),
            "max_batch_size": self._queue.max_batch_size,
            "max_queue_delay_ms": self._queue.max_delay_s * 1000,
            "max_queue_size": self._queue.max_queue_size,
            "max_concurrent_calls": self._max_concurrent_calls,
            "timeout_s": self._timeout_s,
            "limits": asdict(self._limits),
            "decoders": self._decoders.threads,
            "batch_sizes": list(first.batch_sizes),
            "reject": None if self._manifest.reject is None else asdict(self._manifest.reject),
            "temperature": self._manifest.temperature,
            "versions": first.versions,
            "details": [replica.backend.details for replica in self._replicas],
        }

    @property
    def health(self) -> Health:
        """Whether it serves, and what it has to do."""
        if self._lifecycle.is_fork:
            return Health(False, self._lifecycle.refusal, 0, 0)
        refusal = self._lifecycle.refusal
        ends = [] if self._batcher is None or refusal else [self._batcher.end]
        reasons = dict.fromkeys([refusal, *map(str, self._replicas.lost), *ends])
        reason = "; ".join(filter(None, reasons))
        return Health(not reason, reason, self._metrics.read().waiting, self._lifecycle.open_requests)

    @property
    def metrics(self) -> MetricsSnapshot:
        """What it has counted since it was loaded; see `tnn_runtime.prometheus` for monitoring systems.

        Raises:
            ClassifierClosed: In a fork of the process that loaded it.
        """
        self._lifecycle.check_process()
        return self._metrics.read()

    @property
    def metrics_by_version(self) -> tuple[MetricsSnapshot, ...]:
        """Its metrics, alone: those of a `Deployment` are several."""
        return (self.metrics,)

    def drain(self, timeout_s: float | None = None) -> bool:
        """Accept nothing new, and wait until all that was accepted is answered.

        Args:
            timeout_s: Seconds to wait at most; by default as long as it takes.

        Returns:
            Whether all is answered.

        Raises:
            ClassifierClosed: In a fork of the process that loaded it.
        """
        self._lifecycle.check_process()
        limit = None if timeout_s is None else seconds(timeout_s, "timeout_s")
        self._lifecycle.stop(self._lifecycle.refusal or _DRAINING)
        return self._lifecycle.wait(limit)

    def close(self) -> None:
        """Release the model and end all threads. Later calls raise `ClassifierClosed`; closing twice is fine.

        Calls that run are answered; images that wait in the queue get `ClassifierClosed`: call `drain` first. In a fork
        of the process that loaded it there is nothing to release, and this does nothing.
        """
        if self._lifecycle.is_fork:
            return
        self._lifecycle.stop(_CLOSED)
        with self._making:
            batcher = self._batcher
        if batcher is not None:
            batcher.close()
        self._lifecycle.wait()
        self._decoders.close()
        self._replicas.close()

    def __repr__(self) -> str:
        """Tell what is loaded and where."""
        return f"<Classifier {self._folder} on {self.info['device']}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and not self._lifecycle.is_fork:
            self.drain()
        self.close()

    def _run(self, images: Images) -> Outputs:
        """Run the model on all images now, as a request of its own."""
        return self._counted(partial(self._outputs, images))

    def _counted(self, work: Callable[[], T]) -> T:
        """Return what ``work`` does, counted as one request from acceptance to answer."""
        self._lifecycle.check_process()
        started = time.monotonic()
        self._metrics.request()
        try:
            self._lifecycle.accept()
            try:
                if self._places is None:
                    found = work()
                else:
                    with self._place(self._places):
                        found = work()
            finally:
                self._lifecycle.answered()
        except Exception as error:
            self._failures.add(error)
            raise
        self._metrics.answered(time.monotonic() - started)
        return found

    @contextmanager
    def _place(self, places: threading.Semaphore) -> Iterator[None]:
        """Wait for a place among the calls that may run at once, and hold it within.

        Raises:
            DeadlineExceeded: If there is none in time.
        """
        if not places.acquire(timeout=self._timeout_s):
            raise DeadlineExceeded(
                f"{self._max_concurrent_calls} calls ran for the {self._timeout_s:g} s that this one could wait; make "
                "fewer at a time, or allow more time"
            )
        try:
            yield
        finally:
            places.release()

    def _outputs(self, images: Images, extra: tuple[str, ...] = ()) -> Outputs:
        """Run the model on all images now."""
        whole = self._joined([self._replicas.run(batch, extra=extra) for batch in self._batches(images)], extra)
        if len(bad := whole.bad_rows):
            raise self._not_finite(bad)
        return whole

    def _with_maps(self, images: Images) -> Iterator[Outputs]:
        """Run the model on one batch of the images after another, with feature maps."""
        done = 0
        for batch in self._batches(images):
            outputs = self._replicas.run(batch, extra=(FEATURE_MAPS,))
            if len(bad := outputs.bad_rows):
                raise self._not_finite(done + bad)
            yield outputs
            done += len(batch)

    def _not_finite(self, bad: NDArray[np.int64]) -> RunError:
        """Count images with values that are no finite numbers, and return the error for the first of them."""
        self._metrics.not_finite(len(bad))
        return not_finite(int(bad[0]))

    def _batches(self, images: Images) -> Iterable[NDArray[np.uint8]]:
        size = self._queue.max_batch_size
        if not self._is_ready(images):
            return self._decoders.batches(list(_container(images)), size)
        if len(images) <= size:
            return (np.ascontiguousarray(images),) if len(images) else ()
        return (np.ascontiguousarray(images[start : start + size]) for start in range(0, len(images), size))

    def _is_ready(self, images: Any) -> TypeGuard[NDArray[np.uint8]]:
        """Whether images ``[N, H, W, C]`` are what the model takes."""
        return isinstance(images, np.ndarray) and images.dtype == _UINT8 and images.shape[1:] == self._shape

    def _joined(self, pieces: list[Outputs], extra: Sequence[str] = ()) -> Outputs:
        """Return the outputs for several batches as those for one."""
        if len(pieces) == 1:
            return pieces[0]
        pieces = [self._nothing(), *pieces]
        return Outputs(
            np.concatenate([one.logits for one in pieces]),
            np.concatenate([one.embedding for one in pieces]),
            {name: np.concatenate([one.extra[name] for one in pieces]) for name in extra},
        )

    def _nothing(self) -> Outputs:
        """Return the outputs for no images."""
        specs = self._manifest.outputs
        empty = {spec.name: np.empty([size or 0 for size in spec.shape], np.float32) for spec in specs}
        return Outputs(empty.pop("logits"), empty.pop("embedding"), empty)

    async def _await_answers(self, images: Images, reply: Reply[T], timeout_s: float | None) -> list[T]:
        """Put images into the queue and wait for the answers to all of them."""
        images, most = _container(images), self._queue.max_queue_size
        if len(images) <= most:
            return await self._await_piece(images, reply, timeout_s)
        answers: list[T] = []
        for start in range(0, len(images), most):
            answers += await self._await_piece(images[start : start + most], reply, timeout_s, first=start)
        return answers

    async def _await_piece(
        self, images: Images, reply: Reply[T], timeout_s: float | None, *, first: int = 0
    ) -> list[T]:
        """Put images into the queue and wait for the answers; those of a later piece wait until there is room."""
        while True:
            try:
                requests = self._enqueue(images, reply, timeout_s)
                break
            except QueueFull:
                if first == 0:
                    raise
            await asyncio.sleep(_LOOK_AGAIN_S)
        try:
            return list(await asyncio.gather(*map(asyncio.wrap_future, requests)))
        except InputError as error:
            if first == 0 and len(requests) == 1:
                raise
            place = next(place for place, request in enumerate(requests) if _failed_with(request, error))
            raise numbered(error, first + place) from None
        finally:
            for request in requests:
                request.cancel()

    def _enqueue(self, images: Images, reply: Reply[Any], timeout_s: float | None) -> list[Request]:
        """Put images into the queue, all or none."""
        self._lifecycle.check_process()
        limit = self._timeout_s if timeout_s is None else seconds(timeout_s, "timeout_s", endless=True)
        link = self._link()
        requests = [Request(reply.make, limit, link, is_slow=reply.is_slow, extra=reply.extra) for _ in images]
        self._metrics.request(len(requests))
        try:
            batcher = self._started_batcher()
            batcher.accept(requests)
        except Exception as error:
            self._failures.add(error, len(requests))
            raise
        for request, image in zip(requests, images, strict=True):
            request._owner = self  # or the answer would come to nobody, where nobody else holds it
            if isinstance(image, np.ndarray) and self._is_ready(image[None]):
                batcher.put(request, image.copy())
                continue
            try:
                request._source = source = self._decoders.taken(image)
                decode = partial(request._decode, self._decoders.decode)
                self._decoders.do(source, partial(batcher.prepare, request, decode))
            except (InputError, NotAnswered) as error:
                request._fail(error)
        return requests

    def _started_batcher(self) -> Batcher:
        with self._making:
            if self._batcher is None:
                self._lifecycle.check()
                self._batcher = Batcher(
                    self._replicas,
                    self._make_answers,
                    self._queue,
                    self._lifecycle,
                    self._metrics,
                    self._failures,
                    self._decoders.do_soon,
                )
                weakref.finalize(self, self._batcher.close)
            return self._batcher

    def _link(self) -> Any:
        """Return a link to the caller's span, if spans are made and there is one."""
        if self._tracer is None:
            return None
        from opentelemetry import trace

        context = trace.get_current_span().get_span_context()
        return trace.Link(context) if context.is_valid else None


def _container(images: Any) -> Any:
    """Return images as they are, after a look at what they came in."""
    if isinstance(images, np.ndarray):
        if images.ndim != 4:
            raise InputError(
                f"got an array of dtype {images.dtype} and shape {list(images.shape)}; expected uint8 [N, H, W, C], or "
                "a list of images"
            )
    elif isinstance(images, str | bytes | bytearray | memoryview) or not isinstance(images, Sequence):
        raise InputError(f"got one {type(images).__name__}; expected a list of images: pass [image]")
    return images


def _failed_with(request: Request, error: Exception) -> bool:
    return request.done() and not request.cancelled() and request.exception() is error
