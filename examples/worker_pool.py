"""Threads that take work from a queue: ``python examples/worker_pool.py BUNDLE FOLDER --workers 8``.

The queue stands for a message broker, each message is the path of an image. The images of all workers gather into
batches. A worker whose image finds no room waits, longer each time, and tries again; a bad image is put aside. On
Ctrl-C or SIGTERM the workers finish what they have and take nothing new: no message is lost, and none is done twice.
"""

from __future__ import annotations

import queue
import random
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from tnn_runtime import (
    Classifier,
    DeadlineExceeded,
    InputError,
    NotAnswered,
    Prediction,
    QueueFull,
    RunError,
    UsageError,
)
from tnn_runtime.console import Parser, positive_int, run
from tnn_runtime.images.folders import find_images

TRY_AGAIN = (QueueFull, DeadlineExceeded, RunError)
ATTEMPTS = 8
FIRST_WAIT_S, LONGEST_WAIT_S = 0.02, 2.0
TIMEOUT_S = 10.0
DRAIN_S = 30.0
LISTEN_S = 1.0
"""Seconds after which a signal is heard that came just before Python began to wait for a thread."""


class WorkerPool:
    """Threads that classify the images whose paths come from a queue, until it is empty or they are stopped.

    Args:
        classifier: A loaded bundle.
        messages: Where paths come from.
        workers: How many threads.
    """

    def __init__(self, classifier: Classifier, messages: queue.SimpleQueue[Path], workers: int) -> None:
        self.done = self.bad = 0
        self.failure: NotAnswered | None = None
        self._classifier = classifier
        self._messages = messages
        self._stop = threading.Event()
        self._counting = threading.Lock()
        self._threads = [threading.Thread(target=self._work, name=f"worker-{n}") for n in range(workers)]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Take nothing new; may be called from a signal handler."""
        self._stop.set()

    def join(self) -> None:
        """Wait until every thread has finished what it had."""
        for thread in self._threads:
            while thread.is_alive():
                thread.join(LISTEN_S)

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                path = self._messages.get_nowait()  # With a broker: wait for a message, with a time limit.
            except queue.Empty:
                return
            try:
                best, *_ = self._classify(path)
            except InputError as error:
                self._tell(f"{path}\tput aside: {error}", bad=True)
            except NotAnswered as error:
                # This process is of no use any more, or has given up: another one gets the message.
                self._messages.put(path)
                self.failure = error
                self.stop()
            else:
                self._tell(f"{path}\t{best.label}\t{best.score:.4f}")  # With a broker: acknowledge the message here.

    def _classify(self, path: Path) -> list[Prediction]:
        wait_s = FIRST_WAIT_S
        for _ in range(ATTEMPTS - 1):
            try:
                return self._classifier.submit(path, top_k=1, timeout_s=TIMEOUT_S).result()
            except TRY_AGAIN:
                # A random share of the wait, so that workers that were refused together do not come back together.
                self._stop.wait(random.uniform(0.5, 1) * wait_s)  # noqa: S311
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
        return self._classifier.submit(path, top_k=1, timeout_s=TIMEOUT_S).result()

    def _tell(self, line: str, *, bad: bool = False) -> None:
        with self._counting:
            self.done += not bad
            self.bad += bad
            print(line, flush=True)


def command(arguments: Sequence[str]) -> None:
    """Run the example."""
    parser = Parser("worker_pool", __doc__ or "")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="bundle folder that tnn-export wrote")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder of images, with subfolders")
    parser.add_argument("--workers", type=positive_int, default=8, help="threads that take work")
    parser.add_argument("--max-queue-size", type=positive_int, default=64, help="images that may wait for their batch")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    options = parser.parse_args(arguments)
    if not options.folder.is_dir():
        raise UsageError(f"{options.folder} is no folder; expected one with images in it")
    messages: queue.SimpleQueue[Path] = queue.SimpleQueue()
    for path in find_images(options.folder):
        messages.put(path)
    if messages.empty():
        raise InputError(f"{options.folder} has no files; expected images")
    with Classifier.load(options.bundle, options.device, max_queue_size=options.max_queue_size) as classifier:
        pool = WorkerPool(classifier, messages, options.workers)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, frame: pool.stop())
        pool.start()
        pool.join()
        classifier.drain(DRAIN_S)
    print(f"{pool.done} classified, {pool.bad} put aside, {messages.qsize()} left in the queue", flush=True)
    if pool.failure is not None:
        raise pool.failure


if __name__ == "__main__":
    sys.exit(run("worker_pool", command))
