"""What a caller may ask to know about an image, and what makes it of the outputs for a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Generic, Literal, NamedTuple, TypeAlias, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from tnn_runtime.answers.outputs import Outputs
from tnn_runtime.answers.reject import check_threshold
from tnn_runtime.answers.results import Answers, Predictions
from tnn_runtime.bundle.manifest import FEATURE_MAPS, Manifest
from tnn_runtime.errors import UsageError
from tnn_runtime.explain import Explainer, why_unexplained
from tnn_runtime.explain.result import Explanation
from tnn_runtime.explain.rival import rival_index
from tnn_runtime.options import at_least_one, shown
from tnn_runtime.queue.metrics import Metrics

__all__ = ["NUM_FEATURES", "NUM_PROTOTYPES", "Answer", "AnswerName", "Replies", "Reply"]

NUM_FEATURES, NUM_PROTOTYPES = 5, 3
"""How much of each class is explained if nothing is said."""

T = TypeVar("T")

AnswerName: TypeAlias = Literal["prediction", "logits", "embedding", "explanation", "all"]
"""What `Classifier.submit` can be asked for."""


@dataclass(frozen=True, eq=False)
class Answer:
    """All that a classifier says of one image, from one run of the model.

    Args:
        predictions: The best classes, whether the image is rejected, and its reject score.
        logits: float32 ``[classes]``.
        embedding: What the head takes, float32 ``[D]``, or a map ``[D, h, w]``.
        explanations: Of the classes in ``predictions``, as `Classifier.explain` returns them; ``None`` if the bundle
            cannot be explained.
    """

    predictions: Predictions
    logits: NDArray[np.float32]
    embedding: NDArray[np.float32]
    explanations: list[Explanation] | None


class Reply(NamedTuple, Generic[T]):
    """How the answer to one image is made.

    Args:
        make: Makes it from the answers for a batch and the row of the image.
        is_slow: Whether that takes so long that a batch should not wait for it.
        extra: The other outputs of the graph that it is made from, too.
    """

    make: Callable[[Answers, int], T]
    is_slow: bool = False
    extra: tuple[str, ...] = ()


class Replies:
    """Makes replies for one bundle, after a look at what is asked.

    Args:
        manifest: The manifest of the bundle.
        explainer: What explains its logits; ``None`` if it cannot be explained.
        metrics: Where rejected images are counted.
    """

    def __init__(self, manifest: Manifest, explainer: Explainer | None, metrics: Metrics) -> None:
        self._manifest = manifest
        self._explainer = explainer
        self._metrics = metrics

    @cached_property
    def missing(self) -> Mapping[str, str]:
        """What of `Classifier.abilities` the bundle lacks, each with the reason and what to do."""
        found: dict[str, str] = {}
        try:
            check_threshold(self._manifest.reject)
        except UsageError as error:
            found["reject"] = str(error)
        if self._explainer is None:
            found |= dict.fromkeys(("explain", "maps"), why_unexplained(self._manifest))
        elif self._manifest.feature_maps is None:
            found["maps"] = f"a bundle without the output {FEATURE_MAPS}; export it again with --outputs {FEATURE_MAPS}"
        return MappingProxyType(found)

    @cached_property
    def _known(self) -> tuple[str, ...]:
        """The names of the outputs beside logits and embedding."""
        return tuple(spec.name for spec in self._manifest.extra_outputs)

    def named(
        self,
        name: str,
        top_k: int,
        reject: bool,
        num_features: int,
        num_prototypes: int,
        against: str | None,
        maps: bool,
    ) -> Reply[Any]:
        """Return the reply that has one of the names of `AnswerName`, or that of an output of the graph.

        The other arguments are those of `Classifier.submit`.

        Raises:
            UsageError: If an argument is out of its range, or the bundle lacks what the answer needs.
        """
        predictions = self.predictions(top_k, reject)
        if name == "prediction":
            return predictions
        if name == "logits":
            return logits
        if name == "embedding":
            return embedding
        if name == "explanation":
            return self.explanations(top_k, num_features, num_prototypes, against, maps)
        if name != "all":
            return self._extra(name)
        explain = None
        if maps or self._explainer is not None:
            explain = self.explanations(top_k, num_features, num_prototypes, against, maps).make

        def everything(answers: Answers, row: int) -> Answer:
            return Answer(
                predictions.make(answers, row),
                logits.make(answers, row),
                embedding.make(answers, row),
                None if explain is None else explain(answers, row),
            )

        return Reply(everything, explain is not None, (FEATURE_MAPS,) if maps else ())

    def predictions(self, top_k: int, reject: bool) -> Reply[Predictions]:
        """Return the reply with the best classes.

        Raises:
            UsageError: If an argument is out of its range, or the bundle has no threshold to reject by.
        """
        at_least_one(top_k=top_k)
        if reject:
            check_threshold(self._manifest.reject)

        def make(answers: Answers, row: int) -> Predictions:
            found = answers.predictions(row, top_k, reject)
            if found.rejected:
                self._metrics.rejected()
            return found

        return Reply(make)

    def explanations(
        self, top_k: int, num_features: int, num_prototypes: int, against: str | None, maps: bool
    ) -> Reply[list[Explanation]]:
        """Return the reply with the explanations of the best classes.

        Raises:
            UsageError: If an argument is out of its range, or the bundle cannot be explained, or has no feature maps
                that are asked for.
        """
        at_least_one(top_k=top_k, num_features=num_features, num_prototypes=num_prototypes)
        explainer = self._explainer
        if explainer is None:
            raise UsageError(why_unexplained(self._manifest))
        rival = rival_index(against, self._manifest.class_names)
        if maps and "maps" in self.missing:
            raise UsageError(f"got maps={shown(maps)} for {self.missing['maps']}, or leave maps out")

        def make(answers: Answers, row: int) -> list[Explanation]:
            places = answers.extra[FEATURE_MAPS][[row]] if maps else None
            one: Sequence[list[Explanation]] = explainer(
                answers.embedding[[row]], answers.logits[[row]], top_k, num_features, num_prototypes, rival, places
            )
            return one[0]

        return Reply(make, True, (FEATURE_MAPS,) if maps else ())

    def outputs(self, extra: tuple[str, ...], explain: int, maps: bool) -> Reply[tuple[Outputs, list[Explanation]]]:
        """Return the reply with what the model gives, as a batch of one, and the explanations of the best classes.

        Args:
            extra: Other outputs of the graph that are to be there, as `extra_names` returns them.
            explain: How many classes to explain; 0 for none.
            maps: Whether explanations have maps.

        Raises:
            UsageError: As `explanations`.
        """
        if not explain:
            return Reply(lambda answers, row: (answers.outputs.rows([row], extra), []), extra=extra)
        explanations = self.explanations(explain, NUM_FEATURES, NUM_PROTOTYPES, None, maps)
        return Reply(
            lambda answers, row: (answers.outputs.rows([row], extra), explanations.make(answers, row)),
            explanations.is_slow,
            (*extra, *explanations.extra),
        )

    def extra_names(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return names of outputs that the graph has beside logits and embedding, each once; without any, all.

        Raises:
            UsageError: If it lacks one; the message lists those that it has.
        """
        for name in names:
            if name not in self._known:
                has = "none beside logits and embedding:"
                if self._known:
                    has = f"{', '.join(self._known)}: name one of these, or"
                raise UsageError(f"the bundle has no output {shown(name)}; it has {has} export it again with --outputs")
        return tuple(dict.fromkeys(names or self._known))

    def _extra(self, name: str) -> Reply[NDArray[np.float32]]:
        """Return the reply with an output of the graph that is not in `AnswerName`."""
        if name not in self._known:
            expected = ", ".join([*get_args(AnswerName), *self._known])
            raise UsageError(f"answer is {shown(name)}; expected one of {expected}")
        return Reply(lambda answers, row: answers.extra[name][row].copy(), extra=(name,))


logits: Reply[NDArray[np.float32]] = Reply(lambda answers, row: answers.logits[row].copy())
"""The reply with the logits, float32 ``[classes]``."""

embedding: Reply[NDArray[np.float32]] = Reply(lambda answers, row: answers.embedding[row].copy())
"""The reply with what the head takes, float32 ``[D]``, or a map ``[D, h, w]``."""
