"""From a state dict of another program to a checkpoint, compared with the other layer's own formula."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tnn_export.importers.parts import LinearMap, take_layer, take_linear
from tnn_export.importers.proving import prove_import
from tnn_export.importers.registry import IMPORTERS, SOURCES, WHOLE
from tnn_export.importers.source import REQUIRED, Converted, Options, Source
from tnn_export.proof.samples import make_samples
from tnn_runtime.bundle.json_values import nearest
from tnn_runtime.errors import UsageError
from tnn_runtime.images.preprocess import Preprocessing
from tnn_train.heads import TverskyHead
from tnn_train.heads.tversky.config import SCALARS, TverskyConfig
from tnn_train.heads.tversky.layer import to_raw
from tnn_train.model.backbones import build_backbone, check_image_size
from tnn_train.model.checkpoint import Checkpoint
from tnn_train.model.class_names import check_class_names
from tnn_train.model.config import ModelConfig
from tnn_train.model.image_model import ImageModel, build_model
from tnn_train.model.state_dicts import (
    last_layer,
    load_tensors,
    read_state,
    refuse_without_backbone,
    stem_of,
    take_backbone,
)

__all__ = ["import_state_dict"]


def import_state_dict(
    path: str | Path,
    source: str,
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
    """Turn a classifier that was trained with a public Tversky layer, a linear one, or prosemble, into a checkpoint.

    Its logits on the samples are compared with the layer's own formula, in float64, as an export is compared with eager
    PyTorch; the comparison is in the checkpoint's metrics. A linear layer is unfolded, and compared as
    `tnn_train.model.unfolding` does.

    Args:
        path: A state dict (``.pth``, ``.pt`` or ``.safetensors``) of a classifier of torchvision whose last layer was
            replaced by the Tversky layer, with or without a linear map behind it; or as it is. Of prosemble, the
            archive that a model saved.
        source: One of `SOURCES`.
        backbone: torchvision's name of the classifier; ``"pixels"`` for a model of prosemble that takes pixels.
        preprocessing: What turned image files into its inputs.
        class_names: One name for each logit.
        samples: Images, uint8 ``[n, H, W, C]`` of the preprocessing's shape: the import proves itself on them, and
            exports of the checkpoint will.
        labels: Their classes, int64 ``[n]``; ``None`` where they are not known.
        stem: That of the backbone; ``"auto"`` for the one that the weights have.
        prefix: The layer's name in the classifier; found if ``None``.
        backbone_weights: The state dict of the backbone if ``path`` holds the Tversky layer alone.
        logit_scale: What the layer's outputs were multiplied by.
        options: What the state dict does not tell: options of the `Source`, by default the layer's own; of a linear
            layer, the ``code`` of its attributes; of prosemble, the ``channels`` of its pixels.

    Raises:
        UsageError: If the layer, the backbone, the class names or an option do not fit, or the form cannot be had.
        ArtifactError: If a file cannot be read or holds no state dict.
        ExportError: If the samples cannot be used, or the logits differ from the layer's own.
        UnfoldingError: If the logits differ from those of the linear layer.
    """
    if source not in SOURCES:
        choices = f"choose from {', '.join(SOURCES)}"
        raise UsageError(f"unknown source {source!r}{nearest(source, SOURCES)}; {choices}")
    if not (isinstance(logit_scale, int | float) and 0 < logit_scale < math.inf):
        raise UsageError(f"logit_scale is {logit_scale!r}; expected a positive number")
    if source in WHOLE:
        return WHOLE[source](
            path,
            logit_scale=logit_scale,
            options=options,
            backbone=backbone,
            preprocessing=preprocessing,
            class_names=class_names,
            samples=samples,
            labels=labels,
            stem=stem,
            prefix=prefix,
            backbone_weights=backbone_weights,
        )
    origin = IMPORTERS[source]
    settings = _settings(source, origin, options or {})
    state = read_state(Path(path))
    layer = take_layer(state, origin, prefix)
    trunk, features = build_backbone(ModelConfig(backbone, stem="imagenet"))
    if backbone_weights is not None:
        last = last_layer(trunk)
        others = read_state(Path(backbone_weights))
        state |= {name: value for name, value in others.items() if not name.startswith(f"{last}.")}
    weights = take_backbone(state, trunk)
    converted = origin.convert(layer, settings)
    refuse_without_backbone({**weights, **state}, str(path), backbone_weights)
    if (size := converted.prototypes.shape[1]) != features:
        raise UsageError(
            f"the layer takes embeddings of {size} values, and backbone {backbone} gives {features}; choose the one "
            "that it was trained with"
        )
    linear = take_linear(state, len(converted.prototypes))
    classes = len(converted.prototypes) if linear is None else len(linear.weight)
    if len(class_names) != classes:
        raise UsageError(f"got {len(class_names)} class names for {classes} logits; expected one for each")
    check_class_names(class_names)
    own_linear = _with_bias(linear, converted.bias, logit_scale)
    config = ModelConfig(
        backbone,
        num_classes=classes,
        in_channels=preprocessing.channels,
        stem=stem_of(weights) if stem == "auto" else stem,
        tversky=_form(converted, own_linear, logit_scale),
    )
    check_image_size(config, preprocessing.height, preprocessing.width)
    proof = make_samples(preprocessing, samples)
    model = build_model(config).eval()
    complaint = f"weights of {backbone_weights or path} do not fit backbone {backbone}"
    _fill(model, {**weights, **state}, converted, own_linear, logit_scale, complaint)
    metrics: dict[str, Any] = {}
    if origin.similarities is not None:
        similarities = origin.similarities

        def logits(x: Tensor) -> Tensor:
            values = logit_scale * torch.cat([similarities(row, layer, settings) for row in torch.split(x.double(), 1)])
            return values if linear is None else functional.linear(values, linear.weight, linear.bias)

        parity = prove_import(model, preprocessing, proof, logits, origin.layer, origin.left_out)
        metrics = {"import_samples": len(proof), "import_max_abs_diff": parity.max_abs_diff}
    training = {"imported": {"file": Path(path).name, "source": source, "logit_scale": logit_scale, **settings}}
    return Checkpoint(model, config, preprocessing, tuple(class_names), samples, metrics, training, labels)


def _settings(name: str, source: Source, given: Options) -> dict[str, Any]:
    """Return every option of a source: the one given, or the layer's default."""
    for option in given:
        if option not in source.options:
            raise UsageError(
                f"{name} has no option {option!r}{nearest(option, source.options)}; it has {', '.join(source.options)}"
            )
    settings = {**source.options, **given}
    if missing := [option for option, value in settings.items() if value is REQUIRED]:
        raise UsageError(f"a state dict of {name} does not tell {', '.join(missing)}; say what it was trained with")
    return {option: source.spellings.get(value, value) for option, value in settings.items()}


