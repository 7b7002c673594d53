"""Embeddings of a frozen backbone, computed once for each image and kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from tnn_runtime.images.preprocess import ImageSource
from tnn_runtime.installation import DISTRIBUTION
from tnn_train.data import ImageSet
from tnn_train.data.loader import evaluation_loader
from tnn_train.model.image_model import Normalize

__all__ = ["EmbeddingSet", "cache_folder", "embed", "recall"]

_logger = logging.getLogger(__name__)

_BATCH_SIZE = 64


class EmbeddingSet(Dataset[tuple[Tensor, int]]):
    """Labelled embeddings; an item is (float32 ``[D]`` or ``[D, h, w]``, label), by its index or by ``(epoch, index)``.

    Args:
        embeddings: float32 ``[N, D]``, or maps ``[N, D, h, w]`` for a head that takes these.
        images: What they were computed from.
    """

    def __init__(self, embeddings: Tensor, images: ImageSet) -> None:
        self.embeddings = embeddings
        self.labels = images.labels

    @property
    def is_in_memory(self) -> bool:
        """Whether no image has to be decoded any more: always."""
        return True

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int]:
        index = key if isinstance(key, int) else key[1]
        return self.embeddings[index], int(self.labels[index])


def embed(
    backbone: nn.Module, images: ImageSet, device: torch.device, cache: Path | None, workers: int | None = None
) -> EmbeddingSet:
    """Return the embeddings of a set of images, from ``cache`` if they are there.

    Args:
        backbone: From normalised images ``[N, C, H, W]`` to embeddings; run in evaluation mode, float32.
        images: The images.
        device: Where to compute.
        cache: A folder for files named by what they depend on: the backbone's weights and structure, the images, their
            preprocessing. ``None`` keeps nothing.
        workers: Processes that decode images; ``None`` for none if they are in memory, else up to four.
    """
    file = None if cache is None else _file(backbone, images, cache)
    embeddings = None if file is None else _read(file)
    if embeddings is not None:
        return EmbeddingSet(embeddings, images)
    embeddings = _compute(backbone.to(device).eval(), images, device, workers)
    if file is not None:
        _write(file, embeddings)
    return EmbeddingSet(embeddings, images)


def recall(backbone: nn.Module, images: ImageSet, cache: Path | None) -> EmbeddingSet | None:
    """Return the embeddings of a set of images if `embed` has left them in ``cache``."""
    embeddings = None if cache is None else _read(_file(backbone, images, cache))
    return None if embeddings is None else EmbeddingSet(embeddings, images)


def cache_folder(name: str | None) -> Path | None:
    """Return the folder of that name, or the one in the user's cache folder (``XDG_CACHE_HOME``, or ``~/.cache``).

    ``None``, with a note, for a user without a home folder, as in some containers.
    """
    if name is not None:
        return Path(name)
    root = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(root) if root else Path.home() / ".cache") / DISTRIBUTION / "embeddings"
    except RuntimeError:
        _logger.warning(
            "this user has no home folder to keep embeddings in, which are computed again next time; choose a folder "
            "with --embedding-cache (embedding_cache=)"
        )
        return None


def _file(backbone: nn.Module, images: ImageSet, cache: Path) -> Path:
    return cache / f"{_digest(backbone, images)}.safetensors"


def _read(file: Path) -> Tensor | None:
    """Return the embeddings of a file, if it is there and can be read."""
    try:
        return load(file.read_bytes())["embeddings"]
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        _logger.warning("the embeddings in %s cannot be read (%s) and are computed again", file, error.strerror)
    except (SafetensorError, KeyError) as error:
        _logger.warning("the embeddings in %s are damaged (%s) and are computed again", file, error)
    return None


def _write(file: Path, embeddings: Tensor) -> None:
    """Keep embeddings in a file, which is whole at any moment, or say why they are not kept."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(save({"embeddings": embeddings}))
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        _logger.warning(
            "the embeddings are not kept in %s (%s) and will be computed again next time; choose another folder with "
            "--embedding-cache (embedding_cache=)",
            file.parent,
            error.strerror,
        )


def _compute(backbone: nn.Module, images: ImageSet, device: torch.device, workers: int | None) -> Tensor:
    normalize = Normalize(images.preprocessing).to(device)
    loader = evaluation_loader(images, _BATCH_SIZE, workers=workers)
    with torch.inference_mode():
        rows = [
            backbone(normalize(batch.to(device))).float().cpu()
            for batch, _ in tqdm(loader, desc="embedding", unit="batch", disable=None, leave=False, delay=1)
        ]
    return torch.cat(rows).contiguous()


def _digest(backbone: nn.Module, images: ImageSet) -> str:
    digest = hashlib.sha256(f"{backbone}{json.dumps(asdict(images.preprocessing))}{len(images)}".encode())
    for name, tensor in backbone.state_dict().items():
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    if images.pixels is not None:
        digest.update(images.pixels.tobytes())
    else:
        for source in images.sources:
            digest.update(_identity(source))
    return digest.hexdigest()[:32]


def _identity(source: ImageSource) -> bytes:
    """Return what tells an image from others without decoding it: its values, or its file's name, size and age."""
    if isinstance(source, np.ndarray):
        return bytes(source)
    if isinstance(source, str | Path):
        status = os.stat(source)
        return os.fsencode(f"{os.path.abspath(source)} {status.st_size} {status.st_mtime_ns}")
    return source if isinstance(source, bytes) else f"{source.size} {source.mode}".encode() + source.tobytes()
