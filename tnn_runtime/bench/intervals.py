"""What the samples of several processes say: estimates, how far to trust them, and what may be claimed.

Samples are seconds by process, block and call: ``seconds[process][block][call]``. Intervals are bootstrap intervals.
Those of ratios and differences are hierarchical: processes are drawn, and blocks within each of them, both contenders
in pairs, for they shared process and moment. Deviations between processes are shrunk by what the blocks alone explain,
which would otherwise count twice. Those of percentiles draw processes whole.

The percentiles of n processes, drawn from themselves, vary too little: the deviations are widened by
``sqrt(n / (n - 1))``, and by ``t / z``, Student's t for n - 1 degrees of freedom over the normal quantile.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FEWEST_PROCESSES",
    "Claim",
    "Estimate",
    "Latency",
    "Samples",
    "difference_us",
    "latency",
    "no_slower",
    "ratio",
]

Samples: TypeAlias = Sequence[Sequence[Sequence[float]]]

FEWEST_PROCESSES = 3
"""With fewer, nothing is claimed: memory layout and load order have hardly been sampled."""

_RESAMPLES = 2000
_AT_ONCE = 100
_PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% bootstrap interval.

    Args:
        value: The estimate.
        low: The lower end.
        high: The upper end.
        upper95: The value that is exceeded with a probability of 5%: the upper end of the 90% interval.
    """

    value: float
    low: float
    high: float
    upper95: float

    def text(self, digits: int = 3) -> str:
        """Return ``value (low to high)``, or ``value (-)`` where nothing varied, as in one sample."""
        interval = (
            "-"
            if math.isclose(self.low, self.high, rel_tol=1e-12)
            else f"{self.low:.{digits}f} to {self.high:.{digits}f}"
        )
        return f"{self.value:.{digits}f} ({interval})"


@dataclass(frozen=True)
class Latency:
    """How long the calls of one contender take.

    Args:
        p50: Median milliseconds of a call.
        p90: Milliseconds that nine calls in ten do not exceed.
        p99: Milliseconds that 99 in 100 do not exceed.
        images_per_second: Images of all calls over the seconds of all calls.
        calls: How many calls were timed.
    """

    p50: Estimate
    p90: Estimate
    p99: Estimate
    images_per_second: float
    calls: int


@dataclass(frozen=True)
class Claim:
    """Whether A may be called no slower than B.

    Args:
        outcome: ``"shown"``, ``"not shown"`` or ``"too noisy"``.
        margin: What A may be slower by, as a share of B.
        text: The outcome in words.
    """

    outcome: str
    margin: float
    text: str


def ratio(numerator: Samples, denominator: Samples, random: np.random.Generator) -> Estimate:
    """Return the ratio of two latencies.

    That is the median, over the blocks of a process, of the ratio of the two medians in that block, and of these the
    geometric mean over the processes. What slows both in a block cancels, so that this is not exactly the ratio of the
    medians over everything.

    Args:
        numerator: Seconds by process, block and call.
        denominator: The same processes and blocks of what it is compared with.
        random: Draws the samples of the bootstrap.
    """
    logs = np.log(_block_medians(numerator)) - np.log(_block_medians(denominator))
    return _exponential(_mean_of_medians(logs, random))


def difference_us(minuend: Samples, subtrahend: Samples, random: np.random.Generator) -> Estimate:
    """Return the difference of two latencies in microseconds, from pairs of blocks as `ratio`."""
    return _mean_of_medians(1e6 * (_block_medians(minuend) - _block_medians(subtrahend)), random)


def latency(samples: Samples, batch: int, random: np.random.Generator) -> Latency:
    """Return percentiles of all calls, and the throughput.

    Args:
        samples: Seconds by process, block and call.
        batch: Images a call.
        random: Draws the samples of the bootstrap.
    """
    blocks = [block for process in samples for block in process]
    calls = np.concatenate([np.asarray(block) for block in blocks])
    logs = [np.log(1e3 * np.asarray(block)) for block in blocks]
    values = np.percentile(np.concatenate(logs), _PERCENTILES)
    p50, p90, p99 = (
        _exponential(_estimate(float(value), column, len(samples)))
        for value, column in zip(values, _resampled_percentiles(logs, len(samples), random).T, strict=True)
    )
    return Latency(p50, p90, p99, batch * len(calls) / float(calls.sum()), len(calls))