def _with_bias(linear: LinearMap | None, bias: Tensor | None, scale: float) -> LinearMap | None:
    """Return the linear map that has taken up the bias of the similarities, if there is either."""
    if bias is None:
        return linear
    weight, offset = linear or LinearMap(torch.eye(len(bias), dtype=bias.dtype), torch.zeros_like(bias))
    return LinearMap(weight, offset + scale * weight @ bias)


def _form(converted: Converted, linear: LinearMap | None, scale: float) -> TverskyConfig:
    """Return the form of the head, whose scalars are fixed."""
    form: dict[str, Any] = dict(converted.form)
    if form["model"] == "ratio":
        form |= {"fixed": SCALARS, "logit_scale": scale}
    else:
        scalars = _contrast_scalars(converted, scale)
        # A configuration holds no negative weight; `_fill` sets these.
        form |= {"fixed": tuple(name for name in scalars if scalars[name] >= 0)}
        form |= {name: max(value, 0.0) for name, value in scalars.items()}
    return TverskyConfig(
        num_features=len(converted.feature_bank),
        num_prototypes=None if linear is None else len(converted.prototypes),
        **form,
    )


def _contrast_scalars(converted: Converted, scale: float) -> dict[str, float]:
    return {name: scale * converted.form[name] for name in ("alpha", "beta", "theta")}


def _fill(
    model: ImageModel,
    weights: Mapping[str, Tensor],
    converted: Converted,
    linear: LinearMap | None,
    scale: float,
    complaint: str,
) -> None:
    """Give a model the weights of the backbone, and of the head."""
    load_tensors(model.backbone, weights, complaint)
    head = model.head
    if not isinstance(head, TverskyHead):
        raise TypeError(type(head))
    values = {"prototypes": converted.prototypes}
    if head.feature_bank is None:
        values["raw_feature_weight"] = to_raw(converted.feature_bank)
    else:
        values["feature_bank"] = converted.feature_bank
    if linear is not None:
        values |= {"linear.weight": linear.weight, "linear.bias": linear.bias}
    if head.config.model == "contrast":
        values |= {f"raw_{name}": torch.tensor(value) for name, value in _contrast_scalars(converted, scale).items()}
    targets = head.state_dict()
    with torch.no_grad():
        for name, value in values.items():
            targets[name].copy_(value)
