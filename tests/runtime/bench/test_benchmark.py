from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from PIL import Image
from scipy import stats
from waiting import FOREVER, Clock, until

from tnn_export import export_bundle
from tnn_runtime import ArtifactError, SelfCheckError, UsageError, errors
from tnn_runtime.__main__ import main
from tnn_runtime.bench import (
    BenchmarkError,
    Estimate,
    Job,
    Report,
    compare_bundles,
    difference_us,
    interleave,
    latency,
    machine,
    no_slower,
    ratio,
    run_job,
)
from tnn_runtime.bench import comparison as comparison_module
from tnn_runtime.bench import environment as environment_module
from tnn_runtime.bench import intervals as intervals_module
from tnn_runtime.bench import memory as memory_module
from tnn_runtime.bench import timing as timing_module
from tnn_runtime.bench.errors import error_from_json, error_to_json
from tnn_runtime.bench.report import table, write_report
from tnn_runtime.bench.timing import by_wall_clock, repeats_for, take_turns, warm_up
from tnn_train import ModelConfig, TrainConfig, load_data, train

SCHEMA = json.loads((files("tnn_runtime") / "bench" / "schemas" / "bench-1.json").read_text())
JOB = Job({"device": "cpu"}, threads=1, batches=[2], blocks=3, seed=0)


class Machine:
    """Draws the samples of two programs: each process and block has its own luck, which hits both, or one alone."""

    def __init__(self, seed: int, *, between: float = 0.01, processes: int = 5) -> None:
        self.random = np.random.default_rng(seed)
        self.between, self.processes = between, processes

    def run(self, true_ratio: float, blocks: int = 12, calls: int = 5) -> tuple[list, list]:
        draw = self.random.normal
        shape = (self.processes, blocks, 1)
        drift = np.cumsum(draw(0, 0.02, shape), axis=1)
        luck = draw(0, self.between, (self.processes, 1, 1))
        a, b = (np.exp(drift + draw(0, 0.005, shape) + draw(0, 0.01, (*shape[:2], calls))) / 1000 for _ in range(2))
        return (true_ratio * np.exp(luck) * a).tolist(), b.tolist()


class TestIntervals:
    @pytest.mark.parametrize(("between", "processes"), [(0.0, 5), (0.02, 5), (0.02, 3), (0.02, 8)])
    def test_they_contain_the_truth_as_often_as_they_say(self, between: float, processes: int) -> None:
        machine = Machine(1, between=between, processes=processes)
        found = [ratio(*machine.run(1.05, blocks=8, calls=1), machine.random) for _ in range(200)]
        assert np.mean([one.low <= 1.05 <= one.high for one in found]) >= 0.92
        assert np.mean([one.upper95 > 1.05 for one in found]) >= 0.92
        # And are not just wide: a t interval of what each process found, with the true spread, is hardly narrower.
        exact = 2 * stats.t.ppf(0.975, processes - 1) * np.hypot(between, 0.007) / np.sqrt(processes)
        assert np.mean([one.high - one.low for one in found]) < 1.3 * exact

    def test_a_planted_slowdown_is_found(self) -> None:
        machine = Machine(2, between=0.005)
        for _ in range(20):
            a, b = machine.run(1.05)
            found = ratio(a, b, machine.random)
            assert found.value == pytest.approx(1.05, abs=0.02)
            assert found.low > 1.02
            assert difference_us(a, b, machine.random).low > 0

    def test_equal_ones_are_not_called_different(self) -> None:
        machine = Machine(3)
        found = [ratio(*machine.run(1.0), machine.random) for _ in range(80)]
        assert sum(not one.low <= 1 <= one.high for one in found) <= 7

    def test_what_hits_both_cancels(self) -> None:
        machine = Machine(4, between=0)
        a, b = machine.run(1.03)
        slow = np.random.default_rng(0).choice([1.0, 1.5], (5, 12, 1))
        found = ratio((slow * a).tolist(), (slow * b).tolist(), np.random.default_rng(0))
        assert asdict(found) == pytest.approx(asdict(ratio(a, b, np.random.default_rng(0))))
        assert found.high - found.low < 0.03

    def test_few_calls_or_processes_give_wide_intervals(self) -> None:
        a, b = Machine(5, processes=8).run(1.0)
        found = [ratio(a[:count], b[:count], np.random.default_rng(0)) for count in (2, 3, 8)]
        widths = [one.high - one.low for one in found]
        assert widths[0] > 2 * widths[1] > 2 * widths[2] > 0
        alone = ratio([[[2.0]]], [[[1.0]]], np.random.default_rng(0))
        assert alone.value == pytest.approx(2)

    def test_percentiles_are_those_of_all_calls(self) -> None:
        machine = Machine(6, between=0.01)
        seconds, _ = machine.run(1.0, calls=40)
        seconds[0][0] = seconds[0][0][:7]
        calls = np.concatenate([block for process in seconds for block in process])
        found = latency(seconds, 8, machine.random)
        for part, percentile in ((found.p50, 50), (found.p90, 90), (found.p99, 99)):
            assert part.value == pytest.approx(1e3 * np.percentile(calls, percentile), rel=1e-3)
            assert part.low < part.value < part.high
        assert found.calls == len(calls) == 5 * 12 * 40 - 33
        assert found.images_per_second == pytest.approx(8 / calls.mean())

    def test_percentile_intervals_contain_the_truth(self) -> None:
        random = np.random.default_rng(7)
        hits = []
        for _ in range(60):
            luck = random.normal(0, 0.03, (5, 1, 1))
            seconds = np.exp(luck + random.normal(0, 0.05, (5, 8, 10))) / 1000
            found = latency(seconds.tolist(), 1, random)
            hits.append(found.p50.low <= 1 <= found.p50.high)
        assert np.mean(hits) >= 0.88

    @pytest.mark.parametrize("freedom", [1, 2, 4, 9, 30])
    def test_students_quantiles(self, freedom: int) -> None:
        for level in (0.025, 0.95, 0.975):
            found = intervals_module._student_quantile(level, freedom)
            assert found == pytest.approx(stats.t.ppf(level, freedom), rel=1e-3)


