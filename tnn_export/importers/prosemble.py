"""Prototype classifiers of the package prosemble: those whose class is that of the nearest prototype.

They are read from the archives that their ``save`` writes, which hold arrays and JSON, and no code. With
``d = |(x - w) omega|^2`` the class is that of the smallest d. In an LVQMLN, x goes through a network first, which
``save`` leaves out: its arrays have to be added, `NETWORK`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tnn_export.importers.proving import prove_import
from tnn_export.proof.samples import make_samples
from tnn_runtime.bundle.json_values import nearest
from tnn_runtime.bundle.reading import read_arrays
from tnn_runtime.errors import ArtifactError, UsageError
from tnn_runtime.images.preprocess import Preprocessing
from tnn_train.heads import LvqHead
from tnn_train.heads.lvq.config import CLASS_MEANS, CROSS_ENTROPY, GLVQ, MATRIX, NONE, LvqConfig
from tnn_train.heads.lvq.network import ACTIVATIONS
from tnn_train.model.backbones import build_backbone, check_backbone, check_image_size
from tnn_train.model.checkpoint import Checkpoint
from tnn_train.model.class_names import check_class_names
from tnn_train.model.config import PIXELS, ModelConfig
from tnn_train.model.image_model import build_model
from tnn_train.model.state_dicts import load_tensors, read_state, stem_of, take_backbone

__all__ = ["NETWORK", "PROSEMBLE", "PROSEMBLE_OPTIONS", "import_prosemble"]

PROSEMBLE = "prosemble"
"""The source of archives of prosemble."""

PROSEMBLE_OPTIONS: Mapping[str, Any] = {"channels": None}
"""Its options, with their defaults."""

NETWORK = "backbone_{place}_weight", "backbone_{place}_bias"
"""What the arrays of each layer of the network of an LVQMLN are to be called."""

_PLAIN = ("LVQ1", "LVQ21", "GLVQ", "GLVQ1", "GLVQ21", "CELVQ", "SLVQ", "RSLVQ", "MedianLVQ")
_LOSSES = {"CELVQ": CROSS_ENTROPY, "SLVQ": CROSS_ENTROPY, "RSLVQ": CROSS_ENTROPY}
_MATRIX, _NETWORK = "GMLVQ", "LVQMLN"
_REFUSED = {
    "GRLVQ": "its predict leaves out the relevances that it was trained with, so that nothing tells which of the two "
    f"is meant; save a {_MATRIX} with the omega diag(sqrt(relevances)), or a GLVQ, for either"
}
_CHANNELS = ("first", "last")


@dataclass(frozen=True)
class _Model:
    """What an archive holds, float64.

    Args:
        kind: The name of the class.
        prototypes: ``[P, L]``.
        labels: What the class of each is called, int64 ``[P]``.
        omega: ``[L, R]``; ``None`` if there is none.
        layers: Weights ``[in, out]`` and biases of the network.
        activation: What follows each of them.
    """

    kind: str
    prototypes: Tensor
    labels: NDArray[np.int64]
    omega: Tensor | None
    layers: tuple[tuple[Tensor, Tensor], ...]
    activation: str

    @property
    def size(self) -> int:
        """How many values an input has."""
        return int(self.layers[0][0].shape[0] if self.layers else self.prototypes.shape[1])

    def leads(self, x: Tensor) -> Tensor:
        """Return how much nearer than to the mean of the prototypes inputs ``[N, D]`` are to each one, ``[N, P]``."""
        for weight, bias in self.layers:
            x = ACTIVATIONS[self.activation](x @ weight + bias)
        apart = x[:, None] - torch.cat([self.prototypes, self.prototypes.mean(0, keepdim=True)])
        squares = (apart if self.omega is None else apart @ self.omega).square().sum(2)
        return squares[:, -1:] - squares[:, :-1]


def import_prosemble(
    path: str | Path,
    *,
    backbone: str,
    preprocessing: Preprocessing,
    class_names: Sequence[str],
    samples: NDArray[np.uint8],
    labels: NDArray[np.int64] | None = None,
    stem: str = "auto",
    prefix: str | None = None,
    backbone_weights: str | Path | None = None,
    logit_scale: float = 1.0,
    options: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Turn a classifier of prosemble into a checkpoint, and compare it with the classifier's own formula in float64.

    Args:
        path: The ``.npz`` that ``save`` wrote.
        backbone: What makes its inputs of images: ``"pixels"``, or torchvision's name of a network.
        preprocessing: What turns image files into what the backbone takes.
        class_names: One name for each class, in the order of the labels.
        samples: Images, uint8 ``[n, H, W, C]``.
        labels: Their classes, int64 ``[n]``; ``None`` where they are not known.
        stem: That of the backbone; ``"auto"`` for the one that the weights have.
        prefix: Not used by these archives: has to be ``None``.
        backbone_weights: The state dict of the backbone, but for ``"pixels"``.
        logit_scale: What minus the distances are multiplied by for logits; at 1, scores are those of their
            ``predict_proba``.
        options: ``channels``: how RGB pixels became a vector, ``"first"``, channel by channel, or ``"last"``, pixel by
            pixel.

    Raises:
        UsageError: If the model, the backbone, the class names or an option do not fit.
        ArtifactError: If a file cannot be read, or holds something else.
        ExportError: If the samples cannot be used, or the logits differ from the model's own.
    """
    for option in options or {}:
        if option not in PROSEMBLE_OPTIONS:
            raise UsageError(
                f"{PROSEMBLE} has no option {option!r}{nearest(option, PROSEMBLE_OPTIONS)}; it has "
                f"{', '.join(PROSEMBLE_OPTIONS)}"
            )
    if prefix is not None:
        raise UsageError(f"got the prefix {prefix!r}; an archive of {PROSEMBLE} holds one model: leave it out")
    check_backbone(backbone)
    found = _in_order(_read(Path(path)), backbone, preprocessing, (options or {}).get("channels"))
    weights: dict[str, Tensor] = {}
    if backbone == PIXELS:
        if backbone_weights is not None:
            raise UsageError(f"backbone {PIXELS} has no weights; leave --backbone-weights (backbone_weights=) out")
    elif backbone_weights is None:
        raise UsageError(
            f"an archive of {PROSEMBLE} has no weights of backbone {backbone}; give the file with those that made the "
            "inputs, with --backbone-weights (backbone_weights=)"
        )
    else:
        trunk, _ = build_backbone(ModelConfig(backbone, stem="imagenet"))
        weights = take_backbone(read_state(Path(backbone_weights)), trunk)
        stem = stem_of(weights) if stem == "auto" else stem
    classes = np.unique(found.labels)
    if len(class_names) != len(classes):
        raise UsageError(f"got {len(class_names)} class names for {len(classes)} classes; expected one for each")
    check_class_names(class_names)
    config = ModelConfig(
        backbone,
        head=LvqHead.family,
        num_classes=len(classes),
        in_channels=preprocessing.channels,
        stem=stem,
        lvq=_form(found, classes),
    ).for_size(preprocessing.height, preprocessing.width)
    check_image_size(config, preprocessing.height, preprocessing.width)
    _, size = build_backbone(config)
    if size != found.size:
        height, width, channels = preprocessing.shape
        raise UsageError(
            f"the model takes inputs of {found.size} values, and backbone {backbone} gives {size} of images of "
            f"{height}x{width} pixels and {channels} channel{'s' * (channels > 1)}; choose the backbone, --image-size "
            "and the channels (one value of --mean and --std for grey images) that it was trained with"
        )
    proof = make_samples(preprocessing, samples)
    model = build_model(config).eval()
    if weights:
        load_tensors(model.backbone, weights, f"weights of {backbone_weights} do not fit backbone {backbone}")
    assert isinstance(model.head, LvqHead)
    owners = _fill(model.head, found, classes, logit_scale)

    def logits(x: Tensor) -> Tensor:
        leads = torch.cat([found.leads(rows) for rows in torch.split(x.double(), 1)])
        return logit_scale * torch.stack([leads[:, owners == label].amax(1) for label in range(len(classes))], 1)

    layer = f"{found.kind} of {PROSEMBLE}"
    parity = prove_import(model, preprocessing, proof, logits, layer, "its distances are computed in another order")
    metrics = {"import_samples": len(proof), "import_max_abs_diff": parity.max_abs_diff}
    origin = {"file": Path(path).name, "source": PROSEMBLE, "model": found.kind, "logit_scale": logit_scale}
    return Checkpoint(model, config, preprocessing, tuple(class_names), samples, metrics, {"imported": origin}, labels)


