"""An untrained model and its linear twin, for those who measure how fast they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from tnn_export.bundle.options import ExportOptions
from tnn_export.bundle.provenance import untrained
from tnn_export.bundle.write import export_bundle
from tnn_export.proof.report import ParityReport
from tnn_export.proof.samples import make_samples
from tnn_runtime.bundle.storage import FolderKind, new_folder, write_json
from tnn_runtime.errors import UsageError
from tnn_runtime.images.preprocess import Preprocessing
from tnn_train.heads import BASELINE, HEADS
from tnn_train.model.backbones import check_image_size, embedding_size
from tnn_train.model.checkpoint import Checkpoint, save_checkpoint
from tnn_train.model.config import ModelConfig
from tnn_train.model.image_model import ImageModel, Normalize, build_model

__all__ = ["PAIR", "PAIR_FILE", "export_pair", "heads_of", "make_pair"]

PAIR_FILE = "pair.json"
"""What the models of a pair were built from, beside their folders."""

PAIR = FolderKind("pair", PAIR_FILE, tuple(f"{head}{suffix}" for head in HEADS for suffix in ("", "-checkpoint")))

_SCHEMA_VERSION = 1
_MOST = 1 << 63
_SHIFT = 2.0
"""Of batch norms, in standard deviations: most activations are above 0, where a rectifier does not magnify errors."""


def export_pair(
    out: str | Path,
    config: ModelConfig,
    size: int = 224,
    seed: int = 0,
    *,
    options: ExportOptions | None = None,
    keep_checkpoints: bool = False,
    overwrite: bool = False,
) -> dict[str, ParityReport]:
    """Export an untrained pair to ``out/HEAD`` and ``out/linear``, and prove both equal to eager PyTorch.

    There being no real images, the proof is made on random and adversarial ones.

    Args:
        out: The folder to make.
        config: As in `make_pair`.
        size: As in `make_pair`.
        seed: As in `make_pair`.
        options: How to export both.
        keep_checkpoints: Whether to write what was exported, too: ``out/HEAD-checkpoint`` and
            ``out/linear-checkpoint``.
        overwrite: Whether an existing pair may be replaced.

    Returns:
        The proof of each.

    Raises:
        ParityError: If an artifact gives other outputs; nothing is written then.
        ExportError: If a model cannot be exported.
        OutputExistsError: If ``out`` exists and ``overwrite`` is false, or is no pair.
        UsageError: If there is no such model, or it does not take images of this size.
    """
    with new_folder(Path(out), PAIR, overwrite=overwrite) as folder:
        reports = {}
        for head, checkpoint in make_pair(config, size, seed).items():
            reports[head] = export_bundle(checkpoint, folder / head, options=options)
            if keep_checkpoints:
                save_checkpoint(folder / f"{head}-checkpoint", checkpoint)
        content = {
            "schema_version": _SCHEMA_VERSION,
            "model": {**dataclasses.asdict(config), "head": heads_of(config)},
            "size": size,
            "seed": seed,
        }
        write_json(folder / PAIR_FILE, content)
    return reports


def make_pair(config: ModelConfig, size: int = 224, seed: int = 0) -> dict[str, Checkpoint]:
    """Build an untrained model and its linear twin, by the names of their heads; both have the weights of one backbone.

    The batch norms of the backbone are set so that its numbers behave as those of a trained one: their statistics in
    one pass over made images, since activations would grow from layer to layer with those that it starts with; and
    their shifts to `_SHIFT`, since rounding errors would. (Measured on ResNet-50: noise of 1e-4 in the images moves the
    embedding by up to 3e-5 of its length, and by 1e-2 with shifts of 0, more than a proof in half precision allows.)

    Args:
        config: What to build.
        size: Height and width of the images, in pixels.
        seed: What the weights are drawn with.

    Raises:
        UsageError: If there is no such model, it does not take images of this size, or the seed is out of its range.
        ArtifactError: If there are no images of this size.
    """
    if not 0 <= seed < _MOST:
        raise UsageError(f"the seed is {seed}; expected an integer of at least 0 and below {_MOST}")
    channels = config.in_channels
    preprocessing = Preprocessing(size, size, channels, (0.5,) * channels, (0.25,) * channels)
    config = config.for_size(size, size)
    check_image_size(config, size, size)
    none = np.zeros((0, *preprocessing.shape), np.uint8)
    names = tuple(f"class {index}" for index in range(config.num_classes))
    made = make_samples(preprocessing, none, needs_real=False).images
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        models = {head: _untrained(config, head, names) for head in heads_of(config)}
    first, *others = models.values()
    _settle(first.backbone, Normalize(preprocessing)(torch.from_numpy(made)))
    for model in others:
        model.backbone.load_state_dict(first.backbone.state_dict())
    return {
        head: Checkpoint(
            model.eval(),
            config.with_head(head).with_options(model.head.options),
            preprocessing,
            names,
            none,
            training=untrained(seed),
            calibration=made,
        )
        for head, model in models.items()
    }


def heads_of(config: ModelConfig) -> tuple[str, str]:
    """Return the heads of a pair, that of the model first.

    Raises:
        UsageError: If the model has the head of its twin.
    """
    if config.head == BASELINE:
        raise UsageError(f"the head is {BASELINE}, that of the twin; choose another head to compare with it")
    return config.head, BASELINE


def _untrained(config: ModelConfig, head: str, class_names: Sequence[str]) -> ImageModel:
    """Build a model with one of the heads, in the form in which a training from scratch would leave it."""
    config = config.with_head(head)
    in_features = embedding_size(config, HEADS[head].takes)
    return build_model(config.resolved(class_names, in_features, is_frozen=False), is_training=True).in_final_form()


def _settle(backbone: nn.Module, images: torch.Tensor) -> None:
    """Set shifts and statistics of batch norms, those of images ``[N, C, H, W]``."""
    norms = [module for module in backbone.eval().modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.bias.data.fill_(_SHIFT)
        norm.reset_running_stats()
        norm.momentum = None  # A mean over all batches, here of one.
        norm.train()
    with torch.no_grad():
        backbone(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