def estimate(low: float, high: float, upper95: float | None = None) -> Estimate:
    return Estimate((low + high) / 2, low, high, high if upper95 is None else upper95)


QUIET = estimate(0.995, 1.005)


@pytest.mark.parametrize(
    ("found", "control", "processes", "outcome", "text"),
    [
        (estimate(0.99, 1.015), QUIET, 5, "shown", "A is no slower than B by more than 2%: the ratio is below 1.015"),
        (estimate(0.5, 0.6), QUIET, 3, "shown", "A is no slower than B by more than 2%"),
        (estimate(1.001, 1.021, 1.019), QUIET, 5, "shown", "the ratio is below 1.019 with 95% confidence"),
        (estimate(0.99, 1.03, 1.02), QUIET, 5, "not shown", "the ratio may be up to 1.020"),
        (estimate(1.04, 1.06), QUIET, 5, "not shown", "may be up to 1.060; A is slower, by 4.0% at least"),
        (estimate(0.9, 0.95), QUIET, 2, "not shown", "2 of at least 3 processes"),
        (
            estimate(0.99, 1.0),
            estimate(0.979, 1.01),
            5,
            "too noisy",
            "0.979 to 1.010, reaches beyond 1 by more",
        ),
        (
            estimate(0.99, 1.0),
            estimate(0.99, 1.021),
            5,
            "too noisy",
            "1.021, reaches beyond 1 by more than 2%",
        ),
        (estimate(0.99, 1.0), estimate(0.981, 1.019), 5, "shown", "the ratio is below 1.000"),
        (estimate(0.99, 1.0), estimate(1.003, 1.01), 5, "too noisy", "1.003 to 1.010, does not contain 1"),
        (estimate(1.4, 1.5), estimate(0.9, 1.1), 5, "too noisy", "too noisy to tell 2%"),
    ],
)
def test_what_is_claimed(found: Estimate, control: Estimate, processes: int, outcome: str, text: str) -> None:
    claim = no_slower(found, control, 0.02, processes)
    assert (claim.outcome, claim.margin) == (outcome, 0.02)
    assert text in claim.text


