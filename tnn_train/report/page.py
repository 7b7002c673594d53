"""What the pages share: their templates, and how they print numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from tnn_runtime.text import a_head
from tnn_train.report.pictures import figure_url

__all__ = ["is_nested", "render"]


def render(template: str, **values: Any) -> str:
    """Return a page.

    Args:
        template: Name of a template of this package.
        values: What it shows; text in it is escaped.
    """
    environment = Environment(
        loader=PackageLoader("tnn_train.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "chart": _chart,
        "number": _number,
        "duration": _duration,
        "setting": _setting,
        "a_head": a_head,
    }
    return environment.get_template(template).render(values)


def is_nested(value: Any) -> bool:
    """Return whether a value of a configuration is a list of structures: its length is all that a page can show."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def _chart(figure: Figure, description: str) -> Markup:
    """Return the picture of a figure, as wide as its size in inches says; the page may show it narrower."""
    width = round(96 * figure.get_figwidth())
    return Markup('<img class="chart" width="{}" alt="{}" src="{}">').format(width, description, figure_url(figure))


def _number(value: float | None, digits: int = 4) -> str:
    """Print a number with so many decimals, and a dash for none or NaN."""
    return "\N{EN DASH}" if value is None or math.isnan(value) else f"{value:,.{digits}f}"


def _duration(seconds: float) -> str:
    """Print a time: ``9.3 s``, ``4 min 10 s`` or ``2 h 05 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def _setting(value: Any) -> str:
    """Print a value of a configuration."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if is_nested(value):
        return f"{len(value)} of them"
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)