def _read(path: Path) -> _Model:
    """Read an archive.

    Raises:
        ArtifactError: If it is none of prosemble, or damaged.
        UsageError: If the model in it cannot be imported.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist; expected an archive that {PROSEMBLE} saved, an .npz file")
    try:
        about = json.loads(str(read_arrays(path, "__metadata__", text=["__metadata__"])["__metadata__"]))
        kind, settings = about["class_name"], dict(about["hyperparams"])
        hidden = list(settings.get("hidden_sizes") or ()) if kind == _NETWORK else None
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is no archive that {PROSEMBLE} saved ({error!r}); save the model again") from error
    if kind in _REFUSED:
        raise UsageError(f"{path} holds a {kind}, which cannot be imported: {_REFUSED[kind]}")
    if kind not in (*_PLAIN, _MATRIX, _NETWORK):
        raise UsageError(
            f"{path} holds a model of the kind {kind!r}; {', '.join((*_PLAIN, _MATRIX, _NETWORK))} can be imported"
        )
    if about.get("quantized_dtype"):
        raise UsageError(f"{path} is quantised ({about['quantized_dtype']}); save the model without quantize")
    names = ["prototypes_", "prototype_labels_", *(["omega_"] if kind == _MATRIX else [])]
    layers = [] if hidden is None else [one.format(place=place) for place in range(len(hidden) + 1) for one in NETWORK]
    arrays = read_arrays(path, *names, optional=layers)
    if missing := [name for name in layers if name not in arrays]:
        raise UsageError(
            f"{path} lacks {', '.join(missing)}: {PROSEMBLE} saves an {_NETWORK} without its network; add the arrays, "
            "as docs/importing.md shows"
        )
    activation = str(settings.get("activation", "sigmoid"))
    if layers and activation not in ACTIVATIONS:
        raise UsageError(f"{path} has the activation {activation!r}; {', '.join(ACTIVATIONS)} can be imported")
    tensors = {name: torch.from_numpy(array.astype(np.float64)) for name, array in arrays.items()}
    model = _Model(
        kind,
        tensors["prototypes_"],
        arrays["prototype_labels_"].astype(np.int64),
        tensors.get("omega_"),
        tuple((tensors[weight], tensors[bias]) for weight, bias in zip(layers[::2], layers[1::2], strict=True)),
        activation,
    )
    _check(model, path, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise ArtifactError(f"{path} has values that are no finite numbers; train the model again")
    return model


def _check(model: _Model, path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Make sure that the shapes of the arrays fit together."""
    sides = [shape for weight, bias in model.layers for shape in ((*weight.shape, *bias.shape),)]
    fits = model.prototypes.ndim == 2 and model.labels.shape == model.prototypes.shape[:1] and len(model.labels) > 0
    fits = fits and (model.omega is None or (model.omega.ndim == 2 and len(model.omega) == model.prototypes.shape[1]))
    fits = fits and all(len(side) == 3 and side[1] == side[2] for side in sides)
    inner = [(before[1], after[0]) for before, after in pairwise(sides)] if fits else []
    fits = fits and all(before == after for before, after in inner)
    if not fits or (sides and sides[-1][1] != model.prototypes.shape[1]):
        shown = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise ArtifactError(f"{path} has arrays that do not fit together: {shown}; save the model again")