def test_equivalence_is_claimed_wrongly_in_one_case_of_twenty_at_most() -> None:
    machine = Machine(8, between=0.004)
    at_the_margin = [no_slower(ratio(*machine.run(1.02), machine.random), QUIET, 0.02, 5) for _ in range(80)]
    assert np.mean([claim.outcome == "shown" for claim in at_the_margin]) <= 0.09
    equal = [no_slower(ratio(*machine.run(1.0), machine.random), QUIET, 0.02, 5) for _ in range(20)]
    assert np.mean([claim.outcome == "shown" for claim in equal]) >= 0.9


class Time(Clock):
    """A clock that only the calls under test move on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(monkeypatch, timing_module)

    def taking(self, seconds: Callable[[int], float]) -> Callable[[object], None]:
        count = iter(range(1_000_000))

        def call(value: object) -> None:
            self.now += seconds(next(count))

        return call


class TestTiming:
    def test_the_warm_up_ends_when_three_windows_agree(self, monkeypatch: pytest.MonkeyPatch) -> None:
        time = Time(monkeypatch)
        warmed = warm_up(time.taking(lambda count: 0.1 if count > 5 else 1 / (count + 1)), [None])
        assert (warmed.stable, warmed.calls, warmed.median) == (True, 9, pytest.approx(0.1))
        fast = warm_up(time.taking(lambda count: 0.001), [None])
        assert fast.stable
        assert fast.calls == pytest.approx(3 * 50, abs=3)

    def test_a_warm_up_that_never_becomes_stable_ends_and_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        time = Time(monkeypatch)
        warmed = warm_up(time.taking(lambda count: 0.06 + 0.06 * (count % 2)), [None])
        assert not warmed.stable
        assert 5 < warmed.seconds < 5.2
        slow = warm_up(time.taking(lambda count: 10.0 + count % 2), [None])
        assert (slow.stable, slow.calls) == (False, 6)

    @pytest.mark.parametrize(("seconds", "repeats"), [(3.0, 1), (0.02, 5), (1e-4, 50)])
    def test_the_slowest_tells_how_long_a_turn_is(self, seconds: float, repeats: int) -> None:
        warm_ups = {name: SimpleNamespace(median=value) for name, value in (("a", seconds), ("b", seconds / 9))}
        assert repeats_for(warm_ups) == repeats

    def test_turns_are_interleaved_in_changing_order_on_the_same_distinct_inputs(self) -> None:
        seen: list[tuple[str, int]] = []
        calls = {name: lambda value, name=name: seen.append((name, value)) for name in "abc"}
        rounds: list[int] = []
        checked: list[tuple[str, int, object]] = []
        samples = take_turns(
            by_wall_clock(calls),
            list(range(4)),
            6,
            3,
            np.random.default_rng(0),
            after_block=lambda: rounds.append(len(seen)),
            check=lambda *found: checked.append(found),
        )
        assert rounds == [9, 18, 27, 36, 45, 54]
        turns = [seen[start : start + 3] for start in range(0, 54, 3)]
        orders = ["".join(turn[0][0] for turn in turns[start : start + 3]) for start in range(0, 18, 3)]
        assert all(sorted(order) == ["a", "b", "c"] for order in orders)
        assert len(set(orders)) > 1
        for block in range(6):
            inputs = [[value for _, value in turn] for turn in turns[3 * block : 3 * block + 3]]
            assert inputs[0] == inputs[1] == inputs[2] == [(3 * block + turn) % 4 for turn in range(3)]
        assert [found[:2] for found in checked] == seen
        assert {name: [len(turn) for turn in turns] for name, turns in samples.items()} == dict.fromkeys("abc", [3] * 6)

    def test_samples_are_the_seconds_of_calls(self, monkeypatch: pytest.MonkeyPatch) -> None:
        time = Time(monkeypatch)
        calls = {"a": time.taking(lambda count: 0.05), "b": time.taking(lambda count: 0.025)}
        samples = interleave(calls, [None], 4, np.random.default_rng(0))
        assert np.array(samples["a"]) == pytest.approx(np.full((4, 2), 0.05))
        assert np.array(samples["b"]) == pytest.approx(np.full((4, 2), 0.025))


def test_bundles_are_compared_in_fresh_processes_with_a_control(bundles: dict[str, Path]) -> None:
    rounds: list[int] = []
    report = compare_bundles(
        bundles["tversky"],
        bundles["linear"],
        (1, 4),
        threads=(1,),
        processes=3,
        blocks=4,
        seed=1,
        progress=lambda: rounds.append(1),
    )
    assert len(rounds) == 3 * 2 * 4
    assert [(c.threads, c.batch) for c in report.comparisons] == [(1, 1), (1, 4)]
    for comparison in report.comparisons:
        samples = comparison.samples_ms
        assert set(samples) == {"a", "b", "control"}
        assert {(len(processes), *map(len, processes)) for processes in samples.values()} == {(3, 4, 4, 4)}
        everything = np.concatenate([block for process in samples["a"] for block in process])
        assert comparison.a.p50.value == pytest.approx(np.exp(np.median(np.log(everything))))
        for found in (comparison.ratio, comparison.control, comparison.difference_us, comparison.b.p99):
            assert found.low <= found.value <= found.high
        for memory in (comparison.a_memory, comparison.b_memory):
            assert memory is not None
            assert 0 < memory.resident_mib < 500
            assert memory.device_mib is None
    assert len(report.runs) == 3
    assert len({run["seed"] for run in report.runs}) == 3
    assert len({tuple(run["load_order"]) for run in report.runs}) > 1
    assert all(sorted(run["load_order"]) == ["a", "b", "control"] for run in report.runs)
    assert all(found["distinct_inputs"] >= 3 for run in report.runs for found in run["batches"])


def test_the_command_prints_tables_and_writes_json_and_plots(
    bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench", str(bundles["tversky"]), str(bundles["linear"]), "--batch", "1", "2", "--threads", "1"]
    options = ["--processes", "1", "--blocks", "3", "--margin", "0.05"]
    outputs = ["--json", str(tmp_path / "bench.json"), "--plots", str(tmp_path / "plots")]
    assert main([*arguments, *options, *outputs]) == 0
    printed = capsys.readouterr().out
    content = json.loads((tmp_path / "bench.json").read_text())
    assert [error.message for error in Draft202012Validator(SCHEMA).iter_errors(content)] == []
    for comparison in content["comparisons"]:
        found, place = comparison["ratio"], f"{comparison['threads']:7}  {comparison['batch']:5}"
        assert f"{place}  {found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})" in printed
        assert comparison["claim"]["text"] in printed
        assert comparison["claim"]["outcome"] == "not shown"
    assert "no slower by 5%?" in printed
    for name in ("latency.png", "ratio.png"):
        with Image.open(tmp_path / "plots" / name) as picture:
            picture.load()
            assert min(picture.size) > 300
            assert picture.convert("L").histogram().count(0) < 200
        assert f"wrote {tmp_path / 'plots' / name}" in printed


def test_plots_without_matplotlib_are_refused_before_anything_is_measured(
    bundles: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    bundle = str(bundles["linear"])
    assert main(["bench", bundle, bundle, "--plots", str(tmp_path / "plots")]) == 1
    captured = capsys.readouterr()
    expected = "matplotlib is not installed, which --plots needs; run: pip install 'matplotlib<4,>=3.9'"
    assert (captured.out, captured.err) == ("", f"tnn-runtime: error: {expected}\n")
    assert not (tmp_path / "plots").exists()


CLOCK = """
from types import SimpleNamespace
from tnn_runtime.bench import timing, worker

