"""The measurement itself, in one process: warm-up until stable, and then turns in random order, block by block."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np

__all__ = ["Call", "TimedCall", "WarmUp", "by_wall_clock", "interleave", "repeats_for", "take_turns", "warm_up"]

Call: TypeAlias = Callable[[Any], Any]
TimedCall: TypeAlias = Callable[[Any], tuple[float, Any]]
"""A call that gives its seconds and its output."""

_WINDOW_SECONDS = 0.05
_WINDOWS = 3
_TOLERANCE = 0.05
_MOST_SECONDS = 5.0
_FEWEST_CALLS = 6

_BLOCK_SECONDS = 0.1
_MOST_CALLS = 50


@dataclass(frozen=True)
class WarmUp:
    """How a contender was warmed up.

    Args:
        stable: Whether the medians of the last three windows, of 50 ms or one call each, lay within 5%.
        calls: How many calls it took.
        seconds: How long it took; what is not stable after 5 s, and 6 calls, is measured as it is.
        median: Median seconds of a call in the last windows.
    """

    stable: bool
    calls: int
    seconds: float
    median: float


def warm_up(call: Call, inputs: Sequence[Any], most_seconds: float = _MOST_SECONDS) -> WarmUp:
    """Call until the latency is stable."""
    medians: list[float] = []
    calls, started = 0, time.perf_counter()
    while True:
        window: list[float] = []
        while not window or sum(window) < _WINDOW_SECONDS:
            window.append(_time(call, inputs[calls % len(inputs)])[0])
            calls += 1
        medians.append(float(np.median(window)))
        last = medians[-_WINDOWS:]
        stable = len(last) == _WINDOWS and max(last) <= (1 + _TOLERANCE) * min(last)
        seconds = time.perf_counter() - started
        if stable or (seconds > most_seconds and calls >= _FEWEST_CALLS):
            return WarmUp(stable, calls, seconds, float(np.median(last)))


def repeats_for(warm_ups: Mapping[str, WarmUp]) -> int:
    """Return how many calls a turn should have, so that the slowest contender takes a tenth of a second."""
    slowest = max(warmed.median for warmed in warm_ups.values())
    return min(max(1, round(_BLOCK_SECONDS / slowest)), _MOST_CALLS)


def by_wall_clock(calls: Mapping[str, Call]) -> dict[str, TimedCall]:
    """Return calls that give the time that passes for whoever waits for them."""
    return {name: partial(_time, call) for name, call in calls.items()}


def take_turns(
    calls: Mapping[str, TimedCall],
    inputs: Sequence[Any],
    blocks: int,
    repeats: int,
    random: np.random.Generator,
    *,
    after_block: Callable[[], object] = lambda: None,
    check: Callable[[str, int, Any], object] = lambda name, number, output: None,
) -> dict[str, list[list[float]]]:
    """Time every contender in every block, in an order that each block draws anew.

    Within a block all get the same inputs in the same order, another one for each call.

    Args:
        calls: The contenders, which give their own seconds: `by_wall_clock`, or by that of a GPU.
        inputs: What they are called with.
        blocks: How many turns each gets.
        repeats: How many calls make a turn.
        random: Draws the orders.
        after_block: Called after each block.
        check: Called after each call, outside its time, with the contender, the number of the input, and the output.

    Returns:
        Seconds by contender, block and call.
    """
    seconds: dict[str, list[list[float]]] = {name: [] for name in calls}
    for block in range(blocks):
        numbers = [(block * repeats + turn) % len(inputs) for turn in range(repeats)]
        for name in _shuffled(calls, random):
            turn = []
            for number in numbers:
                elapsed, output = calls[name](inputs[number])
                turn.append(elapsed)
                check(name, number, output)
            seconds[name].append(turn)
        after_block()
    return seconds


def interleave(
    calls: Mapping[str, Call],
    inputs: Sequence[Any],
    blocks: int,
    random: np.random.Generator,
    progress: Callable[[], object] = lambda: None,
) -> dict[str, list[list[float]]]:
    """Warm all contenders up and return the seconds of each call, block by block.

    For programs that measure in their own process: the luck of its memory layout is in all their samples.
    """
    warm_ups = {name: warm_up(calls[name], inputs) for name in _shuffled(calls, random)}
    return take_turns(by_wall_clock(calls), inputs, blocks, repeats_for(warm_ups), random, after_block=progress)


def _shuffled(calls: Mapping[str, Call], random: np.random.Generator) -> list[str]:
    return [str(name) for name in random.permutation(list(calls))]


def _time(call: Call, value: Any) -> tuple[float, Any]:
    started = time.perf_counter()
    output = call(value)
    return time.perf_counter() - started, output
