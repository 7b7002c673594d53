"""Batched inference of exported Tversky and linear classifiers, without torch.

from tnn_runtime import Classifier

with Classifier.load("runs/demo/bundle-tversky") as classifier:
    print(classifier.predict(["digit.png"], top_k=3))

The names below are loaded on first use, so that the commands can be interrupted from their first moment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tnn_runtime import errors
from tnn_runtime.lazy import attach

if TYPE_CHECKING:
    from tnn_runtime.answers.results import Prediction as Prediction
    from tnn_runtime.answers.results import Predictions as Predictions
    from tnn_runtime.bundle.manifest import Manifest as Manifest
    from tnn_runtime.classifier import Classifier as Classifier
    from tnn_runtime.classifier import Health as Health
    from tnn_runtime.deployment import Deployment as Deployment
    from tnn_runtime.errors import *  # noqa: F403
    from tnn_runtime.explain.result import Contrast as Contrast
    from tnn_runtime.explain.result import Explanation as Explanation
    from tnn_runtime.explain.result import FeatureParts as FeatureParts
    from tnn_runtime.explain.result import Maps as Maps
    from tnn_runtime.explain.result import NearPrototype as NearPrototype
    from tnn_runtime.explain.result import Part as Part
    from tnn_runtime.explain.tversky import TverskyExplanation as TverskyExplanation
    from tnn_runtime.images.limits import Limits as Limits
    from tnn_runtime.queue.metrics import Distribution as Distribution
    from tnn_runtime.queue.metrics import MetricsSnapshot as MetricsSnapshot
    from tnn_runtime.replies import Answer as Answer
    from tnn_runtime.version import __version__ as __version__
else:
    __getattr__, __dir__, __all__ = attach(
        __name__,
        {
            "answers.results": ["Prediction", "Predictions"],
            "bundle.manifest": ["Manifest"],
            "classifier": ["Classifier", "Health"],
            "deployment": ["Deployment"],
            "errors": errors.__all__,
            "explain.result": ["Contrast", "Explanation", "FeatureParts", "Maps", "NearPrototype", "Part"],
            "explain.tversky": ["TverskyExplanation"],
            "images.limits": ["Limits"],
            "queue.metrics": ["Distribution", "MetricsSnapshot"],
            "replies": ["Answer"],
            "version": ["__version__"],
        },
    )
