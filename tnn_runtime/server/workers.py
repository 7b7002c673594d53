"""Several processes that serve the same, and the one that looks after them."""

from __future__ import annotations

import dataclasses
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
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
    def signs(self) -> list[int | Connection]:
        """What shows that it is up, or that it has ended."""
        return [self.process.sentinel, *([] if self.is_up else [self.told])]


class _Crew:
    """The processes, and what becomes of them."""

    def __init__(self, plan: Plan, count: int, folder: Path, is_up: IsUp) -> None:
        self._plan = plan
        self._folder = folder
        self._tell = is_up
        self._is_told = False
        self._ending = False
        self._workers = [_Worker(plan, folder, number) for number in range(count)]
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
        while self._workers:
            ready = wait([sign for worker in self._workers for sign in worker.signs])
            for worker in list(self._workers):
                if not worker.is_up and worker.told in ready:
                    self._hear(worker)
                if worker.process.sentinel in ready:
                    failed |= self._bury(worker)
        if failed:
            raise WorkerFailed("a process that serves did not end well; what it said is above")

    def _hear(self, worker: _Worker) -> None:
        try:
            names = worker.told.recv()
        except EOFError:  # it ends
            worker.process.join()
            return
        worker.is_up = True
        if not self._is_told and all(one.is_up for one in self._workers):
            self._is_told = True
            self._tell(names, self._plan.http, self._plan.grpc)

    def _bury(self, worker: _Worker) -> bool:
        """Take note of a process that has ended, and return whether it ended badly."""
        worker.process.join()
        worker.told.close()
        self._workers.remove(worker)
        code = worker.process.exitcode
        if self._ending:
            return worker.is_up and code != 0
        if not worker.is_up:
            self._pass_on(signal.SIGINT, None)
            return True
        _LOG.error("process %d of the server has ended with %s; another one takes its place", worker.number, code)
        self._workers.append(_Worker(self._plan, self._folder, worker.number))
        if self._ending:  # it was told after the last look
            self._pass_on(signal.SIGTERM, None)
        return False

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._ending |= number != signal.SIGHUP
        for worker in self._workers:
            if worker.process.pid is not None and worker.process.is_alive():
                os.kill(worker.process.pid, number)


def _work(plan: Plan, folder: Path, number: int, told: Connection) -> None:
    """Be one of the processes."""
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
