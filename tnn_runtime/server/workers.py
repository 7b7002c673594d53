"""Several processes that serve the same, and the one that looks after them."""

from __future__ import annotations

import dataclasses
import logging
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType

from tnn_runtime import console
from tnn_runtime.errors import TnnError
from tnn_runtime.server.plan import IsUp, Plan, run
from tnn_runtime.server.siblings import Siblings

__all__ = ["WorkerFailed", "supervise"]

_LOG = logging.getLogger(__name__)
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_LONGEST_PAUSE_S = 30.0
_GRACE_S = 15.0
"""How much longer than the drain a process may take to end."""

_CONTEXT = multiprocessing.get_context("spawn")


class WorkerFailed(TnnError):
    """A process that should serve does not."""

    code = "worker_failed"


def supervise(plan: Plan, count: int, is_up: IsUp) -> None:
    """Serve in several processes, each of which loads the bundles, until this one is told to end.

    They share the addresses: the system deals the connections out. One that dies is replaced. Signals are passed on.

    Args:
        plan: What to serve.
        count: How many processes.
        is_up: Called once all serve, with what the models are called and the addresses.

    Raises:
        UsageError: If an address cannot be had.
        WorkerFailed: If one of them does not start, or does not end well.
    """
    with ExitStack() as stack:
        for address in filter(None, (plan.http, plan.grpc)):
            address.bind().close()
        http = stack.enter_context(plan.http.bind(shared=True))
        plan = dataclasses.replace(plan, http=plan.http.at(http))
        if plan.grpc is not None:
            plan = dataclasses.replace(plan, grpc=plan.grpc.at(stack.enter_context(plan.grpc.bind(shared=True))))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tnn-")))
        stack.enter_context(_Crew(plan, count, folder, is_up)).watch()


class _Worker:
    def __init__(self, plan: Plan, folder: Path, number: int) -> None:
        self.number = number
        self.told, theirs = _CONTEXT.Pipe(duplex=False)
        self.process: SpawnProcess = _CONTEXT.Process(
            target=_work, args=(plan, folder, number, theirs), name=f"tnn-worker-{number}"
        )
        self.process.start()
        theirs.close()
        self.is_up = False

    @property
    def sentinels(self) -> list[int | Connection]:
        """What is ready once it is up, or has ended."""
        return [self.process.sentinel, *([] if self.is_up else [self.told])]


class _Crew:
    """The processes, and what becomes of them."""

    def __init__(self, plan: Plan, count: int, folder: Path, is_up: IsUp) -> None:
        self._plan = plan
        self._folder = folder
        self._tell = is_up
        self._is_told = False
        self._kill_at = math.inf
        self._workers = [_Worker(plan, folder, number) for number in range(count)]
        self._missing: dict[int, float] = {}
        self._failures: Counter[int] = Counter()
        self._before = {number: signal.signal(number, self._pass_on) for number in _SIGNALS}

    def __enter__(self) -> _Crew:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers:
            worker.process.kill()
            worker.process.join()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def watch(self) -> None:
        """Look after the processes until all have ended."""
        failed = False
        while self._workers or self._missing:
            sentinels = [sentinel for worker in self._workers for sentinel in worker.sentinels]
            due = min([self._kill_at, *self._missing.values()])
            ready = wait(sentinels, None if due == math.inf else max(0.0, due - time.monotonic()))
            for worker in list(self._workers):
                if not worker.is_up and worker.told in ready:
                    self._hear(worker)
                if worker.process.sentinel in ready:
                    failed |= self._bury(worker)
            self._replace()
        if failed:
            raise WorkerFailed("a process of the server failed; its message is above")

    @property
    def _is_ending(self) -> bool:
        return self._kill_at < math.inf

    def _hear(self, worker: _Worker) -> None:
        try:
            names = worker.told.recv()
        except EOFError:  # it ends
            worker.process.join()
            return
        worker.is_up = True
        self._failures.pop(worker.number, None)
        if not self._is_told and all(one.is_up for one in self._workers):
            self._is_told = True
            self._tell(names, self._plan.http, self._plan.grpc)

    def _bury(self, worker: _Worker) -> bool:
        """Take note of a process that has ended, and return whether the server ends badly for that."""
        worker.process.join()
        worker.told.close()
        self._workers.remove(worker)
        code = worker.process.exitcode
        if self._is_ending:
            return worker.is_up and code != 0
        if not self._is_told:
            self._pass_on(signal.SIGINT, None)
            return True
        self._miss(worker.number, f"ended with {code}", 0 if worker.is_up else 1)
        return False

    def _miss(self, number: int, why: str, failures: int) -> None:
        self._failures[number] += failures
        pause_s = min(2.0 ** self._failures[number] - 1, _LONGEST_PAUSE_S)
        _LOG.error("process %d of the server %s; another one takes its place in %g s", number, why, pause_s)
        self._missing[number] = time.monotonic() + pause_s

    def _replace(self) -> None:
        """Start the processes whose turn it is; end those that do not end."""
        now = time.monotonic()
        if self._is_ending:
            self._missing.clear()
        if now >= self._kill_at:
            for worker in self._workers:
                worker.process.kill()
        for number in [number for number, due in self._missing.items() if due <= now]:
            del self._missing[number]
            try:
                self._workers.append(_Worker(self._plan, self._folder, number))
            except OSError as error:
                self._miss(number, f"cannot start ({error})", 1)
        if self._is_ending:  # those that have started since
            self._signal(signal.SIGTERM, [worker for worker in self._workers if not worker.is_up])

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self._signal(number, [worker for worker in self._workers if worker.is_up])
            return
        if not self._is_ending:
            options = self._plan.options
            self._kill_at = time.monotonic() + options.ready_delay_s + options.drain_s + _GRACE_S
        self._signal(number, self._workers)

    def _signal(self, number: int, workers: Iterable[_Worker]) -> None:
        for worker in workers:
            if worker.process.pid is not None and worker.process.is_alive():
                os.kill(worker.process.pid, number)


def _work(plan: Plan, folder: Path, number: int, told: Connection) -> None:
    """Be one of the processes."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    os.setsid()  # a signal of the terminal is for the process that looks after this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(console.run("tnn-runtime", partial(_serve, plan, folder, number, told), [], extra="serve"))


def _serve(plan: Plan, folder: Path, number: int, told: Connection, words: Sequence[str]) -> None:
    with console.logs("tnn-runtime"):
        run(plan, lambda names, http, grpc: told.send(names), Siblings(folder, number))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
