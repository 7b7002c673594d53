"""What a Tversky head costs, alone: `python examples/benchmark_head.py --threads 1`.

For each size (batch, embedding, features, classes) and form, in one run and interleaved:

* forward: the lowered head, the eager head and the head written with broadcasting, against `nn.Linear` and against the
  bare matrix products that the lowered head cannot do without;
* a training step (forward, backward): eager and broadcast, against `nn.Linear`;
* the same for the measures alone, from feature values, without the projections that both share;
* the peak memory of a training step of each.

The control is the linear layer against a second copy of itself: 1 on a quiet machine.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from tnn_export import lower_head
from tnn_runtime.bench import interleave, machine
from tnn_runtime.console import Parser, positive_int, run
from tnn_train import TverskyConfig, TverskyHead
from tnn_train.training.loop import pick_device

SIZES = ((64, 512, 512, 10), (256, 512, 512, 100), (64, 2048, 1024, 1011), (256, 2048, 2048, 1000))
UNFOLDED = "unfolded"
FORMS = {
    UNFOLDED: TverskyConfig(),
    "product/ignorematch": TverskyConfig(difference="ignorematch"),
    "product/subtractmatch": TverskyConfig(difference="subtractmatch"),
}
BROADCAST_LIMIT = 1 << 28
"""Largest ``[N, P, F]`` tensor for which the broadcast head is measured, in values (1 GiB); it needs several."""


class BroadcastHead(TverskyHead):
    """The same contrast model, written term by term over ``[N, P, F]`` tensors, as the formulas read."""

    def compare(self, a: Tensor, b: Tensor) -> Tensor:
        """Return similarities ``[N, P]`` of feature values ``a [N, F]`` and ``b [P, F]``."""
        a, b = a.unsqueeze(1), b.unsqueeze(0)
        common = torch.where((a > 0) & (b > 0), a * b, 0).sum(-1)
        if self.config.difference == "ignorematch":
            input_only, prototype_only = torch.where(b > 0, 0, a.relu()), torch.where(a > 0, 0, b.relu())
        else:
            input_only, prototype_only = (a.relu() - b.relu()).relu(), (b.relu() - a.relu()).relu()
        return self.theta * common - self.alpha * input_only.sum(-1) - self.beta * prototype_only.sum(-1)


class Measures(nn.Module):
    """The measures of a head alone, without its projections: feature values ``[N, F]`` to similarities ``[N, P]``."""

    def __init__(self, head: TverskyHead) -> None:
        super().__init__()
        self.head = head
        self.prototypes = nn.Parameter(head.prototype_values.detach())

    def forward(self, a: Tensor) -> Tensor:
        """Return similarities ``[N, P]``."""
        return self.head.compare(a, self.prototypes)


class BareProducts(nn.Module):
    """The matrix products of a lowered head: the projection, and one of the blocks that its form needs."""

    def __init__(self, size: tuple[int, int, int, int], config: TverskyConfig) -> None:
        super().__init__()
        _, embedding, features, classes = size
        self.blocks = 2 if config.difference == "ignorematch" and config.beta else 1
        rows = features // 2 if config.opposites else features
        self.bank = nn.Parameter(torch.randn(rows, embedding))
        self.weight = nn.Parameter(torch.randn(classes, self.blocks * features))
        self.inputs = nn.Parameter(torch.randn(size[0], self.blocks * features))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return both products; the second does not wait for the first."""
        return functional.linear(x, self.bank), functional.linear(self.inputs, self.weight)


@dataclass(frozen=True)
class Row:
    """One measurement: median milliseconds and peak MiB of each variant that was measured."""

    size: tuple[int, int, int, int]
    form: str
    forward_ms: dict[str, float]
    step_ms: dict[str, float]
    step_peak_mib: dict[str, float]
    measures_step_ms: dict[str, float]
    measures_peak_mib: dict[str, float]
    control: float


def measure(size: tuple[int, int, int, int], form: str, device: torch.device, blocks: int, compiled: bool) -> Row:
    """Measure one form at one size."""
    batch, embedding, features, classes = size
    torch.manual_seed(0)
    inputs = [torch.randn(batch, embedding, device=device) for _ in range(4)]
    if form == UNFOLDED:
        eager = TverskyHead.from_linear(nn.Linear(embedding, classes), FORMS[form])
    else:
        eager = TverskyHead(embedding, classes, dataclasses.replace(FORMS[form], num_features=features))
    config, features = eager.config, eager.num_features
    size = (batch, embedding, features, classes)
    heads: dict[str, nn.Module] = {
        "linear": nn.Linear(embedding, classes),
        "control": nn.Linear(embedding, classes),
        "eager": eager,
    }
    measures = {"eager": Measures(eager)}
    if compiled:
        head = TverskyHead(embedding, classes, config)
        head.compile(fullgraph=True)
        heads["compiled"] = head
    if batch * classes * features <= BROADCAST_LIMIT:
        heads["broadcast"] = broadcast = BroadcastHead(embedding, classes, config)
        measures["broadcast"] = Measures(broadcast)
    forwards = {**heads, "lowered": lower_head(eager), "bare products": BareProducts(size, config)}
    for module in (*forwards.values(), *measures.values()):
        module.to(device)
    forward_ms = _medians({name: _forward(module) for name, module in forwards.items()}, inputs, blocks)
    step_ms = _medians({name: _step(module) for name, module in heads.items()}, inputs, blocks)
    peaks = {name: _peak_mib(_step(module), inputs[0]) for name, module in heads.items() if name != "control"}
    values = [eager.project(x).detach() for x in inputs]
    measures_ms = _medians({name: _step(module) for name, module in measures.items()}, values, blocks)
    measures_peaks = {name: _peak_mib(_step(module), values[0]) for name, module in measures.items()}
    control = step_ms.pop("control") / step_ms["linear"]
    return Row(size, form, forward_ms, step_ms, peaks, measures_ms, measures_peaks, control)


