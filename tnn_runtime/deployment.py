"""A classifier whose bundle can be exchanged while it serves."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from tnn_runtime.bundle.manifest import TensorSpec
from tnn_runtime.classifier import Classifier, Health
from tnn_runtime.errors import ClassifierClosed
from tnn_runtime.memory import return_memory
from tnn_runtime.queue.metrics import MetricsSnapshot

__all__ = ["Deployment"]

_LOG = logging.getLogger(__name__)
_VERSIONS_COUNTED = 4

P = ParamSpec("P")
R = TypeVar("R")


def _call(method: Callable[Concatenate[Classifier, P], R]) -> Callable[Concatenate[Deployment, P], R]:
    """Return a method that calls that of the current classifier, and of the next one if this drains meanwhile."""

    @functools.wraps(method)
    def call(self: Deployment, /, *arguments: P.args, **options: P.kwargs) -> R:
        while True:
            current = self.current
            try:
                return method(current, *arguments, **options)
            except ClassifierClosed:
                if current is self.current:
                    raise

    return call


def _call_async(
    method: Callable[Concatenate[Classifier, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate[Deployment, P], Coroutine[Any, Any, R]]:
    """Return what `_call` returns, for a coroutine."""

    @functools.wraps(method)
    async def call(self: Deployment, /, *arguments: P.args, **options: P.kwargs) -> R:
        return await self.run_async(lambda current: method(current, *arguments, **options))

    return call


class Deployment:
    """A `Classifier` that is exchanged by `reload`: each call is answered by one bundle, that which accepted it.

    It has the methods of a classifier. Use it as a context manager, or call `drain` and `close`.

    Args:
        bundle: The bundle folder.
        device: As for `Classifier.load`.
        **options: The other arguments of `Classifier.load`; a reload takes them, too.

    Raises:
        TnnError: As `Classifier.load`.
    """

    def __init__(self, bundle: str | Path, device: Any = "auto", **options: Any) -> None:
        self._options = {"device": device, **options}
        self._bundle = bundle
        self._current = Classifier.load(bundle, **self._options)
        self._draining: Classifier | None = None
        self._counted: dict[str, MetricsSnapshot] = {}
        self._counting = threading.Lock()
        self._reloading = threading.Lock()
        self._is_closed = False

    predict = _call(Classifier.predict)
    logits = _call(Classifier.logits)
    embed = _call(Classifier.embed)
    outputs = _call(Classifier.outputs)
    explain = _call(Classifier.explain)
    exemplars = _call(Classifier.exemplars)
    reject_scores = _call(Classifier.reject_scores)
    submit = _call(Classifier.submit)
    predict_async = _call_async(Classifier.predict_async)
    logits_async = _call_async(Classifier.logits_async)
    embed_async = _call_async(Classifier.embed_async)
    outputs_async = _call_async(Classifier.outputs_async)
    answers_async = _call_async(Classifier.answers_async)
    explain_async = _call_async(Classifier.explain_async)

    async def run_async(self, work: Callable[[Classifier], Coroutine[Any, Any, R]]) -> R:
        """Return what a coroutine makes of the current classifier; of the next one if this drains meanwhile.

        Args:
            work: Looks at the classifier that it gets, and calls one of its methods.
        """
        while True:
            current = self.current
            try:
                return await work(current)
            except ClassifierClosed:
                if current is self.current:
                    raise

    @property
    def current(self) -> Classifier:
        """The classifier that takes new requests."""
        return self._current

    @property
    def class_names(self) -> tuple[str, ...]:
        """As `Classifier.class_names`, of the current one."""
        return self._current.class_names

    @property
    def abilities(self) -> frozenset[str]:
        """As `Classifier.abilities`, of the current one."""
        return self._current.abilities

    @property
    def missing_abilities(self) -> Mapping[str, str]:
        """As `Classifier.missing_abilities`, of the current one."""
        return self._current.missing_abilities

    @property
    def extra_outputs(self) -> tuple[TensorSpec, ...]:
        """As `Classifier.extra_outputs`, of the current one."""
        return self._current.extra_outputs

    @property
    def info(self) -> dict[str, Any]:
        """As `Classifier.info`, of the current one; ``info["digest"]`` tells which bundle it is."""
        return self._current.info

    @property
    def health(self) -> Health:
        """As `Classifier.health`, of the current one."""
        return self._current.health

    @property
    def metrics(self) -> MetricsSnapshot:
        """As `Classifier.metrics`, of the current one, which has counted from 0 since it was loaded."""
        return self._current.metrics

    @property
    def metrics_by_version(self) -> tuple[MetricsSnapshot, ...]:
        """What each of the last few versions of the bundle has counted in all, the current one last."""
        with self._counting:
            counted = dict(self._counted)
            for one in (self._draining, self._current):
                if one is not None:
                    _count(counted, one.metrics)
        return tuple(counted.values())

    def reload(self, bundle: str | Path | None = None, *, timeout_s: float | None = None) -> bool:
        """Load a bundle beside the current one, check it, and let it take all new requests; then close the old one.

        If the new bundle cannot be loaded, the old one serves on. What the old one has accepted it answers.

        Args:
            bundle: The bundle folder; ``None`` for that of before, which may have been replaced.
            timeout_s: Seconds to wait for the answers of the old one, at most; by default as long as it takes. What is
                not answered by then gets `ClassifierClosed`.

        Returns:
            Whether the old one has answered all.

        Raises:
            TnnError: As `Classifier.load`.
            ClassifierClosed: If this deployment is closed.
        """
        with self._reloading:
            old = self._current
            if self._is_closed:
                raise ClassifierClosed("this deployment is closed; make another one")
            bundle = self._bundle if bundle is None else bundle
            new = Classifier.load(bundle, **self._options)
            with self._counting:
                self._bundle, self._current, self._draining = bundle, new, old
            _LOG.info("%s: version %s serves in place of %s", bundle, new.info["version"], old.info["version"])
            is_answered = old.drain(timeout_s)
            old.close()
            with self._counting:
                self._draining = None
                _count(self._counted, old.metrics)
                for version in list(self._counted)[:-_VERSIONS_COUNTED]:
                    del self._counted[version]
            del old
            return_memory()
        return is_answered

    def drain(self, timeout_s: float | None = None) -> bool:
        """As `Classifier.drain`, of the current one."""
        return self._current.drain(timeout_s)

    def close(self) -> None:
        """As `Classifier.close`, of the current one."""
        with self._reloading:
            self._is_closed = True
            self._current.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.drain()
        self.close()


def _count(counted: dict[str, MetricsSnapshot], found: MetricsSnapshot) -> None:
    """Add what a classifier has counted to that of others of its version, and move the version to the end."""
    before = counted.pop(found.version, None)
    counted[found.version] = found if before is None else before + found
