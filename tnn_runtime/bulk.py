"""Many files as a stream: each with its answer or with what is wrong with it."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from tnn_runtime.answers.results import Predictions
from tnn_runtime.classifier import Classifier
from tnn_runtime.errors import InputError, QueueFull, UsageError
from tnn_runtime.images.preprocess import source_name

__all__ = ["Answered", "Classified", "answers_for_files", "classify_files"]

T = TypeVar("T")
File = TypeVar("File", bound=Path | bytes)

_LOOK_AGAIN_S = 0.005

_IN_FLIGHT = 256
"""Images that are decoded or classified at the same time: several batches, so that none waits for the disk."""


class Answered(NamedTuple, Generic[File, T]):
    """What became of a file.

    Args:
        path: The file, as it was given.
        answer: The answer; ``None`` if there is an error.
        error: Why there is none; empty if there is one.
    """

    path: File
    answer: T | None
    error: str


class Classified(NamedTuple, Generic[File]):
    """What became of a file.

    Args:
        path: The file, as it was given.
        predictions: As `Classifier.predict` returns them for an image; none if there is an error.
        error: Why the file cannot be used; empty if it can.
    """

    path: File
    predictions: Predictions
    error: str


def classify_files(
    classifier: Classifier, paths: Iterable[File], top_k: int = 5, *, reject: bool = False
) -> Iterator[Classified[File]]:
    """Classify files in batches, and yield what became of each, in their order.

    Only a few hundred are held at a time, however many there are. A file that cannot be used does not stop the others.
    Where the queue is full of the images of others, this waits for room, and it has no deadlines.

    Args:
        classifier: A loaded bundle.
        paths: The files: their paths, or their content.
        top_k: As for `Classifier.predict`.
        reject: As for `Classifier.predict`.

    Raises:
        NotAnswered: If the classifier is closed or drains, its device is lost, or the model fails.
        UsageError: If an argument is out of its range.
    """

    def submit(path: File) -> Future[Predictions]:
        return classifier.submit(path, top_k, reject=reject, timeout_s=math.inf)

    for path, predictions, error in answers_for_files(classifier, paths, submit):
        yield Classified(path, Predictions() if predictions is None else predictions, error)


def answers_for_files(
    classifier: Classifier, paths: Iterable[File], submit: Callable[[File], Future[T]]
) -> Iterator[Answered[File, T]]:
    """Submit files to a classifier, as `classify_files` does, and yield what became of each, in their order.

    Args:
        classifier: A loaded bundle.
        paths: The files: their paths, or their content.
        submit: Submits a file to the classifier, without a deadline.

    Raises:
        NotAnswered, UsageError: As `classify_files`.
    """
    most = min(_IN_FLIGHT, classifier.info["max_queue_size"])
    waiting: deque[tuple[File, Future[T]]] = deque()
    try:
        for path in paths:
            if len(waiting) == most:
                yield _answer(*waiting.popleft())
            while True:
                try:
                    waiting.append((path, submit(path)))
                    break
                except QueueFull:
                    if waiting:
                        yield _answer(*waiting.popleft())
                    else:
                        time.sleep(_LOOK_AGAIN_S)
        while waiting:
            yield _answer(*waiting.popleft())
    finally:
        for _, future in waiting:
            future.cancel()


def _answer(path: File, future: Future[T]) -> Answered[File, T]:
    try:
        return Answered(path, future.result(), "")
    except InputError as error:
        return Answered(path, None, str(error))
    except UsageError as error:
        return Answered(path, None, f"{source_name(path)}: {error}")
