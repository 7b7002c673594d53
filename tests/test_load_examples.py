"""The examples that put a classifier under load: what they find, and that they find what is planted."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import FIXTURES
from waiting import until

from tnn_runtime import Classifier, Deployment, InputError, UsageError
from tnn_runtime.answers.results import Answers, Prediction
from tnn_runtime.images.preprocess import Preprocessing
from tnn_runtime.queue.batching import Request

EXAMPLES = Path(__file__).parents[1] / "examples"
BUNDLE = str(FIXTURES / "bundle-v2")


@pytest.fixture
def soak(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(EXAMPLES)
    module = importlib.import_module("soak")
    monkeypatch.setattr(module, "ROUNDS", 12)
    return module


def few(images: int = 1000) -> list[str]:
    """Few images, and memory that caches need not grow by more than: 12 MB for the 20,000 that it is measured on."""
    return [BUNDLE, "--images", str(images), "--tolerance", "600"]


@pytest.mark.slow
def test_every_image_is_answered_once_with_its_own_answer(soak: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    soak.command(few(20_000))
    printed = capsys.readouterr().out
    for outcome in ("answered", "cancelled", "deadline exceeded", "bad image refused", "refused: queue full"):
        assert f"  {outcome}\n" in printed
    assert "WRONG" not in printed
    assert printed.endswith("passed: every image was answered once, with its own answer\n")


@pytest.mark.slow
def test_a_leak_is_found(soak: ModuleType) -> None:
    with pytest.raises(soak.SoakError, match=r"memory grows by \d+ bytes an image at least"):
        soak.command([*few(20_000), "--leak", "2000"])


OTHER = str(FIXTURES / "bundle-v4")


def test_each_image_is_answered_by_the_version_that_accepted_it(
    soak: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    soak.command([*few(), "--tolerance", "1e9", "--reload", OTHER, "--every", "0.1"])
    printed = capsys.readouterr().out
    assert re.search(r"[1-9]\d*  reloads\n", printed)
    assert printed.endswith("passed: every image was answered once, with its own answer\n")


def test_an_answer_of_another_version_is_found(soak: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    submit, first = Deployment.submit, list[Classifier]()

    def misrouted(self: Deployment, *arguments: Any, **options: Any) -> Any:
        if not first:
            first.append(Classifier.load(BUNDLE, "cpu", threads=1))
        if self.current.info["version"] != first[0].info["version"]:
            return first[0].submit(*arguments, **options)
        return submit(self, *arguments, **options)

    monkeypatch.setattr(Deployment, "submit", misrouted)
    with pytest.raises(soak.SoakError, match=r"WRONG: image \d+ got the answer of .*another version"):
        soak.command([*few(), "--reload", OTHER, "--every", "0.1"])
    first[0].close()


@pytest.mark.parametrize("which", range(3))
def test_the_bombs_of_the_soak_would_cost(which: int, soak: ModuleType) -> None:
    content = soak.bombs()[which]
    assert len(content) < 20_000_000
    with pytest.raises(InputError, match=["more than 4 scans", "60000x60000|limit", "run-length"][which]):
        Preprocessing(8, 8, 3, (0.5,) * 3, (0.5,) * 3)(content)


def test_an_answer_of_another_image_is_found(soak: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    predictions = Answers.predictions

    def misrouted(self: Answers, row: int, *arguments: int, **options: int) -> list[Prediction]:
        return predictions(self, max(row - 1, 0), *arguments, **options)

    monkeypatch.setattr(Answers, "predictions", misrouted)
    with pytest.raises(soak.SoakError, match=r"WRONG: image \d+ got the answer of image \d+"):
        soak.command(few())


def test_a_lost_answer_is_found(soak: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    succeed, count = Request._succeed, 0

    def forgetful(self: Request, answers: Answers, row: int) -> None:
        nonlocal count
        count += 1
        if count == 500:
            self.set_exception = lambda error: None  # type: ignore[method-assign]
            late.append((self, answers, row))
        else:
            succeed(self, answers, row)

    late: list[tuple[Request, Answers, int]] = []
    monkeypatch.setattr(soak, "PATIENCE_S", 0)
    monkeypatch.setattr(Request, "_succeed", forgetful)
    original = soak.check

    def check(kind: str, future: Request, *rest: object) -> str:
        until(lambda: future.done() or (late and late[0][0] is future))
        outcome: str = original(kind, future, *rest)
        if not future.done():
            succeed(*late[0])
        return outcome

    monkeypatch.setattr(soak, "check", check)
    with pytest.raises(soak.SoakError, match=r"image was not answered in 0 s"):
        soak.command(few())


def test_the_cost_of_batching(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    program = importlib.import_module("benchmark_serving")
    program.command([BUNDLE, "--blocks", "3", "--seconds", "0.1", "--callers", "8", "--batch", "4"])
    printed = capsys.readouterr().out
    for line in ("throughput, callers / offline: ", "throughput, control / offline: ", "half load, ", "latency p50 "):
        assert line in printed
    assert "in batches of" in printed


def test_threads_that_spin_and_threads_that_sleep(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    program = importlib.import_module("benchmark_threads")
    program.command([BUNDLE, BUNDLE, "--threads", "1", "2", "--calls", "3"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:3] for row in rows] == [
        [threads, idle, calls] for threads in "12" for idle in ("sleep", "spin") for calls in "13"
    ]


@pytest.mark.parametrize(
    ("name", "arguments", "wrong"),
    [
        ("soak", [BUNDLE, "--images", "0"], "--images: got '0'"),
        ("soak", [BUNDLE, "--threads", "-1"], "--threads: got '-1'"),
        ("benchmark_serving", [BUNDLE, "--callers", "0"], "--callers: got '0'"),
        ("benchmark_threads", [BUNDLE, BUNDLE, "--calls", "none"], "--calls: got 'none'"),
    ],
)
def test_numbers_out_of_range_are_refused(
    name: str, arguments: list[str], wrong: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    with pytest.raises(UsageError, match=f"argument {wrong}; expected an integer of at least 1; see {name} --help"):
        importlib.import_module(name).command(arguments)