def _in_order(model: _Model, backbone: str, preprocessing: Preprocessing, channels: str | None) -> _Model:
    """Return a model of pixels whose inputs are in our order, channel by channel, and prototypes by their classes."""
    order = np.argsort(model.labels, kind="stable")
    model = replace(model, prototypes=model.prototypes[order], labels=model.labels[order])
    if backbone != PIXELS or preprocessing.channels == 1:
        if channels is not None:
            raise UsageError(
                f"got channels {channels!r}, which tells how RGB pixels became a vector; leave it out for "
                + ("grey images" if backbone == PIXELS else f"backbone {backbone}")
            )
        return model
    if channels not in _CHANNELS:
        raise UsageError(
            f"got channels {channels!r} for RGB pixels; say with --channels (channels) how they became a vector: "
            "first, channel by channel, or last, pixel by pixel"
        )
    if channels == "first" or model.size != np.prod(preprocessing.shape):
        return model
    columns = torch.arange(model.size).reshape(preprocessing.shape).permute(2, 0, 1).flatten()
    if model.layers:
        (weight, bias), *others = model.layers
        return replace(model, layers=((weight[columns], bias), *others))
    omega = None if model.omega is None else model.omega[columns]
    return replace(model, prototypes=model.prototypes[:, columns], omega=omega)


def _form(model: _Model, classes: NDArray[np.int64]) -> LvqConfig:
    owners = np.searchsorted(classes, model.labels)
    counts = np.bincount(owners)
    is_even = bool((counts == counts[0]).all())
    network: dict[str, Any] = {}
    if model.layers:
        hidden = tuple(weight.shape[1] for weight, _ in model.layers[:-1])
        network = {"latent": model.prototypes.shape[1], "hidden": hidden, "activation": model.activation}
        network["activate_latent"] = True
    return LvqConfig(
        prototypes=int(counts[0]) if is_even else 1,
        owners=() if is_even else tuple(owners.tolist()),
        loss=_LOSSES.get(model.kind, GLVQ),
        relevances=NONE if model.omega is None else MATRIX,
        rank=None if model.omega is None else model.omega.shape[1],
        start=CLASS_MEANS,
        **network,
    )


def _fill(head: LvqHead, model: _Model, classes: NDArray[np.int64], scale: float) -> NDArray[np.int64]:
    """Give a head the weights of a model; return the class of each prototype."""
    values = {"prototypes": model.prototypes, "log_temperature": -torch.tensor(scale, dtype=torch.float64).log()}
    if model.omega is not None:
        values["omega"] = model.omega.mT
    for place, (weight, bias) in enumerate(model.layers):
        values |= {f"network.layers.{place}.weight": weight.mT, f"network.layers.{place}.bias": bias}
    load_tensors(head, {name: value.float() for name, value in values.items()}, "the prototypes do not fit")
    return np.searchsorted(classes, model.labels)
