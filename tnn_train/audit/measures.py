"""All measures of an audit: what each is, where it comes from, and how it is printed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from tnn_train.audit.removal import DRAWS, NAMED
from tnn_train.fields import choose

__all__ = ["MEASURES", "SECTIONS", "Measure", "measures_of", "sections_of"]

SECTIONS = {
    "features": "what the named features are worth",
    "explanations": "how much there is to read",
    "shifts": "small shifts of the image",
    "pixels": "what the pixels are worth that maps show",
    "references": "the same with other attributions, for comparison",
    "prototypes": "prototypes",
    "seeds": "across seeds",
}
"""What can be audited, each with a title."""


class Measure(NamedTuple):
    """One figure of an audit.

    Args:
        section: A key of `SECTIONS`.
        title: What it is called in tables.
        form: How it is printed, a format specification.
        definition: What it is, in a sentence.
        source: Where it is from; empty for what this project defines.
    """

    section: str
    title: str
    form: str
    definition: str
    source: str = ""


_PETSIUK = "Petsiuk et al. 2018, arXiv 1806.07421"
_SCHLINGE = "Schlinge et al. 2025, arXiv 2507.06819"
_NAUTA = "Nauta et al. 2023, arXiv 2201.08164"

MEASURES = {
    "named_win": Measure(
        "features",
        f"{NAMED} named features beat {NAMED} random ones",
        ".1%",
        f"share of images, and of {DRAWS} random choices for each, where removing the {NAMED} features that speak most "
        "for the class over its runner-up drops the margin more than removing as many random ones",
        "Samek et al. 2017, arXiv 1509.06321",
    ),
    "named_drop": Measure(
        "features",
        "margin lost without the named features",
        ".2f",
        f"mean drop of the margin, the logit of the class minus that of the runner-up, without the {NAMED} named "
        "features",
        _PETSIUK,
    ),
    "random_drop": Measure(
        "features",
        "margin lost without random features",
        ".2f",
        "the same without as many random features, out of those that change the margin at all",
        _PETSIUK,
    ),
    "margin": Measure("features", "margin", ".2f", "mean margin with all features"),
    "logit_win": Measure(
        "features",
        "strongest of the logit beat random ones",
        ".1%",
        f"as the first one, for the {NAMED} features with the largest parts of the logit of the class alone, whatever "
        "they do for the runner-up",
    ),
    "sufficient": Measure(
        "features",
        "named features suffice",
        ".1%",
        "share of images whose class stays ahead of its runner-up with the named features alone",
        _NAUTA,
    ),
    "deletion": Measure(
        "features",
        "area under the deletion curve",
        ".3f",
        "mean margin, as a share of that with all features, while features are removed one by one, those first that do "
        "most; less is better, and it is below 0 where the runner-up overtakes",
        _PETSIUK,
    ),
    "random_deletion": Measure(
        "features", "same, in random order", ".3f", "the same with features in random order", _PETSIUK
    ),
    "size": Measure(
        "explanations",
        "features that count",
        ".1f",
        "mean number of features whose effect on the margin is above a tenth of the largest one",
        _SCHLINGE,
    ),
    "entropy": Measure(
        "explanations",
        "entropy in bits",
        ".2f",
        "mean entropy of how the effects on the margin are shared out among the features",
        "Bhatt et al. 2020, arXiv 2005.00631",
    ),
    "sparsity": Measure(
        "explanations",
        "sparsity (Gini)",
        ".2f",
        "mean Gini index of the effects on the margin: 0 if all features do the same, near 1 if one does everything",
        "Chalasani et al. 2020, arXiv 1810.06583",
    ),
    "duplicate_features": Measure(
        "explanations",
        "duplicate features",
        ".1%",
        "share of features whose values correlate by 0.99 or more with those of another one, over the images",
        _SCHLINGE,
    ),
    "same_class": Measure(
        "shifts",
        "class stays",
        ".1%",
        "share of images whose class stays when they are moved by a pixel, the mean over four directions",
        _SCHLINGE,
    ),
    "same_named": Measure(
        "shifts",
        "named features stay (Jaccard)",
        ".2f",
        f"features among the {NAMED} named both before and after, out of those named in either, where class and "
        "runner-up stay",
        _NAUTA,
    ),
    "map_win": Measure(
        "pixels",
        "strongest tenth of the map beats a random tenth",
        ".1%",
        "share of images, and of random choices for each, where the margin drops more without the tenth of the pixels "
        "that is strongest in the map of the margin than without the same pixels moved to a random place; a removed "
        "pixel becomes the mean colour that the model normalises with",
        _PETSIUK,
    ),
    "map_scattered_win": Measure(
        "pixels", "same, against scattered pixels", ".1%", "the same against pixels that are scattered at random"
    ),
    "map_drop": Measure(
        "pixels", "margin lost without the tenth", ".2f", "mean drop of the margin without it", _PETSIUK
    ),
    "map_random_drop": Measure(
        "pixels", "margin lost without a random tenth", ".2f", "mean drop without the pixels that were moved", _PETSIUK
    ),
    "saliency_win": Measure(
        "references",
        "saliency beats a random tenth",
        ".1%",
        "as for the map, with the size of the gradient of the margin (Captum's Saliency)",
        "Simonyan et al. 2013, arXiv 1312.6034",
    ),
    "saliency_drop": Measure(
        "references", "margin lost without its tenth", ".2f", "mean drop of the margin without the tenth of saliency"
    ),
    "integrated_win": Measure(
        "references",
        "integrated gradients beat a random tenth",
        ".1%",
        "as for the map, with gradients of the margin integrated from the mean colour (Captum's IntegratedGradients)",
        "Sundararajan et al. 2017, arXiv 1703.01365",
    ),
    "integrated_drop": Measure(
        "references",
        "margin lost without their tenth",
        ".2f",
        "mean drop of the margin without the tenth of integrated gradients",
    ),
    "occlusion_win": Measure(
        "references",
        "occlusion beats a random tenth",
        ".1%",
        "as for the map, with what the margin loses without each of 4x4 windows (Captum's Occlusion)",
        "Zeiler and Fergus 2014, arXiv 1311.2901",
    ),
    "occlusion_drop": Measure(
        "references", "margin lost without its tenth", ".2f", "mean drop of the margin without the tenth of occlusion"
    ),
    "centrality": Measure(
        "prototypes",
        "centrality",
        ".2f",
        "mean cosine of a prototype with the images of its class, minus that with the others",
    ),
    "centred": Measure(
        "prototypes",
        "centrality, centred",
        ".2f",
        "the same after the mean of the images is taken off the images, and that of the prototypes off the prototypes: "
        "what all classes have in common tells none apart",
    ),
    "nearest_margin": Measure(
        "prototypes",
        "margin to the nearest class",
        ".2f",
        "mean cosine with the images of its class, minus the largest mean cosine with those of another class",
    ),
    "typicality": Measure(
        "prototypes",
        "typicality",
        ".2f",
        "mean cosine with the images of its class, as a multiple of their mean cosine with each other; above 1 a "
        "prototype is more central than its members",
    ),
    "purity": Measure(
        "prototypes",
        "10 nearest images are of its class",
        ".1%",
        "share of the 10 images that are most like a prototype, by the head's own measure, that are of its class",
        "Nauta et al. 2023, PIP-Net, CVPR",
    ),
    "separation": Measure(
        "prototypes",
        "distance between prototypes",
        ".2f",
        "mean cosine distance of prototypes of different classes",
        _SCHLINGE,
    ),
    "duplicate_prototypes": Measure(
        "prototypes",
        "duplicate prototypes",
        ".1%",
        "share of prototypes with a cosine of 0.99 or more to another one",
        _SCHLINGE,
    ),
    "activation_entropy": Measure(
        "prototypes",
        "activation entropy in bits",
        ".2f",
        "mean entropy of the similarities of a prototype to the images, counted in ten bins: at 0 it tells none apart",
        _SCHLINGE,
    ),
    "stability": Measure(
        "seeds",
        "stability of prototypes",
        ".2f",
        "mean correlation of the similarities of paired prototypes to the same images",
        "pairs: Kuhn 1955",
    ),
    "stability_within": Measure(
        "seeds",
        "same, within classes",
        ".2f",
        "the same less the mean of each class: whether paired prototypes order the images of a class alike",
    ),
    "paired_by_class": Measure(
        "seeds", "pairs of the same class", ".1%", "share of paired prototypes that speak for the same class"
    ),
    "stability_features": Measure(
        "seeds",
        "stability of features",
        ".2f",
        "mean absolute correlation of the values of paired features over the same images",
    ),
}
"""The measures by name, in the order of tables."""


def measures_of(section: str) -> dict[str, Measure]:
    """Return the measures of a section."""
    return {name: measure for name, measure in MEASURES.items() if measure.section == section}


def sections_of(names: Iterable[str]) -> tuple[str, ...]:
    """Return sections in the order of tables, each once.

    Args:
        names: As a person gave them.

    Raises:
        UsageError: If one is unknown.
    """
    wanted = set(names)
    for name in wanted:
        choose("--measures", name, SECTIONS)
    return tuple(section for section in SECTIONS if section in wanted)
