"""Batched inference of exported Tversky and linear classifiers, without torch.

from tnn_runtime import Classifier

with Classifier.load("runs/demo/bundle-tversky") as classifier:
    print(classifier.predict(["digit.png"], top_k=3))

The names below are loaded on first use, so that the commands hear an interrupt from their first moment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tnn_runtime.lazy import lazy_names

if TYPE_CHECKING:
    from tnn_runtime.answers.results import Prediction
    from tnn_runtime.bundle.manifest import Manifest
    from tnn_runtime.classifier import Classifier, Health
    from tnn_runtime.errors import (
        ArtifactError,
        ClassifierClosed,
        DeadlineExceeded,
        DeviceLost,
        EngineError,
        InputError,
        NotAnswered,
        OutputExistsError,
        ProviderUnavailable,
        QueueFull,
        RunError,
        SelfCheckError,
        SignatureError,
        TnnError,
        UsageError,
    )
    from tnn_runtime.explain.result import Explanation, FeatureParts, NearPrototype, Part
    from tnn_runtime.explain.tversky import TverskyExplanation
    from tnn_runtime.queue.metrics import Distribution, MetricsSnapshot
    from tnn_runtime.version import __version__

__all__ = [
    "ArtifactError",
    "Classifier",
    "ClassifierClosed",
    "DeadlineExceeded",
    "DeviceLost",
    "Distribution",
    "EngineError",
    "Explanation",
    "FeatureParts",
    "Health",
    "InputError",
    "Manifest",
    "MetricsSnapshot",
    "NearPrototype",
    "NotAnswered",
    "OutputExistsError",
    "Part",
    "Prediction",
    "ProviderUnavailable",
    "QueueFull",
    "RunError",
    "SelfCheckError",
    "SignatureError",
    "TnnError",
    "TverskyExplanation",
    "UsageError",
    "__version__",
]

__getattr__ = lazy_names(
    __name__,
    {
        "classifier": ["Classifier", "Health"],
        "errors": [
            "ArtifactError",
            "ClassifierClosed",
            "DeadlineExceeded",
            "DeviceLost",
            "EngineError",
            "InputError",
            "NotAnswered",
            "OutputExistsError",
            "ProviderUnavailable",
            "QueueFull",
            "RunError",
            "SelfCheckError",
            "SignatureError",
            "TnnError",
            "UsageError",
        ],
        "explain.result": ["Explanation", "FeatureParts", "NearPrototype", "Part"],
        "explain.tversky": ["TverskyExplanation"],
        "bundle.manifest": ["Manifest"],
        "queue.metrics": ["Distribution", "MetricsSnapshot"],
        "answers.results": ["Prediction"],
        "version": ["__version__"],
    },
)