def no_slower(found: Estimate, control: Estimate, margin: float, processes: int) -> Claim:
    """Decide by an equivalence test whether A is no slower than B.

    Args:
        found: The ratio of A to B.
        control: The ratio of a second copy of B to B, measured beside it.
        margin: What A may be slower by, as a share of B.
        processes: How many processes the ratio comes from.
    """
    percent, limit = f"{100 * margin:g}%", 1 + margin
    if processes < FEWEST_PROCESSES:
        reason = f"{processes} of at least {FEWEST_PROCESSES} processes"
        return Claim("not shown", margin, f"not shown: {reason}, and layout and load order are luck in each")
    within = 1 - margin <= control.low and control.high <= limit
    if not within or not control.low <= 1 <= control.high:
        reason = f"reaches beyond 1 by more than {percent}" if not within else "does not contain 1"
        return Claim(
            "too noisy",
            margin,
            f"too noisy to tell {percent}: the interval of the control, {control.low:.3f} to {control.high:.3f}, "
            f"{reason}; end other programs, or raise the number of processes",
        )
    if found.upper95 < limit:
        return Claim(
            "shown",
            margin,
            f"A is no slower than B by more than {percent}: the ratio is below {found.upper95:.3f} with 95% confidence",
        )
    slower = f"; A is slower, by {100 * (found.low - 1):.1f}% at least" if found.low > 1 else ""
    return Claim(
        "not shown",
        margin,
        f"not shown that A is no slower than B by more than {percent}: the ratio may be up to {found.upper95:.3f}"
        f"{slower}",
    )


def _block_medians(samples: Samples) -> NDArray[np.float64]:
    """Return the median of each block, ``[processes, blocks]``."""
    return np.array([[np.median(block) for block in process] for process in samples], np.float64)


def _mean_of_medians(values: NDArray[np.float64], random: np.random.Generator) -> Estimate:
    """Return the mean over processes of the median over blocks, of values ``[processes, blocks]``."""
    processes, blocks = values.shape
    medians = np.median(values, axis=1)
    chosen = random.integers(0, processes, (_RESAMPLES, processes))
    within = random.integers(0, blocks, (_RESAMPLES, processes, blocks))
    noise = np.median(values[chosen[:, :, None], within], axis=2) - medians[chosen]
    between = (medians - medians.mean()) * _shrinkage(medians, float(noise.var()))
    resampled = medians.mean() + (between[chosen] + noise).mean(axis=1)
    return _estimate(float(medians.mean()), resampled, processes)


def _shrinkage(medians: NDArray[np.float64], noise: float) -> float:
    """Return the factor that gives the medians of processes the variance that is not noise of their blocks."""
    if len(medians) == 1:
        return 0.0
    variance = float(medians.var(ddof=1))
    real = max(0.0, 1 - noise / variance) if variance > 0 else 0.0
    return math.sqrt(real * len(medians) / (len(medians) - 1))


def _resampled_percentiles(
    blocks: Sequence[NDArray[np.float64]], processes: int, random: np.random.Generator
) -> NDArray[np.float64]:
    """Return percentiles ``[resamples, percentiles]`` of all calls of the processes, or of one's blocks, drawn anew."""
    calls = np.concatenate(blocks)
    order = np.argsort(calls)
    block_of_call = np.repeat(np.arange(len(blocks)), [len(block) for block in blocks])[order]
    units = processes if processes > 1 else len(blocks)
    unit_of_call = block_of_call // (len(blocks) // units)
    results = []
    for _ in range(_RESAMPLES // _AT_ONCE):
        times = random.multinomial(units, np.full(units, 1 / units), _AT_ONCE)
        below = np.cumsum(times[:, unit_of_call], axis=1)
        places = [(below < percentile / 100 * below[:, -1:]).sum(axis=1) for percentile in _PERCENTILES]
        results.append(calls[order][np.stack(places, axis=1)])
    found = np.concatenate(results)
    center = np.percentile(calls, _PERCENTILES)
    return center + math.sqrt(units / (units - 1)) * (found - center) if units > 1 else found


def _estimate(value: float, resampled: NDArray[np.float64], processes: int) -> Estimate:
    """Return the estimate with an interval from its resamples, widened for few processes."""

    def end(level: float) -> float:
        return value + _widening(level, processes) * (float(np.quantile(resampled, level)) - value)

    return Estimate(value, min(value, end(0.025)), max(value, end(0.975)), max(value, end(0.95)))


def _widening(level: float, processes: int) -> float:
    return 1.0 if processes == 1 else _student_quantile(level, processes - 1) / NormalDist().inv_cdf(level)


def _exponential(found: Estimate) -> Estimate:
    """Return an estimate that was made of logarithms."""
    return Estimate(*(math.exp(value) for value in (found.value, found.low, found.high, found.upper95)))


def _student_quantile(level: float, freedom: int) -> float:
    """Return a quantile of Student's t: ``sqrt(freedom) tan(x)`` with the density ``cos(x) ** (freedom - 1)`` of x."""
    angles = np.linspace(-math.pi / 2, math.pi / 2, 200_001)
    below = np.cumsum(np.cos(angles) ** (freedom - 1))
    return math.sqrt(freedom) * math.tan(float(np.interp(level, below / below[-1], angles)))
