"""Runs that were audited, side by side: tables, a page, and plain values for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tnn_runtime.bundle.storage import write_text
from tnn_train.audit.figures import Figures
from tnn_train.audit.measures import MEASURES, SECTIONS, measures_of
from tnn_train.report.compare import Group, Table
from tnn_train.report.estimates import SHARE, Estimate
from tnn_train.report.page import render

__all__ = ["Audit", "AuditedGroup", "write_audit_page"]

AUDIT_SCHEMA = 1
_SHARES = ("same_named", "sparsity")
"""Measures from 0 to 1 that are not printed in percent."""


@dataclass(frozen=True)
class AuditedGroup:
    """Runs that differ in their seeds only, with what was measured of them.

    Args:
        group: The runs.
        figures: Of each run.
        pairs: Of each pair of runs, by the names of the measures; empty for one run.
    """

    group: Group
    figures: tuple[Figures, ...]
    pairs: tuple[Mapping[str, float], ...]

    def estimate(self, name: str) -> Estimate | None:
        """Return the mean of a measure over the runs, or over their pairs; ``None`` if nothing was measured."""
        measured: Sequence[Any] = (
            self.pairs if MEASURES[name].section == "seeds" else [one.values for one in self.figures]
        )
        values = tuple(values[name] for values in measured if name in values)
        is_share = MEASURES[name].form.endswith("%") or name in _SHARES
        return Estimate(values, *([SHARE] if is_share else [])) if values else None


@dataclass(frozen=True)
class Audit:
    """Groups of runs that were audited.

    Args:
        groups: At least one.
        images: On how many test images.
        notes: What was left out, and what speaks against comparing the runs, a line each.
    """

    groups: tuple[AuditedGroup, ...]
    images: int
    notes: tuple[str, ...]

    def tables(self) -> list[Table]:
        """Return a table for each section, a line for each measure and a column for each group."""
        header = ("", *(f"{one.group.name} ({len(one.figures)})" for one in self.groups))
        found = []
        for section, title in SECTIONS.items():
            rows = tuple(
                (measure.title, *(_shown(one.estimate(name), name) for one in self.groups))
                for name, measure in measures_of(section).items()
                if any(one.estimate(name) for one in self.groups)
            )
            if rows:
                found.append(Table(title[0].upper() + title[1:], header, rows))
        return found

    def table(self) -> str:
        """Return all of it for a terminal: tables in Markdown, then notes."""
        first = (
            f"{self.images} test images. Means over the runs of each group, as many as the number behind its name, "
            "with 95% intervals; across seeds, the least and the largest value of a pair of runs"
        )
        parts = [first, *(f"{table.title}:\n\n{table.markdown()}" for table in self.tables())]
        return "\n\n".join([*parts, "\n".join(f"note: {line}" for line in self.notes)] if self.notes else parts)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain values, with the definition of each measure."""
        measured = [name for name in MEASURES if any(one.estimate(name) for one in self.groups)]
        return {
            "schema_version": AUDIT_SCHEMA,
            "images": self.images,
            "notes": list(self.notes),
            "definitions": {
                name: {"title": MEASURES[name].title, "definition": MEASURES[name].definition}
                | ({"source": MEASURES[name].source} if MEASURES[name].source else {})
                for name in measured
            },
            "groups": [_group(one, measured) for one in self.groups],
        }


def write_audit_page(path: Path, audit: Audit) -> None:
    """Write one HTML file with everything inside.

    Args:
        path: The file, which is replaced if it exists.
        audit: What to show.
    """
    tables = audit.tables()
    told = [
        (measure.title, measure.definition, measure.source)
        for name, measure in MEASURES.items()
        if any(one.estimate(name) for one in audit.groups)
    ]
    write_text(path, render("audit.html.jinja", audit=audit, tables=tables, told=told))


def _shown(estimate: Estimate | None, name: str) -> str:
    if estimate is None:
        return "-"
    measure = MEASURES[name]
    if len(estimate.values) == 1:
        return format(estimate.mean, measure.form)
    if measure.section == "seeds":
        # Pairs of the same few seeds are not independent.
        return " to ".join(format(end, measure.form) for end in (min(estimate.values), max(estimate.values)))
    return estimate.text(measure.form)


def _group(one: AuditedGroup, measured: Sequence[str]) -> dict[str, Any]:
    estimates = {name: estimate for name in measured if (estimate := one.estimate(name))}
    return {
        "name": one.group.name,
        "means": {name: estimate.mean for name, estimate in estimates.items()},
        "runs": [
            {
                "folder": str(run.folder),
                "test_accuracy": run.results.test_accuracy,
                "values": dict(figures.values),
                "curves": _curves(figures),
            }
            for run, figures in zip(one.group.runs, one.figures, strict=True)
        ],
        "pairs": [dict(pair) for pair in one.pairs],
    }


def _curves(figures: Figures) -> dict[str, list[float]] | None:
    if figures.curves is None:
        return None
    return {name: np.asarray(values).tolist() for name, values in vars(figures.curves).items()}
