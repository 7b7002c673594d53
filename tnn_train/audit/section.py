"""What the report of a training says of its explanations."""

from __future__ import annotations

from tnn_train.audit.figures import audit_subject
from tnn_train.audit.measures import MEASURES
from tnn_train.audit.removal import NAMED
from tnn_train.audit.subject import Subject
from tnn_train.heads.description import Section, Table, Text

__all__ = ["audit_section", "too_large_to_audit"]

_TITLE = "What explanations are worth"
_SECTIONS = ("features", "explanations")


def audit_section(subject: Subject) -> Section:
    """Return the section of a report that tells what the named features are worth, and how much there is to read.

    Args:
        subject: The model and some test images.

    Raises:
        UsageError: If the head has no explanations.
    """
    values = audit_subject(subject, _SECTIONS).values
    rows = [
        (measure.title, format(values[name], measure.form), measure.definition)
        for name, measure in MEASURES.items()
        if name in values
    ]
    about = Text(
        f"An explanation names the {NAMED} features that speak most for a class over its runner-up. This is what "
        f"becomes of the lead without them, on {len(subject.images)} test images, and how much there is to read. "
        "tnn-train audit measures more, and compares runs."
    )
    return Section(_TITLE, [about, Table(rows, ("measure", "value", "definition"), prose=(2,))])


def too_large_to_audit() -> Section:
    """Return the section of a report on a head whose explanations take too long to be audited at each training."""
    return Section(
        _TITLE, [Text("The explanations of this head are too large to audit here; tnn-train audit does it.")]
    )
