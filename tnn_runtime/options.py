"""What a classifier is loaded with, by arguments and by the environment, checked."""

from __future__ import annotations

import math
import operator
import os
import threading
from collections.abc import Sequence
from numbers import Real
from typing import Any

from tnn_runtime.errors import UsageError

__all__ = ["MOST_THREADS", "at_least_one", "device_list", "environment", "environment_number", "seconds", "shown"]

_MANY = 1 << 20
MOST_THREADS = 1 << 10
"""More threads or processes than this are a mistake: each costs memory, and a library may take minutes to make them."""
_LONGEST_S = threading.TIMEOUT_MAX / 2
_SHOWN = 80


def at_least_one(below: int = _MANY, /, **values: int) -> None:
    """Make sure that numbers are integers from 1 on, and below a bound.

    Raises:
        UsageError: If one is not; the message has the name that it was given with.
    """
    for name, value in values.items():
        try:
            good = not isinstance(value, bool) and 1 <= operator.index(value) < below
        except TypeError:
            good = False
        if not good:
            raise UsageError(f"{name} is {shown(value)}; expected an integer of at least 1 and below {below}")


def environment(name: str) -> str:
    """Return what an environment variable holds; empty if it is not set."""
    return os.environ.get(name, "").strip()


def environment_number(name: str, default: int, below: int = _MANY) -> int:
    """Return the integer from 1 on that an environment variable holds, or a default if it is not set or empty.

    Raises:
        UsageError: If it holds something else.
    """
    text = environment(name)
    try:
        number = int(text or default)
    except ValueError:
        raise UsageError(f"{name} is {shown(text)}; expected an integer of at least 1 and below {below}") from None
    at_least_one(below, **{name: number})
    return number


def seconds(value: Any, name: str, unit: str = "seconds", *, endless: bool = False) -> float:
    """Return a duration as it is, or as many years as the system can wait.

    Raises:
        UsageError: If it is no number from 0 on, or infinity where there has to be an end.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= math.inf or (value == math.inf and not endless):
        raise UsageError(f"{name} is {shown(value)}; expected a number of {unit}, 0 or more")
    return float(min(value, _LONGEST_S))


def device_list(device: str | Sequence[str]) -> tuple[str, ...]:
    """Return the devices of all replicas.

    Raises:
        UsageError: If there is none, one is no name, or ``"auto"`` is among several.
    """
    devices = (device,) if isinstance(device, str) or not isinstance(device, Sequence) else tuple(device)
    if not all(isinstance(name, str) for name in devices):
        raise UsageError(f"unknown device {shown(device)}; expected a name such as 'auto', or a list of names")
    if not devices or (len(devices) > 1 and "auto" in devices):
        raise UsageError(f"device is {shown(device)}; expected a device, or a list of devices without 'auto'")
    return devices


def shown(value: Any) -> str:
    """Return a value as Python writes it, on one line and not too long."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # objects of callers may raise anything here, and an integer of many digits does
        text = f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
