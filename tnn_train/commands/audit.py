"""The command ``tnn-train audit``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tnn_runtime.bundle.outputs import check_file
from tnn_runtime.bundle.storage import write_json
from tnn_runtime.console import Parser, positive_int, say
from tnn_runtime.errors import UsageError
from tnn_runtime.text import a_head
from tnn_train.audit.figures import audit_pair, audit_subject
from tnn_train.audit.measures import SECTIONS, sections_of
from tnn_train.audit.pixels import need_captum, need_maps
from tnn_train.audit.subject import Subject
from tnn_train.data import DataConfig, ImageData, ImageSet, load_data
from tnn_train.data.config import recorded_data
from tnn_train.data.images import even_sample
from tnn_train.errors import DataError
from tnn_train.heads import HEADS, Head
from tnn_train.model.checkpoint import Checkpoint, load_checkpoint
from tnn_train.report.audit import Audit, AuditedGroup, write_audit_page
from tnn_train.report.compare import compare_runs
from tnn_train.run_files import BEST
from tnn_train.training.results import Run

__all__ = ["audit_runs", "command", "make_parser"]

_EPILOG = """examples:
  tnn-train audit runs/photos
  tnn-train audit runs/mnist-tversky-* runs/mnist-linear-* --data-root ~/data -o audit.html
  tnn-train audit runs/photos --measures features pixels -o audit.json