now = 0.0
timing.time = worker.time = SimpleNamespace(perf_counter=lambda: now)

def take(seconds):
    global now
    now += seconds
"""
"""Gives a program a clock that only its contenders move on."""


def program(folder: Path, contender: str, alike: str = "()") -> list[str]:
    """Write a program that offers a contender ``good``, and one called ``bad`` that is given as source."""
    path = folder / "contenders.py"
    path.write_text(f"""{CLOCK}
import os, signal, sys
from tnn_runtime.bench import BenchmarkError, Offer, Opened, serve
from tnn_runtime import SelfCheckError

count = 0

def good(images):
    take(0.002)
    return images[:, 0, 0] * 1.0

{contender}

def offer(job):
    return Offer({{"good": lambda: Opened(good), "bad": lambda: Opened(bad)}}, (4, 4, 3), alike={alike})

sys.exit(serve(offer))
""")
    return [str(path)]


class TestContenders:
    def test_they_may_be_any_program_and_their_libraries_may_print(self, tmp_path: Path) -> None:
        words = program(tmp_path, 'def bad(images):\n    print("noise")\n    return good(images)', '("good", "bad")')
        result = run_job(JOB, words)
        assert sorted(result["load_order"]) == ["bad", "good"]
        (timed,) = result["batches"]
        assert {name: len(blocks) for name, blocks in timed["seconds"].items()} == {"good": 3, "bad": 3}

    @pytest.mark.parametrize("change", ["+ 1", "* float('nan')", "[:1]"])
    def test_outputs_that_change_while_they_are_timed_are_caught(self, change: str, tmp_path: Path) -> None:
        changing = f"""
