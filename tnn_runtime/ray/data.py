"""Files in bulk with Ray Data; needs the extra ray.

    import ray
    from tnn_runtime.ray.data import FileClassifier

    files = ray.data.from_items([{"path": str(path)} for path in paths])
    rows = files.map_batches(
        FileClassifier,
        fn_constructor_args=["runs/photos-bundle"],
        batch_size=256,
        compute=ray.data.ActorPoolStrategy(size=4),
        num_cpus=2,
    )
    rows.write_parquet("labels")

The labels and scores are those of ``tnn-runtime predict``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tnn_runtime.bulk import classify_files
from tnn_runtime.classifier import Classifier
from tnn_runtime.errors import UsageError
from tnn_runtime.ray.library import allotted, needs_ray
from tnn_runtime.text import printable, why_not_utf8

with needs_ray():
    import pyarrow as pa

__all__ = ["FileClassifier"]

_COLUMNS = pa.schema(
    [
        ("path", pa.string()),
        ("label", pa.list_(pa.string())),
        ("score", pa.list_(pa.float64())),
        ("error", pa.string()),
    ]
)


class FileClassifier:
    """What ``ray.data.Dataset.map_batches`` takes to classify image files: each worker loads the bundle once.

    A batch has a column ``path``. With a column ``bytes`` beside it, as ``ray.data.read_binary_files`` makes with
    ``include_paths=True``, that is the content of the files; without one, the workers read them from the paths.

    For each file, in their order, the answer has a row: ``path``; the best classes ``label``, best first, and their
    probabilities ``score``, two lists; and ``error``, which is empty. A file that cannot be used gets empty lists and
    what is wrong with it. A rejected image gets empty lists and no error.

    Args:
        bundle: The bundle folder, where the workers find it.
        device: As for `Classifier.load`. A worker sees the GPUs that Ray allots to it (``num_gpus``), as ``"cuda"``.
        top_k: How many classes a row has; all of them if there are fewer.
        reject: As for `Classifier.predict`.
        **options: The other arguments of `Classifier.load`. By default a worker has as many threads, and decodes as
            many images at once, as Ray allots cores to it (``num_cpus``).

    Raises:
        TnnError: As `Classifier.load`; or if images are to be rejected, and the bundle has no threshold.
    """

    def __init__(
        self, bundle: str | Path, device: Any = "auto", *, top_k: int = 1, reject: bool = False, **options: Any
    ) -> None:
        self._top_k = top_k
        self._reject = reject
        self._classifier = Classifier.load(bundle, device, **allotted() | options)
        self._classifier.predict([], top_k, reject=reject)  # tells what is wrong with the options or the bundle

    def __call__(self, batch: Mapping[str, Any]) -> pa.Table:
        """Return a row for each file of a batch, given as a column of values for each name.

        Raises:
            UsageError: If the batch has no column ``path``.
            NotAnswered: If the device is lost, or the model fails: the fault is in the worker, and not in a file.
        """
        paths = _column(batch, "path")
        files = _column(batch, "bytes") if "bytes" in batch else [_file(path) for path in paths]
        found = list(classify_files(self._classifier, files, self._top_k, reject=self._reject))
        return pa.table(
            {
                "path": [_text(path) for path in paths],
                "label": [[best.label for best in one.predictions] for one in found],
                "score": [[best.score for best in one.predictions] for one in found],
                "error": [one.error for one in found],
            },
            schema=_COLUMNS,
        )


def _column(batch: Mapping[str, Any], name: str) -> Sequence[Any]:
    if not isinstance(batch, Mapping):
        raise UsageError(
            f"got a batch of type {type(batch).__name__}; expected columns by their names: leave out batch_format"
        )
    if name not in batch:
        raise UsageError(
            f"got a batch with the columns {', '.join(map(printable, batch))}; expected 'path', and perhaps 'bytes': "
            "ray.data.read_binary_files(..., include_paths=True) makes both"
        )
    column: Sequence[Any] = batch[name]
    return column


def _file(path: Any) -> Any:
    """Return what a classifier takes for a path; what is none is refused there."""
    return Path(os.fsdecode(path)) if isinstance(path, str | bytes) else path


def _text(path: Any) -> str:
    """Return a path as text that can be stored, whatever it is."""
    name = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else str(path)
    return printable(name) if why_not_utf8(name) else name