Runs that differ in nothing but their seeds are one group; across seeds, they are compared with each other. Each run is
audited on its own test images. docs/auditing.md says what each measure is."""

_FORMATS = (".json", ".html")


def command(arguments: Sequence[str]) -> None:
    """Run ``tnn-train audit``."""
    options = make_parser().parse_args(arguments)
    sections = sections_of(options.measures or SECTIONS)
    if options.out is not None:
        if options.out.suffix not in _FORMATS:
            raise UsageError(f"-o is {options.out}; expected a file that ends with {' or '.join(_FORMATS)}")
        check_file(options.out, "-o", overwrite=options.overwrite)
    audit = audit_runs(
        options.runs,
        sections,
        is_given=options.measures is not None,
        images=options.images,
        source=options.data,
        root=options.data_root,
    )
    say(*audit.table().split("\n"))
    if options.out is not None:
        if options.out.suffix == ".json":
            write_json(options.out, audit.to_dict())
        else:
            write_audit_page(options.out, audit)
        say("", f"wrote {options.out}")


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser("tnn-train audit", "Measure how far the explanations of trained runs can be trusted.", _EPILOG)
    add = parser.add_argument
    add("runs", type=Path, nargs="+", metavar="RUN", help="run folder that tnn-train has made")
    add(
        "--measures",
        nargs="+",
        metavar="NAME",
        help=f"what to measure: {', '.join(SECTIONS)}; if not given, all that can be had",
    )
    add("--images", type=positive_int, default=300, metavar="N", help="use at most so many test images, spread evenly")
    add("--data", metavar="NAME|FOLDER", help="the data set, where it is not the one that the runs name")
    add("--data-root", metavar="FOLDER", help="the folder of data sets, where it is not the one that the runs name")
    add("-o", "--out", type=Path, metavar="FILE.json|FILE.html", help="also write values for programs, or a page")
    add("--overwrite", action="store_true", help="replace an existing FILE")
    return parser


def audit_runs(
    folders: Sequence[Path],
    sections: Sequence[str],
    *,
    is_given: bool = True,
    images: int = 300,
    source: str | None = None,
    root: str | None = None,
) -> Audit:
    """Audit runs on their test images.

    Args:
        folders: Run folders, at least one.
        sections: Keys of `SECTIONS`.
        is_given: Whether a section that cannot be had is an error; else it is left out with a note.
        images: At most so many test images of each run.
        source: The data set, where it is not the one that the runs name.
        root: The folder of data sets, where it is not the one that the runs name.

    Raises:
        UsageError: If a section cannot be had, or a head cannot be explained.
        DataError: If the images are not there, or are of other classes.
        ArtifactError: If a folder is no run, or cannot be read.
    """
    comparison = compare_runs(folders)
    checkpoints = {run.folder: load_checkpoint(run.folder / BEST) for group in comparison.groups for run in group.runs}
    groups = [group.runs for group in comparison.groups]
    reasons = {section: reason for section in sections if (reason := _why_not(section, groups, checkpoints))}
    if is_given and reasons:
        raise UsageError(next(iter(reasons.values())))
    wanted = [section for section in sections if section not in reasons]
    images_of = _Images(images, source, root)
    found = []
    for group in comparison.groups:
        figures, subjects = [], list[Subject]()
        for run in tqdm(group.runs, desc="auditing", unit="run", disable=None, delay=1, leave=False):
            subject = images_of.subject(run, checkpoints[run.folder])
            figures.append(audit_subject(subject, wanted))
            subjects.append(_on_images_of(subjects[0], subject) if subjects else subject)
        pairs = combinations(subjects, 2) if "seeds" in wanted else ()
        found.append(AuditedGroup(group, tuple(figures), tuple(audit_pair(*pair) for pair in pairs)))
    notes = [f"{section} is left out: {reason}" for section, reason in reasons.items()]
    return Audit(tuple(found), images_of.most, (*notes, *comparison.warnings))


def _why_not(section: str, groups: Sequence[Sequence[Run]], checkpoints: Mapping[Path, Checkpoint]) -> str | None:
    """Return why a section cannot be had of groups of runs; ``None`` if it can."""
    try:
        if section == "references":
            need_captum()
        if section == "pixels":
            for checkpoint in checkpoints.values():
                need_maps(checkpoint.model)
    except UsageError as error:
        return str(error)
    if section == "seeds" and all(len(runs) < 2 for runs in groups):
        return (
            "no two of the runs differ in nothing but their seeds; give runs of one recipe from several seeds, such as "
            "tnn-train sweep makes"
        )
    heads = [checkpoint.config.head for checkpoint in checkpoints.values()]
    if section == "prototypes" and not any(HEADS[head].prototype_view is not Head.prototype_view for head in heads):
        return f"{a_head(heads[0])} has no prototypes; leave prototypes out of --measures"
    return None


class _Images:
    """The test images of runs, each data set loaded once.

    Args:
        count: At most so many of each.
        source: The data set, where it is not the one that the runs name.
        root: The folder of data sets, where it is not the one that the runs name.

    Attributes:
        most: The largest number of images of a run.
    """

    def __init__(self, count: int, source: str | None, root: str | None) -> None:
        self._count = count
        self._given = {name: value for name, value in (("source", source), ("root", root)) if value is not None}
        self._loaded: dict[DataConfig, ImageData] = {}
        self.most = 0

    def subject(self, run: Run, checkpoint: Checkpoint) -> Subject:
        """Return the model of a run with its test images.

        Raises:
            DataError: If they are of other classes than the run.
            ArtifactError: If the run does not tell its data.
        """
        config = recorded_data(run.results.config, run.folder, **self._given)
        if config not in self._loaded:
            self._loaded[config] = load_data(config)
        data = self._loaded[config]
        if data.class_names != run.results.class_names:
            raise DataError(
                f"{run.folder} knows the classes {', '.join(run.results.class_names[:5])}, and {data.name} has "
                f"{', '.join(data.class_names[:5])}; name its own data with --data and --data-root"
            )
        chosen = data.test.subset(even_sample(len(data.test), self._count))
        images = ImageSet(chosen.sources, chosen.labels, checkpoint.preprocessing)
        self.most = max(self.most, len(images))
        return Subject(checkpoint, images.sample(len(images)), chosen.labels)


def _on_images_of(first: Subject, subject: Subject) -> Subject:
    """Return a model with the images of another one."""
    if np.array_equal(first.images, subject.images):
        return subject
    return dataclasses.replace(subject, images=first.images, labels=first.labels)
