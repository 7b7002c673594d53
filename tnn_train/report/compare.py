"""Runs side by side: groups of runs that differ in their seeds only, with intervals over the seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tnn_runtime.bundle.storage import write_text
from tnn_runtime.errors import UsageError
from tnn_train.heads import HEADS
from tnn_train.model.config import options_field
from tnn_train.report.estimates import SHARE, Estimate
from tnn_train.report.page import is_nested, render
from tnn_train.report.plots import plot_estimates, plot_seeds
from tnn_train.report.recipes import as_key, recipes
from tnn_train.training.recipe import speed_unit
from tnn_train.training.results import Run, read_run

__all__ = ["MEASURES", "Comparison", "Estimate", "Group", "Table", "compare_runs", "write_comparison"]

MEASURES = {"test_accuracy": "test accuracy", "test_loss": "test loss", "ece": "ECE", "images_per_second": "speed"}
"""What is compared: fields of `tnn_train.training.results.Results`, and what they are called."""

_SPEED = "images_per_second"
_BOUNDS = {"test_accuracy": SHARE, "test_loss": (0.0, math.inf), "ece": SHARE, _SPEED: (0.0, math.inf)}
_HEAD = "model.head"


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seeds.

    Args:
        name: What tells it from the other groups.
        runs: At least one.
    """

    name: str
    runs: tuple[Run, ...]

    def by_seed(self, measure: str) -> dict[tuple[Any, ...], float]:
        """Return a measure for each seed: the mean of its runs, if it has several."""
        seeds = dict.fromkeys(run.seed for run in self.runs)
        return {
            seed: float(np.mean([getattr(run.results, measure) for run in self.runs if run.seed == seed]))
            for seed in seeds
        }

    def estimate(self, measure: str) -> Estimate:
        """Return the mean of a measure, a key of `MEASURES`, over the seeds."""
        return Estimate(tuple(self.by_seed(measure).values()), _BOUNDS[measure])

    def difference(self, other: Group, measure: str) -> Estimate | None:
        """Return how much more this group has than ``other``, over the seeds of both; ``None`` if they share none."""
        ours, theirs = self.by_seed(measure), other.by_seed(measure)
        pairs = tuple(value - theirs[seed] for seed, value in ours.items() if seed in theirs)
        lowest, highest = _BOUNDS[measure]
        return Estimate(pairs, (lowest - highest, highest - lowest)) if pairs else None


