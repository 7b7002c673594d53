"""Heads that find parts of images, and decide by how much of each part an image has."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from tnn_runtime.errors import UsageError
from tnn_runtime.explain.parts import part_names
from tnn_runtime.text import a_head
from tnn_train.fields import Field, FieldError
from tnn_train.heads.base import Head, PrototypeView
from tnn_train.heads.description import Sample, Section
from tnn_train.heads.feature_name import FeatureName
from tnn_train.heads.new_class import Company, inserted
from tnn_train.heads.parts.channels import VIEWS, ChannelDetector
from tnn_train.heads.parts.config import KINDS, OF_KIND, PIPNET, PROTOPNET, PartsConfig
from tnn_train.heads.parts.last_layer import LastLayer, fit_last_layer
from tnn_train.heads.parts.patches import PatchDetector
from tnn_train.heads.parts.places import EachPlace, largest, smallest
from tnn_train.heads.parts.projection import NOWHERE, changeable, project, start_patches, strongest_places
from tnn_train.heads.precision import full_precision

__all__ = ["PartsHead"]

_DEPTH = 128
_ALIGNMENT = 0.5
_STEPS = 4
_UNKNOWN = -1.0

_RATE = 50.0
"""What the learning rate of PIP-Net's last layer is multiplied by: its weights start near 1 for all classes alike. With
the default rate that is 0.05, as in the paper."""

_SILENT = 0.1
"""The share of training images in which no part fires from which on a note says so."""

_logger = logging.getLogger(__name__)


class PartsHead(Head):
    """Logits that are weighted sums of how far each part is in the image: ``weight @ max over places + bias``.

    Args:
        in_features: D, the size of the map at each place.
        num_classes: C.
        config: The form.

    Attributes:
        detector: Maps to how far each place is each part.
        weight: ``[C, P]``. In PIP-Net what is below 0 counts as 0.
        bias: ``[C]``; ``None`` in PIP-Net, whose logits are 0 where no part is.
        sources: The training image, row and column of the map that each part is a patch of, int64 ``[P, 3]``, -1 for
            parts that are none: those of an untrained head, and of a class that was added.
        steps: The accuracy on the training images as the training left it, after the projection, and after the fit of
            the last layer; and the share of them whose answer the projection could change at most. -1 if unknown.
    """

    family = "parts"
    takes = "map"
    evidence_meanings: ClassVar[Mapping[str, str]] = {"similarities": "to each part, at the place most like it"}
    reject_score = "logit"

    sources: Tensor
    steps: Tensor

    def __init__(self, in_features: int, num_classes: int, config: PartsConfig) -> None:
        super().__init__()
        self.in_features, self.num_classes, self.config = in_features, num_classes, config
        self.detector: PatchDetector | ChannelDetector
        if config.kind == PROTOPNET:
            self.detector = PatchDetector(in_features, num_classes, config)
        else:
            self.detector = ChannelDetector(in_features, num_classes, config)
        weight = self.detector.first_weight(num_classes)
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.zeros(num_classes)) if config.kind == PROTOPNET else None
        self.register_buffer("sources", torch.full((weight.shape[1], 3), NOWHERE))
        self.register_buffer("steps", torch.full((_STEPS,), _UNKNOWN))

    @classmethod
    def from_config(cls, in_features: int, num_classes: int, options: PartsConfig | None) -> Self:
        """Build an untrained head; ``None`` for the default form."""
        return cls(in_features, num_classes, options or PartsConfig())

    @property
    def options(self) -> PartsConfig:
        """The form."""
        return self.config

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[N, C]`` of maps ``x [N, D, h, w]``, computed in float64 outside of the training."""
        with full_precision(x):
            return self._last_layer(self._parts(x)).float()

    def similarities(self, x: Tensor) -> Tensor:
        """Return how far each part is in each image, ``[N, P]``."""
        with full_precision(x):
            return self._parts(x).float()

    def feature_values(self, x: Tensor) -> Tensor:
        """Return the similarities: parts are the features."""
        return self.similarities(x)

    @property
    def feature_floor(self) -> float:
        """0; none where similarities are distances below 0."""
        return 0.0 if self.config.kind == PIPNET or self.config.similarity == "log" else -math.inf

    def feature_maps(self, maps: Tensor, x: Tensor) -> Tensor:
        """Return how far each place is each part, ``[N, P, h, w]``."""
        with full_precision(x):
            return self.detector.maps(self._wide(maps)).float()

    def pool(self, maps: Tensor) -> Tensor:
        """Return the largest value over all places."""
        return largest(maps)

    def evidence(self, x: Tensor, switches: Tensor | None = None) -> dict[str, Tensor]:
        """Return the ``similarities``."""
        return {"similarities": self.similarities(x)}

    def arrays(self) -> dict[str, Tensor]:
        """Return the last layer, the sources, and what similarities are computed with."""
        layer, detector = self._last_layer, self.detector
        bias = torch.zeros(self.num_classes) if layer.bias is None else layer.bias
        found = {"weight": layer.weight, "bias": bias, "sources": self.sources}
        places = [part for part in detector.add_on if isinstance(part, EachPlace)]
        for number, part in enumerate(places):
            found |= {f"place_weight_{number}": part.weight, f"place_bias_{number}": part.bias}
        if isinstance(detector, PatchDetector):
            found |= {"prototypes": detector.prototypes, "owners": detector.owners}
        return found

    # Training

    @classmethod
    def resolve(
        cls,
        options: PartsConfig,
        class_names: Sequence[str],
        in_features: int,
        *,
        is_frozen: bool,
        is_pixels: bool = False,
    ) -> PartsConfig:
        """Return the options with the size of prototypes, the sparsity, and no alignment where there are no views.

        Raises:
            FieldError: If prototypes are larger than the map at each place, or views are asked for where none are.
        """
        depth, alignment = options.depth, options.alignment
        if options.kind == PROTOPNET:
            if options.add_on and depth is not None and depth > in_features:
                raise FieldError(
                    Field(PartsConfig, "depth"),
                    f" is {depth}, and the backbone's map has {in_features} values at each place; expected at most "
                    "these",
                )
            depth = min(depth or _DEPTH, in_features) if options.add_on else None
        elif is_frozen and alignment:
            raise FieldError(
                *(Field(PartsConfig, "alignment"), f" is {alignment:g}, which compares two views of an image, and a "),
                *("frozen backbone sees but one; leave ", Field(PartsConfig, "alignment"), " out"),
            )
        elif alignment is None:
            alignment = 0.0 if is_frozen else _ALIGNMENT
        if options.kind == PIPNET and not options.num_parts and in_features < 2:
            raise FieldError(
                Field(PartsConfig, "num_parts"),
                f" is missing, and the backbone's map has {in_features} channel; expected at least 2 parts",
            )
        return dataclasses.replace(options, depth=depth, alignment=alignment, sparsity=options.strength)

    @classmethod
    def unused(cls, options: PartsConfig, resolved: PartsConfig) -> Iterator[tuple[str, str]]:
        """Yield the options of the other kind."""
        for kind in KINDS:
            yield from ((name, "kind") for name in OF_KIND[kind] if kind != options.kind)
        if options.kind == PROTOPNET and not options.add_on:
            yield "depth", "add_on"
        if options.kind == PROTOPNET and options.similarity == "linear":
            yield "epsilon", "similarity"

    @classmethod
    def views(cls, options: PartsConfig) -> int:
        """Return 2 where parts are aligned between views, else 1."""
        return VIEWS if options.kind == PIPNET and options.alignment != 0 else 1

    def loss(self, x: Tensor, logits: Tensor, targets: Tensor, weight: Tensor | None, label_smoothing: float) -> Tensor:
        """Return the cross-entropy with the terms of the kind.

        ProtoPNet: plus ``cluster * d own - separation * d other``, the distances to the nearest prototype of the class
        and of any other one. PIP-Net: the cross-entropy of ``log(1 + logit²)``, which drives weights apart, plus the
        alignment and the presence of parts.
        """
        if isinstance(self.detector, ChannelDetector):
            loss = super().loss(x, torch.log1p(logits.square()), targets, weight, label_smoothing)
            return loss + self.detector.terms(x)
        shares = functional.one_hot(targets, logits.shape[1]).to(x) if targets.ndim == 1 else targets.to(x)
        counted = shares if weight is None else shares * weight
        total = counted.sum() if targets.ndim == 1 else len(x)
        terms = self.detector.terms(x, counted).sum() / total
        return super().loss(x, logits, targets, weight, label_smoothing) + terms

    def rates(self) -> Mapping[str, float]:
        """Return that the last layer of ProtoPNet stays as it is while prototypes are learned; PIP-Net's runs ahead."""
        return {"weight": 0.0, "bias": 0.0} if self.config.kind == PROTOPNET else {"weight": _RATE}

    def undecayed(self) -> Collection[str]:
        """Return that prototypes, and weights that count how much there is of a part, do not decay."""
        return ("weight", "detector.prototypes") if self.config.kind == PROTOPNET else ("weight",)

    def start(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Put the prototypes at patches of training images, unless they start at random."""
        if isinstance(self.detector, PatchDetector) and self.config.start == "patches":
            self.detector.prototypes.copy_(start_patches(self.detector, batches))

    def finish(self, batches: Iterable[tuple[Tensor, Tensor]]) -> bool:
        """Project the prototypes, find where each part is most, and fit the last layer alone."""
        detector, before = self.detector, self._last_layer
        if isinstance(detector, PatchDetector):
            found = [(smallest(detector.distances(x.double())), labels) for x, labels in batches]
            distances, labels = _joined(found)
            self.steps[0] = _accuracy(before(detector.similarity(distances)), labels)
            projection = project(detector, batches)
            self.sources.copy_(projection.sources)
            self.steps[3] = changeable(detector, before, distances, projection.moved)
        else:
            maps = ((detector.maps(x), labels) for x, labels in batches)
            self.sources.copy_(strongest_places(maps, detector.num_parts))
        similarities, labels = _joined([(self.similarities(x), labels) for x, labels in batches])
        accuracy = _accuracy(before(similarities), labels)
        self.steps[1] = accuracy
        if isinstance(detector, ChannelDetector):
            self.steps[0] = accuracy
        fitted = self.fitted(similarities, labels)
        self.weight.copy_(fitted.weight)
        if self.bias is not None and fitted.bias is not None:
            self.bias.copy_(fitted.bias)
        self.steps[2] = _accuracy(self._last_layer(similarities), labels)
        if isinstance(detector, ChannelDetector):
            self._note_silence(similarities)
        return True

    def training_sources(self) -> Tensor:
        """Return the `sources`."""
        return self.sources

    # Edits

    def feature_names(self, class_names: Sequence[str]) -> Sequence[str | None]:
        """Return ``"part 3 of cat"``, or what a person calls the part."""
        given = {one.index: one.name for one in self.config.names}
        owners = self.detector.owners.cpu().numpy() if isinstance(self.detector, PatchDetector) else None
        return part_names(self._last_layer.weight.detach().cpu().numpy(), owners, class_names, given)

    @property
    def num_prototypes(self) -> int:
        """P."""
        return self.weight.shape[1]

    @torch.no_grad()
    def without(self, features: Collection[int], prototypes: Collection[int]) -> PartsHead:
        """Return the head without some parts: their weights are 0."""
        if prototypes:
            raise UsageError(f"the prototypes of {a_head(self.family)} are its features; leave features out")
        head = copy.deepcopy(self)
        if not head._has_weights:
            raise UsageError("no part of this head has a weight, so that its logits are all 0; train it again")
        head.weight[:, list(features)] = 0
        if not head._has_weights:
            raise UsageError("all parts that have a weight are left out; leave at least one")
        return head

    def renamed(self, names: Mapping[int, str]) -> PartsHead:
        """Return the head with other names of some parts."""
        kept = {one.index: one.name for one in self.config.names} | dict(names)
        head = copy.deepcopy(self)
        head.config = dataclasses.replace(
            self.config, names=tuple(FeatureName(index, name) for index, name in sorted(kept.items()))
        )
        return head

    @torch.no_grad()
    def with_class(self, examples: Tensor, others: Tensor, place: int) -> PartsHead:
        """Return the head with a class that has patches of its images as prototypes; in PIP-Net it has parts alone.

        ProtoPNet: the new prototypes come after those that there are. They add nothing to the other logits, and the new
        logit is their sum, scaled to the spread of the others, with the bias that fits best. PIP-Net: parts that are
        more in the images of the class than in others count for it by how much more.
        """
        x = torch.cat([examples, others])
        is_new = torch.arange(len(x)) < len(examples)
        company, config, state = Company(self(x), is_new), self.config, self.state_dict()
        if not isinstance(self.detector, PatchDetector):
            similarities = self.similarities(x)
            row = (similarities[is_new].mean(0) - similarities[~is_new].mean(0)).clamp_min(0)
            if not bool(row.any()):
                raise UsageError(
                    "no part fires more in the images of the new class than in others; give other images, or train the "
                    "class with the others"
                )
            state["weight"] = inserted(state["weight"], company.gain(similarities @ row) * row, place)
            return self._grown(config, state)
        owners = [owner + (owner >= place) for owner in self.detector.owners.tolist()]
        added = dataclasses.replace(config, owners=(0,) * config.per_class, names=())
        detector = PatchDetector(self.in_features, 1, added)
        detector.load_state_dict({**self.detector.state_dict(), "prototypes": detector.prototypes})
        detector.prototypes.copy_(start_patches(detector, [(examples, torch.zeros(len(examples), dtype=torch.long))]))
        new = detector.eval()(x.double()).float().sum(1)
        gain = company.gain(new)
        old = functional.pad(state["weight"], (0, config.per_class))
        row = torch.cat([torch.zeros(self.num_prototypes), torch.full((config.per_class,), gain)])
        state |= {
            "weight": inserted(old, row, place),
            "bias": inserted(state["bias"], torch.tensor(company.bias(gain * new)), place),
            "detector.prototypes": torch.cat([self.detector.prototypes, detector.prototypes]),
            "sources": functional.pad(state["sources"], (0, 0, 0, config.per_class), value=NOWHERE),
        }
        return self._grown(dataclasses.replace(config, owners=(*owners, *[place] * config.per_class)), state)

    # The report and the audit

    def prototype_view(self, x: Tensor) -> PrototypeView:
        """Return parts beside images by their similarities to all parts: a part alone is an image of one place."""
        detector, similarities = self.detector, self.similarities(x)
        if isinstance(detector, PatchDetector):
            alone = detector.apart(detector.prototypes.double()[:, :, None, None], detector.prototypes)
            return PrototypeView(
                similarities, detector.similarity(alone).flatten(1).float(), similarities, detector.owners
            )
        return PrototypeView(
            similarities, torch.eye(detector.num_parts), similarities, self._last_layer.weight.argmax(0)
        )

    def describe(self, sample: Sample | None) -> Sequence[Section]:
        """Return the section on the parts."""
        from tnn_train.heads.parts.section import LearnedParts, parts_section

        weight = self._last_layer.weight.detach()
        learned = LearnedParts(
            self.config.kind,
            weight.cpu(),
            self.sources.cpu(),
            self.steps.cpu(),
            lambda maps: self.similarities(maps.to(weight.device)).cpu(),
            self.feature_names,
        )
        return [parts_section(learned, sample)]

    def _note_silence(self, similarities: Tensor) -> None:
        """Note training images without a part, and a layer without a weight: their logits are all 0."""
        silent, count = int((similarities == 0).all(1).sum()), len(similarities)
        if silent > _SILENT * count:
            _logger.warning(
                "no part fires in %d of %d training images, so that their logits are all 0; train longer, start from a "
                "trained backbone (--weights), or lower --parts.fires-above (fires_above=)",
                silent,
                count,
            )
        elif not self._has_weights:
            _logger.warning(
                "the fit of the last layer made all weights 0, and so all logits; lower --parts.sparsity (sparsity=)"
            )

    @property
    def _has_weights(self) -> bool:
        return bool((self._last_layer.weight != 0).any())

    def _wide(self, x: Tensor) -> Tensor:
        return x.float() if self.training else x.double()

    def _parts(self, x: Tensor) -> Tensor:
        found: Tensor = self.detector(self._wide(x))
        return found

    @property
    def _last_layer(self) -> LastLayer:
        weight = self.weight if self.config.kind == PROTOPNET else functional.relu(self.weight)
        return LastLayer(weight, self.bias)

    def fitted(self, similarities: Tensor, labels: Tensor) -> LastLayer:
        """Return the last layer, fitted alone, for training images with similarities ``[N, P]`` and classes ``[N]``."""
        is_positive = self.config.kind == PIPNET
        towards = torch.zeros_like(self.weight)
        if isinstance(self.detector, PatchDetector):
            towards = self.detector.own(self.num_classes).to(self.weight)
        return fit_last_layer(
            similarities, labels, self._last_layer, towards, self.config.strength, is_positive=is_positive
        )

    def _grown(self, config: PartsConfig, state: Mapping[str, Tensor]) -> PartsHead:
        head = PartsHead(self.in_features, self.num_classes + 1, config).to(self.weight)
        head.load_state_dict(state)
        return head.train(self.training)


def _joined(found: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    values, labels = (torch.cat(column) for column in zip(*found, strict=True))
    return values, labels.to(values.device)


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).double().mean())