def bad(images):
    global count
    count += 1
    return good(images) {change} if count > 400 else good(images)
"""
        job = Job({}, threads=1, batches=[2], blocks=1000, seed=0)
        rounds: list[int] = []
        with pytest.raises(BenchmarkError, match="bad gives other logits at batch 2 while it is timed than before"):
            run_job(job, program(tmp_path, changing), lambda: rounds.append(1))
        assert rounds

    def test_contenders_that_do_not_agree_are_caught_before_they_are_timed(self, tmp_path: Path) -> None:
        words = program(tmp_path, "def bad(images):\n    return good(images) * 1.01", '("good", "bad")')
        with pytest.raises(BenchmarkError, match="bad gives other logits than good at batch 2"):
            run_job(JOB, words)

    @pytest.mark.parametrize(
        ("end", "reason"),
        [
            ("os.kill(os.getpid(), signal.SIGSEGV)", r"it died of SIGSEGV"),
            ("os._exit(3)", "exit code 3"),
            ('raise ValueError("no such thing")', "ValueError: no such thing"),
        ],
    )
    def test_a_process_that_dies_is_one_line(self, end: str, reason: str, tmp_path: Path) -> None:
        expected = rf"latency with 1 threads ended early \({reason}\); expected a result"
        with pytest.raises(BenchmarkError, match=expected) as caught:
            run_job(JOB, program(tmp_path, f"def bad(images):\n    {end}"))
        assert "\n" not in str(caught.value)

    def test_a_process_that_does_not_even_start_is_one_line(self, tmp_path: Path) -> None:
        with pytest.raises(BenchmarkError, match="No such file or directory"):
            run_job(JOB, [str(tmp_path / "gone.py")])

    def test_one_that_ends_before_it_has_heard_of_its_job_is_one_line(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Ended(subprocess.Popen):
            def __enter__(self) -> subprocess.Popen:
                self.wait()
                return super().__enter__()

        monkeypatch.setattr(subprocess, "Popen", Ended)
        with pytest.raises(BenchmarkError, match="No such file or directory"):
            run_job(JOB, [str(tmp_path / "gone.py")])

    def test_errors_keep_their_class(self, tmp_path: Path) -> None:
        with pytest.raises(SelfCheckError, match="^wrong$"):
            run_job(JOB, program(tmp_path, 'def bad(images):\n    raise SelfCheckError("wrong")'))

    def test_an_error_of_the_other_program_is_of_the_nearest_class_that_is_known(self, tmp_path: Path) -> None:
        own = """
class Own(SelfCheckError):
    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")

def bad(images):
    error = Own("this", "that")
    error.add_note("a note")
    raise error
"""
        with pytest.raises(SelfCheckError) as caught:
            run_job(JOB, program(tmp_path, own))
        assert type(caught.value) is SelfCheckError
        assert str(caught.value) == "this and that"
        assert caught.value.__notes__ == ["a note"]

    def test_every_public_error_travels(self) -> None:
        for kind in (BenchmarkError, *(getattr(errors, name) for name in errors.__all__)):
            error = error_from_json(json.loads(json.dumps(error_to_json(kind("text")))))
            assert type(error) is kind
            assert str(error) == "text"


TIMED = f"""{CLOCK}
import contextlib, sys
from tnn_runtime import ProviderUnavailable
from tnn_runtime.bench import Offer, Opened, serve

SPEED = {{"a": 3e-3, "b": 2e-3, "control": 2e-3}}

def logits(images):
    take(0.005)
    return images[:, 0, 0] * 1.0

def timer(name):
    @contextlib.contextmanager
    def opened():
        FIRST
        yield lambda images: (SPEED[name], logits(images) ANSWER)
    return opened