def _forward(module: nn.Module) -> Callable[[Any], object]:
    def call(x: Tensor) -> None:
        with torch.inference_mode():
            module(x)
        _synchronize(x.device)

    return call


def _step(module: nn.Module) -> Callable[[Any], object]:
    def call(x: Tensor) -> None:
        module.zero_grad()
        module(x.detach().requires_grad_()).square().mean().backward()
        _synchronize(x.device)

    return call


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _medians(calls: dict[str, Callable[[Any], object]], inputs: Sequence[Any], blocks: int) -> dict[str, float]:
    samples = interleave(calls, inputs, blocks, np.random.default_rng(0))
    return {name: 1e3 * float(np.median(np.concatenate(turns))) for name, turns in samples.items()}


def _peak_mib(call: Callable[[Any], object], x: Tensor) -> float:
    """Return the most memory that tensors made by one call held at once, in MiB."""
    call(x)
    if x.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(x.device)
        before = torch.cuda.memory_allocated(x.device)
        call(x)
        return (torch.cuda.max_memory_allocated(x.device) - before) / 2**20
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        call(x)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return float(np.cumsum([0, *changes]).max()) / 2**20


def table(rows: Sequence[Row]) -> str:
    """Return the ratios as Markdown."""
    lines = [
        "| size (N, D, F, C) | form | lowered / bare | lowered / linear | eager / linear | step: eager / linear "
        "| step: broadcast / eager | the same, measures alone | control |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    memory = [
        "| size (N, D, F, C) | form | linear | eager | broadcast | measures alone: eager | broadcast "
        "| N P + N F + P F values |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        forward, step = row.forward_ms, row.step_ms
        ratios = [_faster(times, "broadcast", "eager") for times in (step, row.measures_step_ms)]
        start = f"| {', '.join(map(str, row.size))} | {row.form} "
        lines.append(
            f"{start}| {forward['lowered'] / forward['bare products']:.2f} "
            f"| {forward['lowered'] / forward['linear']:.2f} | {forward['eager'] / forward['linear']:.2f} "
            f"| {step['eager'] / step['linear']:.2f} | {' | '.join(ratios)} | {row.control:.2f} |"
        )
        n, _, f, p = row.size
        peaks = [row.step_peak_mib.get(name) for name in ("linear", "eager", "broadcast")]
        peaks += [row.measures_peak_mib.get(name) for name in ("eager", "broadcast")]
        cells = ["not measured" if peak is None else f"{peak:.1f}" for peak in peaks]
        memory.append(f"{start}| {' | '.join(cells)} | {4 * (n * p + n * f + p * f) / 2**20:.1f} |")
    return "\n".join([*lines, "", "Peak memory of a training step, MiB:", "", *memory])


def _faster(times: dict[str, float], slow: str, fast: str) -> str:
    return f"{times[slow] / times[fast]:.1f}" if slow in times else "not measured"


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw the times relative to the linear layer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axes, title, times in zip(
        figure.subplots(1, 2), ("forward", "training step"), ("forward_ms", "step_ms"), strict=True
    ):
        names = [name for name in getattr(rows[0], times) if name not in ("linear", "control")]
        for offset, name in enumerate(names):
            values = [getattr(row, times).get(name, np.nan) / getattr(row, times)["linear"] for row in rows]
            axes.bar(np.arange(len(rows)) + 0.8 * offset / len(names), values, 0.8 / len(names), label=name)
        axes.axhline(1, color="black", linewidth=1)
        axes.set_yscale("log")
        axes.set_ylabel("time / time of nn.Linear")
        axes.set_title(title, pad=24)
        labels = [f"{', '.join(map(str, row.size))}\n{row.form}" for row in rows]
        axes.set_xticks(np.arange(len(rows)) + 0.3, labels, rotation=40, ha="right", fontsize=7)
        axes.legend(fontsize=8, ncols=len(names), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    figure.savefig(path, dpi=120)


def command(arguments: Sequence[str]) -> None:
    """Run the example."""
    parser = Parser("benchmark_head", __doc__ or "")
    parser.add_argument("--threads", type=positive_int, default=1, help="CPU threads")
    parser.add_argument("--blocks", type=positive_int, default=10, help="rounds in which each variant gets its turn")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--compile", action="store_true", help="measure the eager head under torch.compile, too")
    parser.add_argument(
        "--sizes", type=int, nargs="+", help="which of the four sizes to measure, 0 to 3; all by default"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark_head"), help="folder to write to")
    options = parser.parse_args(arguments)
    chosen = range(len(SIZES)) if options.sizes is None else options.sizes
    if not set(chosen) <= set(range(len(SIZES))):
        parser.error(f"got --sizes {' '.join(map(str, chosen))}; expected 0 to {len(SIZES) - 1}")
    device = pick_device(options.device)
    torch.set_num_threads(options.threads)
    rows = [
        measure(SIZES[index], form, device, options.blocks, options.compile)
        for index, form in tqdm([(index, form) for index in chosen for form in FORMS], unit="form", disable=None)
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    about = {**machine(), "torch": torch.__version__, "threads": options.threads, "device": name}
    report = {"machine": about, "rows": [asdict(row) for row in rows]}
    (options.out / "benchmark_head.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    plot(rows, options.out / "benchmark_head.png")
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(table(rows))
    print(f"wrote {options.out}/benchmark_head.json and benchmark_head.png")


if __name__ == "__main__":
    sys.exit(run("benchmark_head", command))