class Table(NamedTuple):
    """A table to be printed.

    Args:
        title: What it shows.
        header: Names of the columns.
        rows: Cells, as many in each row as the header has.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """Return the table in Markdown, in columns of equal width."""
        lines = [[cell.replace("|", r"\|") for cell in row] for row in (self.header, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
        padded.insert(1, ["-" * width for width in widths])
        return "\n".join(f"| {' | '.join(line)} |" for line in padded)


@dataclass(frozen=True)
class Comparison:
    """Groups of runs; the first is the one that the others are compared with.

    Args:
        groups: At least one.
        warnings: Why the runs cannot be compared fairly, a line for each reason.
    """

    groups: tuple[Group, ...]
    warnings: tuple[str, ...]

    def tables(self) -> list[Table]:
        """Return the means of all groups and, where seeds are shared, the paired differences from the first group."""
        unit = _speed_unit([run for group in self.groups for run in group.runs])
        means = Table(
            "Means over the seeds, with 95% intervals",
            ("group", "seeds", *{**MEASURES, _SPEED: unit}.values(), "parameters"),
            tuple(
                (
                    group.name,
                    str(len(group.by_seed(_SPEED))),
                    *(group.estimate(name).text(".1f" if name == _SPEED else ".4f") for name in MEASURES),
                    f"{group.runs[0].results.parameters:,}",
                )
                for group in self.groups
            ),
        )
        compared = [name for name in MEASURES if name != _SPEED]
        differences = Table(
            f"Differences from {self.groups[0].name}, paired by seed",
            ("group", "pairs", *(MEASURES[name] for name in compared)),
            tuple(
                (group.name, str(len(found[0].values)), *(estimate.text("+z.4f") for estimate in found))
                for group in self.groups[1:]
                if (found := [e for name in compared if (e := group.difference(self.groups[0], name))])
            ),
        )
        return [means, differences] if differences.rows else [means]

    def notes(self) -> list[str]:
        """Return why groups are missing in the differences, a line for each reason."""
        first, *others = self.groups
        if not others:
            return ["there are no differences: all runs are of one group, and differ in nothing but their seeds"]
        return [
            f"there is no difference of {group.name} from {first.name}, as no run of one has the seeds of a run of the "
            "other (data.seed and train.seed); train both from the same seeds"
            for group in others
            if group.difference(first, _SPEED) is None
        ]

    def table(self) -> str:
        """Return all of it for a terminal: tables in Markdown, then notes and warnings."""
        parts = [f"{table.title}:\n\n{table.markdown()}" for table in self.tables()]
        lines = [f"note: {line}" for line in self.notes()] + [f"warning: {line}" for line in self.warnings]
        return "\n\n".join([*parts, "\n".join(lines)] if lines else parts)


def compare_runs(folders: Sequence[Path]) -> Comparison:
    """Read run folders and put those together that differ in their seeds only.

    Args:
        folders: At least one run folder; one that is named twice counts once.

    Raises:
        UsageError: If there are none.
        ArtifactError: If one is no run, not finished, or cannot be read.
    """
    runs = [read_run(folder) for folder in {Path(folder).resolve(): Path(folder) for folder in folders}.values()]
    if not runs:
        raise UsageError("there are no runs to compare; give at least one run folder")
    settings, members = _grouped(runs)
    differing = _differing(settings)
    groups = tuple(Group(_name(one, differing), tuple(group)) for one, group in zip(settings, members, strict=True))
    return Comparison(groups, tuple(_warnings(runs, groups, differing)))


def write_comparison(path: Path, comparison: Comparison) -> None:
    """Write one HTML file with everything inside: tables, curves, warnings.

    Args:
        path: The file, which is replaced if it exists.
        comparison: What to show.
    """
    groups = comparison.groups
    estimates = {group.name: group.estimate("test_accuracy") for group in groups}
    html = render(
        "comparison.html.jinja",
        comparison=comparison,
        estimates=plot_estimates(
            {name: estimate.values for name, estimate in estimates.items()},
            {name: estimate.interval for name, estimate in estimates.items()},
        ),
        curves=plot_seeds({group.name: [run.history for run in group.runs] for group in groups}),
    )
    write_text(path, html)


def _grouped(runs: Sequence[Run]) -> tuple[list[dict[str, Any]], list[list[Run]]]:
    """Return the recipes of runs, and the runs of each."""
    found: dict[str, tuple[dict[str, Any], list[Run]]] = {}
    for run, settings in zip(runs, recipes(runs), strict=True):
        key = as_key({name: as_key(value) for name, value in settings.items() if value is not None})
        found.setdefault(key, (settings, []))[1].append(run)
    return [settings for settings, _ in found.values()], [group for _, group in found.values()]


def _differing(settings: Sequence[dict[str, Any]]) -> list[str]:
    """Return the settings that tell groups apart; options of a head are compared among the groups that have it."""
    names = dict.fromkeys(name for group in settings for name in group)
    return [name for name in names if len({as_key(group.get(name)) for group in settings if _applies(name, group)}) > 1]


def _speed_unit(runs: Sequence[Run]) -> str:
    """Return the unit of the runs' speeds, or both units if some have frozen backbones."""
    frozen = dict.fromkeys(bool(run.settings.get("train.freeze_backbone")) for run in runs)
    return " or ".join(speed_unit(frozen=each) for each in frozen)


def _head_of(name: str) -> str | None:
    """Return the head that a setting is an option of."""
    return next((head for head in HEADS if name.startswith(f"model.{options_field(head)}.")), None)


def _applies(name: str, settings: dict[str, Any]) -> bool:
    return _head_of(name) in (None, settings.get(_HEAD))


def _name(settings: dict[str, Any], differing: Iterable[str]) -> str:
    told = [name for name in differing if _applies(name, settings)] or [_HEAD]
    return ", ".join(f"{name.removeprefix('model.')}={_value(name, settings.get(name))}" for name in told)


def _value(name: str, value: Any) -> str:
    if is_nested(value):
        return f"{len(value)} of them"
    if isinstance(value, list):
        return ("x" if name.endswith("image_size") else "+").join(map(str, value)) or "none"
    return "not set" if value is None else str(value)


def _warnings(runs: Sequence[Run], groups: Sequence[Group], differing: Sequence[str]) -> Iterable[str]:
    """Yield what speaks against comparing the runs."""
    data = {(run.results.class_names, *run.results.images.items()): run for run in reversed(runs)}
    if len(data) > 1:
        seen = "; ".join(
            f"{run.folder}: {len(run.results.class_names)} classes, images {run.results.images}"
            for run in reversed(data.values())
        )
        yield f"the runs saw different data ({seen}), so that their numbers do not measure the same"
    if others := [name for name in differing if name != _HEAD and _head_of(name) is None]:
        yield f"not only the head differs, but also {', '.join(others)}; a difference may come from there"
    if len(machines := dict.fromkeys((run.results.device, run.results.threads) for run in runs)) > 1:
        told = "; ".join(f"{device}, {threads} threads" for device, threads in machines)
        yield f"{_speed_unit(runs)} were measured in different places ({told}) and cannot be compared"
    for group in groups:
        if len(group.runs) > len(group.by_seed(_SPEED)):
            yield f"{group.name} has several runs of the same seed, which count as one: their mean"