def offer(job):
    about = {{"device": "cuda:0", "versions": {{"fake": "1"}}}}
    openers = {{name: lambda name=name: Opened(logits, about, timer(name)) for name in SPEED}}
    return Offer(openers, tuple(job.what["shape"]), alike=("b", "control"))

sys.exit(serve(offer))
"""


class TestDeviceTime:
    @pytest.fixture
    def compare(
        self, tmp_path: Path, bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
    ) -> Callable[..., Report]:
        def compare(first: str = "pass", answer: str = "") -> Report:
            path = tmp_path / "timed.py"
            path.write_text(TIMED.replace("FIRST", first).replace("ANSWER", answer))
            monkeypatch.setattr(comparison_module, "run_job", partial(run_job, program=[str(path)]))
            return compare_bundles(bundles["tversky"], bundles["linear"], (1, 2), processes=2, blocks=3, memory=False)

        return compare

    def test_it_stands_beside_the_time_of_the_wall(self, compare: Callable[..., Report], tmp_path: Path) -> None:
        report = compare()
        for comparison in report.comparisons:
            told = comparison.device_time
            assert told is not None
            assert told.a.p50.value == pytest.approx(3)
            assert told.ratio.value == pytest.approx(1.5)
            assert told.control.value == pytest.approx(1)
            for ours, theirs in zip(told.samples_ms["a"], comparison.samples_ms["a"], strict=True):
                assert np.shape(ours) == np.shape(theirs)
            assert comparison.ratio.value == pytest.approx(1)
        printed = table(report)
        assert len(re.findall(r"3\.000 \(-\) +2\.000 \(-\) +1\.500 \(-\)", printed)) == 2
        assert "was not taken" not in printed
        write_report(report, tmp_path / "bench.json")
        content = json.loads((tmp_path / "bench.json").read_text())
        assert [error.message for error in Draft202012Validator(SCHEMA).iter_errors(content)] == []

    def test_why_it_is_missing_is_told(self, compare: Callable[..., Report], tmp_path: Path) -> None:
        report = compare('raise ProviderUnavailable("no clock today")')
        assert {comparison.device_time for comparison in report.comparisons} == {None}
        assert table(report).endswith("the time of the GPU alone was not taken: no clock today")
        write_report(report, tmp_path / "bench.json")
        content = json.loads((tmp_path / "bench.json").read_text())
        assert [error.message for error in Draft202012Validator(SCHEMA).iter_errors(content)] == []

    def test_its_outputs_are_checked(self, compare: Callable[..., Report]) -> None:
        with pytest.raises(BenchmarkError, match="gives other logits at batch . while it is timed than before"):
            compare(answer="+ 1")


def children(pid: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(status.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found.append(int(status.parent.name))
    return found


def has_loaded(pid: int, library: str) -> bool:
    try:
        return library in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return False


def state(pid: int) -> str:
    """Return the letter of Linux for what a process does, and X for one that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs the process table of Linux")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_one_line_and_leaves_no_process(number: int, bundles: dict[str, Path]) -> None:
    bundle = str(bundles["linear"])
    command = [sys.executable, "-m", "tnn_runtime", "bench", bundle, bundle, "--blocks", "100000", "--threads", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        until(
            lambda: (
                process.poll() is not None or any(has_loaded(child, "onnxruntime") for child in children(process.pid))
            )
        )
        found = children(process.pid)
        assert found
        for child in found:
            os.kill(child, signal.SIGSTOP)  # it cannot end by itself now, only be ended
        until(lambda: {*map(state, found)} == {"T"} and state(process.pid) == "S")
        process.send_signal(number)
        printed, error = process.communicate(timeout=FOREVER)
    assert process.returncode == 130
    assert printed == ""
    assert error.splitlines()[-1] == "tnn-runtime: interrupted"
    assert "Traceback" not in error
    try:
        until(lambda: {*map(state, found)} <= {"Z", "X"})
    finally:
        for child in found:
            if state(child) == "T":
                os.kill(child, signal.SIGKILL)


def test_bundles_of_different_sizes_are_refused(bundles: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    small = load_data(photos, image_size=12)
    run = train(small, tmp_path / "run", ModelConfig(backbone="tiny"), TrainConfig(epochs=1))
    export_bundle(run.best, tmp_path / "bundle", formats=["onnx"])
    with pytest.raises(UsageError, match=r"takes images of shape \[12, 12, 3\] and .* of \[16, 16, 3\]"):
        compare_bundles(tmp_path / "bundle", bundles["linear"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batches": (0,)}, "batches is 0; expected at least 1"),
        ({"batches": ()}, "batches is empty; expected at least 1"),
        ({"threads": (1, -1)}, "threads is 1 -1; expected at least 1"),
        ({"processes": 0}, "processes is 0; expected at least 1"),
        ({"blocks": 0}, "blocks is 0; expected at least 1"),
        ({"margin": 0.0}, r"margin is 0.0; expected a share above 0 and up to 1, such as 0.02"),
        ({"margin": float("nan")}, r"margin is nan; expected a share"),
    ],
)
def test_numbers_out_of_range(wrong: dict[str, object], message: str, bundles: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match=message):
        compare_bundles(bundles["tversky"], bundles["linear"], **wrong)  # type: ignore[arg-type]


def test_errors_of_the_processes_are_those_of_the_classifier(bundle: Path, bundles: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="unknown device 'tpu'"):
        compare_bundles(bundle, bundles["linear"], (1,), device="tpu")
    (bundle / "model.onnx").write_bytes(b"short")
    with pytest.raises(ArtifactError, match="truncated or altered"):
        compare_bundles(bundle, bundles["linear"], (1,))


class TestMachine:
    def test_it_is_described(self) -> None:
        found = machine()
        assert set(found) == set(SCHEMA["properties"]["machine"]["properties"])
        assert 1 <= found["usable_cores"] <= found["cores"]
        json.dumps(found)

    def test_clock_and_governor_come_from_the_kernel(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for core in os.sched_getaffinity(0):
            (tmp_path / f"cpu{core}/cpufreq").mkdir(parents=True)
            (tmp_path / f"cpu{core}/cpufreq/scaling_cur_freq").write_text("2400000\n")
            (tmp_path / f"cpu{core}/cpufreq/scaling_governor").write_text("powersave\n")
        monkeypatch.setattr(environment_module, "_CPUS", tmp_path)
        assert machine()["governor"] == "powersave"
        clock = environment_module.Clock()
        assert clock.summary() is None
        clock.read()
        (tmp_path / f"cpu{core}/cpufreq/scaling_cur_freq").write_text("3600000\n")
        clock.read()
        summary = clock.summary()
        assert summary is not None
        assert (summary["min"], summary["max"]) == (2400, 3600)
        assert 2400 < summary["mean"] < 3600

    def test_without_frequencies_the_clock_is_that_of_cpuinfo(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lines = ["processor\t: 0", "model name\t: A CPU", "cpu MHz\t\t: 2000.5", "flags\t\t: sse hypervisor ht", ""]
        (tmp_path / "cpuinfo").write_text("\n".join(lines))
        monkeypatch.setattr(environment_module, "_CPUS", tmp_path)
        monkeypatch.setattr(environment_module, "_CPUINFO", tmp_path / "cpuinfo")
        found = machine()
        assert (found["cpu"], found["virtual"], found["governor"]) == ("A CPU", True, "unknown")
        clock = environment_module.Clock()
        clock.read()
        assert clock.summary() == {"min": 2000.5, "mean": 2000.5, "max": 2000.5}

    def test_memory_grows_with_what_is_held(self) -> None:
        before = memory_module.resident_bytes()
        held = np.ones(1 << 24)
        assert memory_module.peak_bytes() - before > 0.9 * held.nbytes
        assert memory_module.device_bytes("cpu") is None

    def test_gpu_memory_is_what_nvidia_smi_tells(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tool = tmp_path / "nvidia-smi"
        tool.write_text('#!/bin/sh\necho "$4" >> "$0.log"\n[ "$4" != 9 ] || exit 6\necho 512\n')
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        assert memory_module.device_bytes("cuda:1") == 512 * 2**20
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-abc")
        assert memory_module.device_bytes("cuda") == 512 * 2**20
        assert memory_module.device_bytes("cuda:1") == 512 * 2**20
        assert re.findall(r"\S+", (tmp_path / "nvidia-smi.log").read_text()) == ["1", "3", "GPU-abc"]
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "9")
        assert memory_module.device_bytes("cuda") is None
