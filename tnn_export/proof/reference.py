"""Eager PyTorch on the samples of a proof, and the explanation of differences by membership flips."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tnn_export.errors import ExportError
from tnn_export.formats.precision import HEAD_TOLERANCE
from tnn_export.proof.report import Flip
from tnn_export.proof.samples import Samples
from tnn_runtime.images.preprocess import Preprocessing
from tnn_train.heads import Head
from tnn_train.model.image_model import ImageModel, Normalize
from tnn_train.model.pooling import unpooled

__all__ = ["BOUNDARY", "Reference", "largest"]

BOUNDARY = 1e-5
"""A switch of a head may be on either side of 0 if it is at most this share of its reach, such as ``|x| |omega_k|``."""

_AT_ONCE = 64
_MOST_COMBINATIONS = 1 << 12
_STATES = ((-1.0, 1.0), (-1.0, 0.0, 1.0))
"""The signs of a switch to try: exactly 0 last, at which neither a feature nor its opposite is present."""

_BESIDE = 1e-30
_SHORTEST = 1e-3
_TINY = float(torch.finfo(torch.float32).tiny)


class Reference:
    """Eager PyTorch on a set of samples: what an artifact has to reproduce.

    Args:
        head: The trained head, in float32.
        samples: The images.
        embeddings: Of eager PyTorch, float32 ``[N, D]``, or maps ``[N, D, h, w]``.
        parts: Whether to have what the logits are made of, too: `Head.evidence`.
        maps: What the embeddings are the means of, float32 ``[N, D, h, w]``, if there shall be feature maps; the
            embeddings themselves for a head that takes maps.
    """

    def __init__(
        self, head: Head, samples: Samples, embeddings: Tensor, *, parts: bool = False, maps: Tensor | None = None
    ) -> None:
        self.head = copy.deepcopy(head).cpu().eval()
        self.has_parts = parts
        self.samples = samples
        self.embeddings = embeddings
        self.maps = maps
        with torch.inference_mode():
            batches = torch.split(embeddings, _AT_ONCE)
            switches = [self.head.switches(x) for x in batches]
            self.outputs = _joined([self._outputs(x, a) for x, a in zip(batches, switches, strict=True)])
            self.switches = torch.cat([a for a in switches if a is not None]) if switches[0] is not None else None
        # The length of an embedding that is all but 0 is no measure of its error.
        lengths = torch.linalg.vector_norm(embeddings.flatten(1), dim=1)
        self.lengths = lengths.clamp_min(_SHORTEST * float(lengths.max())).clamp_min(_TINY)

    @classmethod
    def of(
        cls,
        model: ImageModel,
        preprocessing: Preprocessing,
        samples: Samples,
        *,
        parts: bool = False,
        maps: bool = False,
    ) -> Reference:
        """Run a trained model, on the CPU in float32 and evaluation mode.

        Args:
            model: The model.
            preprocessing: Its normalisation.
            samples: The images.
            parts: As for the class.
            maps: Whether there shall be feature maps.

        Raises:
            NoMapsError: If there shall be, and the backbone has no maps.
        """
        normalize = Normalize(preprocessing)
        batches = torch.split(torch.from_numpy(samples.images), _AT_ONCE)
        backbone = copy.deepcopy(model.backbone).cpu().eval()
        with torch.inference_mode():
            embeddings = torch.cat([backbone(normalize(batch)) for batch in batches])
            places = embeddings if maps else None
            if maps and model.head.takes != "map":
                trunk = unpooled(backbone)
                places = torch.cat([trunk(normalize(batch)) for batch in batches])
        return cls(model.head, samples, embeddings, parts=parts, maps=places)

    @property
    def logits(self) -> NDArray[np.float32]:
        """Of eager PyTorch, ``[N, C]``."""
        return np.asarray(self.outputs["logits"].numpy())

    @property
    def scale(self) -> NDArray[np.float32]:
        """What differences of logits are relative to, ``[N, 1]``."""
        return np.asarray(_scale(self.outputs["logits"]).numpy())[:, None]

    def margins(self) -> NDArray[np.float32]:
        """Return how far each sample is from where logits jump, relative to the reach of the head's switches."""
        if self.switches is None:
            return np.full(len(self.samples), np.inf, dtype=np.float32)
        with torch.inference_mode():
            reach = self.head.reach(self.embeddings).clamp_min(_TINY)
            return np.asarray((self.switches.abs() / reach).amin(1).numpy())

    def differences(self, rows: Tensor, outputs: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Tensor:
        """Return the largest relative difference of each sample, ``[n]``.

        Of an output that is the place of the smallest value in another one, `Head.evidence_places`, it is how much
        larger the value at the place that was found is than the smallest one: 0 at the right place, and infinite where
        there is no such place.

        Args:
            rows: Positions of the samples, ``[n]``.
            outputs: Of an artifact.
            expected: Of the eager head on whatever features.
        """
        found = []
        for name, value in outputs.items():
            searched = self.head.evidence_places.get(name)
            if searched is None:
                found.append(largest(value - expected[name]) / _scale(self.outputs[name][rows]))
            else:
                found.append(largest(_excess(value, expected[searched])) / _scale(self.outputs[searched][rows]))
        return torch.stack(found).amax(0)

    def feature_differences(self, rows: Tensor, found: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Return how far feature maps are from those of eager PyTorch, and pooled, from the features, ``[n]`` each.

        Maps are pooled by `Head.pool`, for most heads to their means. Both are relative to the largest magnitude of the
        sample's maps or features, and at least to 1.

        Args:
            rows: Positions of the samples, ``[n]``.
            found: The maps of an artifact, ``[n, F, h, w]``.
            embeddings: The artifact's, ``[n, D]`` or ``[n, D, h, w]``, from which its features follow.

        Raises:
            ExportError: If this reference has no maps.
        """
        values = self.head.feature_values(embeddings)
        if self.maps is None or values is None:
            raise ExportError(
                "got feature maps for a reference without maps; make it with Reference.of(..., maps=True)"
            )
        expected = self.head.feature_maps(self.maps[rows], embeddings)
        pooled = self.head.pool(found.double()) - values
        return largest(found - expected) / _scale(expected), largest(pooled) / _scale(values)

    def head_outputs(self, embeddings: Tensor) -> dict[str, Tensor]:
        """Return what the eager head makes of embeddings ``[n, D]``."""
        return self._outputs(embeddings, self.head.switches(embeddings))

    def explain(
        self, row: int, embedding: Tensor, outputs: Mapping[str, Tensor], tolerance: float | None
    ) -> Flip | None:
        """Return the membership flips that turn the eager outputs into those of an artifact, if there are any.

        Args:
            row: Position of the sample.
            embedding: The artifact's, ``[1, D]``.
            outputs: The artifact's, ``[1, ...]`` each.
            tolerance: The precision's.
        """
        own = self.head.switches(embedding)
        if own is None or self.switches is None or not torch.isfinite(embedding).all():
            return None
        unsure = (own.abs() <= BOUNDARY * self.head.reach(embedding)).flatten().nonzero().flatten()
        for states in _STATES:
            if len(states) ** len(unsure) <= _MOST_COMBINATIONS:
                signs = own.sign().repeat(len(states) ** len(unsure), 1)
                signs[:, unsure] = torch.tensor(list(itertools.product(states, repeat=len(unsure))))
                if flip := self._flip(row, embedding, outputs, tolerance, own, signs):
                    return flip
        return None

    def _flip(
        self,
        row: int,
        embedding: Tensor,
        outputs: Mapping[str, Tensor],
        tolerance: float | None,
        own: Tensor,
        signs: Tensor,
    ) -> Flip | None:
        """Return the flips to one of the combinations of signs ``[n, K]`` that explain an artifact, as `explain`."""
        assert self.switches is not None
        rows = torch.full((len(signs),), row)
        repeated = {name: value.expand(len(signs), *value.shape[1:]) for name, value in outputs.items()}
        of_head = self.differences(rows, repeated, self._outputs(embedding, _moved(own, signs)))
        eager = self.switches[row : row + 1]
        moved = self._outputs(self.embeddings[row : row + 1], _moved(eager, signs))
        of_model = self.differences(rows, repeated, moved)
        fits = of_head <= HEAD_TOLERANCE
        if tolerance is not None:
            fits &= of_model <= tolerance
        if not fits.any():
            return None
        best = int(torch.where(fits, of_model, torch.inf).argmin())
        chosen = signs[best : best + 1]
        is_moved = ((eager > 0) != (chosen > 0)) | ((eager < 0) & (chosen == 0))
        jump = (moved["logits"][best] - self.outputs["logits"][row]).abs().max()
        return Flip(row, tuple(is_moved.flatten().nonzero().flatten().tolist()), float(jump))

    def _outputs(self, x: Tensor, switches: Tensor | None) -> dict[str, Tensor]:
        """Return what the eager head makes of embeddings ``[1 or n, D]`` and of values ``[n, K]`` of its switches."""
        head = self.head
        logits = head(x) if switches is None else head.score(switches)
        evidence = head.evidence(x, switches) if self.has_parts else {}
        return {"logits": logits, "probabilities": torch.softmax(logits, 1), **evidence}


def largest(differences: Tensor) -> Tensor:
    """Return the largest magnitude in each row, infinite where there is no number."""
    return torch.nan_to_num(differences.abs(), nan=torch.inf, posinf=torch.inf).flatten(1).amax(1)


def _excess(places: Tensor, values: Tensor) -> Tensor:
    """Return how much larger than the smallest of values ``[n, K]`` are those at some places, ``[n, 1]`` each."""
    is_place = (places >= 0) & (places < values.shape[1]) & (places == places.round())
    chosen = values.gather(1, torch.where(is_place, places, 0).long())
    return torch.where(is_place, chosen - values.amin(1, keepdim=True), torch.inf)


def _moved(values: Tensor, signs: Tensor) -> Tensor:
    """Return switches ``[1, K]`` with the signs that are asked for, ``[n, K]``: -1, 0 or 1."""
    below, above = values.clamp_max(-_BESIDE), values.clamp_min(_BESIDE)
    return torch.where(signs > 0, above, torch.where(signs < 0, below, torch.zeros_like(values)))


def _scale(values: Tensor) -> Tensor:
    return values.abs().flatten(1).amax(1).clamp_min(1)


def _joined(batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
