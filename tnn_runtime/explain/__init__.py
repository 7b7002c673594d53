"""Why a classifier answers what it answers: one file a head family, each with an entry in `EXPLAINERS`.

What a family has to provide is in `tnn_runtime.explain.base`, and what it returns in `tnn_runtime.explain.result`.
"""

from __future__ import annotations

from tnn_runtime.bundle.manifest import HEAD_FILE, MANIFEST_FILE, Manifest
from tnn_runtime.bundle.opened import Bundle
from tnn_runtime.errors import ArtifactError
from tnn_runtime.explain.base import Explainer
from tnn_runtime.explain.linear import LinearExplainer
from tnn_runtime.explain.logic import LogicExplainer
from tnn_runtime.explain.lvq import LvqExplainer
from tnn_runtime.explain.matching import MatchingExplainer
from tnn_runtime.explain.parts import PartsExplainer
from tnn_runtime.explain.tversky import TverskyExplainer
from tnn_runtime.text import a_head, printable

__all__ = ["EXPLAINERS", "Explainer", "open_explainer", "why_unexplained"]

EXPLAINERS: dict[str, type[Explainer]] = {
    "linear": LinearExplainer,
    "tversky": TverskyExplainer,
    "lvq": LvqExplainer,
    "parts": PartsExplainer,
    "matching": MatchingExplainer,
    "logic": LogicExplainer,
}
"""The families by name."""


def open_explainer(bundle: Bundle) -> Explainer | None:
    """Make the explainer of a bundle.

    Args:
        bundle: The bundle.

    Returns:
        The explainer, or ``None`` if the bundle cannot be explained, for the reason that `why_unexplained` tells.

    Raises:
        ArtifactError: If the manifest does not list a file that the family needs, or it cannot be used.
    """
    manifest, folder = bundle.manifest, bundle.folder
    family = manifest.model["head"]
    if family not in EXPLAINERS:
        return None
    explainer = EXPLAINERS[family]
    if HEAD_FILE in manifest.files:
        options, size = manifest.model.get(family.replace("-", "_")), manifest.outputs[1].shape[1]
        content = bundle.contents[HEAD_FILE]
        made = explainer(folder / HEAD_FILE, options, manifest.class_names, size or 0, content, manifest.temperature)
        if manifest.is_on_pixels:
            made.pixels = manifest.preprocessing
        return made
    if explainer.needs_file:
        raise ArtifactError(f"{folder / MANIFEST_FILE} does not list {HEAD_FILE}; export the bundle again")
    return None


def why_unexplained(manifest: Manifest) -> str:
    """Return why a bundle has no explainer, in one line that tells what to do."""
    family = manifest.model["head"]
    if members := manifest.model.get("members"):
        names = ", ".join(printable(str(member.get("name"))) for member in members)
        return f"got an ensemble, which has no explanation of its own; explain with the bundles of its members: {names}"
    if family not in EXPLAINERS:
        return f"got a bundle with {a_head(family)}; this version explains {', '.join(EXPLAINERS)}: upgrade tnn-deploy"
    return f"got a bundle with {a_head(family)} and no {HEAD_FILE}, as older versions exported it: export it again"
