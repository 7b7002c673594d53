"""What a classifier is loaded with, checked."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

from tnn_runtime.errors import UsageError

__all__ = ["at_least_one", "device_list", "seconds"]

_MANY = 1 << 20


def at_least_one(**values: int) -> None:
    """Make sure that numbers are integers from 1 on.

    Raises:
        UsageError: If one is not; the message has the name that it was given with.
    """
    for name, value in values.items():
        try:
            good = 1 <= operator.index(value) < _MANY
        except TypeError:
            good = False
        if not good:
            raise UsageError(f"{name} is {value!r}; expected an integer of at least 1 and below {_MANY}")


def seconds(value: Any, name: str, unit: str = "seconds") -> float:
    """Return a duration as it is.

    Raises:
        UsageError: If it is no finite number from 0 on.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise UsageError(f"{name} is {value!r}; expected a number of {unit}, 0 or more")
    return float(value)


def device_list(device: str | Sequence[str]) -> tuple[str, ...]:
    """Return the devices of all replicas.

    Raises:
        UsageError: If there is none, or ``"auto"`` is among several.
    """
    devices = (device,) if isinstance(device, str) or not isinstance(device, Sequence) else tuple(device)
    if not devices or (len(devices) > 1 and "auto" in devices):
        raise UsageError(f"device is {device!r}; expected a device, or a list of devices without 'auto'")
    return devices
