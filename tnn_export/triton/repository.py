"""Model repositories of Triton: a bundle becomes a few models, each a folder, beside those of other bundles."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tnn_export.triton.configs import DECODE, LABELS_FILE, NETWORK, RANK, TENSORRT, Configs
from tnn_export.triton.options import TritonOptions
from tnn_runtime import errors
from tnn_runtime.bundle.claim import claimed
from tnn_runtime.bundle.manifest import DENSITY_FILE, MANIFEST_FILE, ONNX_FILE
from tnn_runtime.bundle.opened import Bundle, open_bundle
from tnn_runtime.bundle.outputs import PARTIAL, check_folder, refuse_unwritable
from tnn_runtime.bundle.reading import read_json
from tnn_runtime.bundle.storage import (
    FolderKind,
    new_folder,
    refuse_existing,
    remove,
    write_bytes,
    write_json,
    write_text,
)
from tnn_runtime.engines import read_engine, read_spec
from tnn_runtime.errors import OutputExistsError, UsageError
from tnn_runtime.options import at_least_one, shown
from tnn_runtime.text import printable

__all__ = ["CONFIG_FILE", "MODEL", "export_triton"]

_logger = logging.getLogger(__name__)

CONFIG_FILE = "config.pbtxt"
RECORD_FILE = "tnn-export.json"
"""What the models of a bundle have beside their configuration: whose they are."""

MODEL = FolderKind("model of a bundle", RECORD_FILE, (CONFIG_FILE, LABELS_FILE, "[1-9]*"))

_SCHEMA_VERSION = 1
_RUNTIME = Path(errors.__file__).parent
_PLAN_FILE = "model.plan"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")
_SUFFIXES = ("", RANK, DECODE, NETWORK, TENSORRT)
_VERSIONS = 1 << 63


@dataclass(frozen=True)
class _Model:
    """What is in the folder of a model.

    Args:
        config: The text of its configuration.
        files: The content of the files of its version.
        labels: Whether it has names for logits.
        is_python: Whether it is a step of ours.
    """

    config: str
    files: Mapping[str, bytes] = field(default_factory=dict)
    labels: bool = False
    is_python: bool = False


def export_triton(
    bundle: str | Path,
    repository: str | Path,
    *,
    name: str | None = None,
    version: int = 1,
    options: TritonOptions | None = None,
    public_key: str | Path | None = None,
    overwrite: bool = False,
) -> tuple[str, ...]:
    """Write the models of a bundle into a model repository of Triton, which may have others.

    Models are put in place one by one, the ensemble last, each whole.

    Args:
        bundle: The bundle folder.
        repository: The repository; it is made if need be.
        name: What clients call the bundle; by default the name of its folder.
        version: The version of the models, 1 or more; each has one.
        options: How Triton is to run them.
        public_key: The PEM file of the Ed25519 key whose owner must have signed the bundle.
        overwrite: Whether models of a bundle with this name may be replaced.

    Returns:
        The names of the models, first that which clients call.

    Raises:
        SignatureError: If a key is given and the bundle is not signed with it.
        ArtifactError: If the bundle is missing, damaged or altered.
        UsageError: If the bundle has no ONNX model, the options do not fit it, or there can be no model of this name.
        OutputExistsError: If a model exists and ``overwrite`` is false or it is not of this name, or the repository is
            something else or cannot be written to.
        ProviderUnavailable: If the package tritonclient is missing.
    """
    repository = Path(repository)
    workshop = _workshop(repository)
    opened = open_bundle(bundle, public_key)
    name = _checked_name(Path(os.path.abspath(bundle)).name if name is None else name)
    at_least_one(_VERSIONS, version=version)
    if ONNX_FILE not in opened.contents:
        raise UsageError(f"{opened.folder} has no {ONNX_FILE}; export its checkpoint again with --formats onnx")
    configs = Configs(name, version, opened.manifest, options or TritonOptions())
    models = _models(opened, configs)
    folders = {suffix: repository / f"{name}{suffix}" for suffix in _SUFFIXES}
    for folder in folders.values():
        _refuse_of_others(folder, name)
    outdated = [folder for suffix, folder in folders.items() if suffix not in models and _owner(folder) is not None]
    for folder in outdated:
        refuse_existing(folder, MODEL, overwrite=overwrite)
    with claimed(workshop):
        with ExitStack() as stack:
            for suffix, content in models.items():
                made = new_folder(folders[suffix], MODEL, overwrite=overwrite, workshop=workshop)
                _write(stack.enter_context(made), content, configs)
        for folder in outdated:
            remove(folder)
    return tuple(f"{name}{suffix}" for suffix in models)


def _models(opened: Bundle, configs: Configs) -> dict[str, _Model]:
    """Return the models, by how their names go on; they are put in place from the last to the first."""
    network = {name: opened.contents[name] for name in (ONNX_FILE, *opened.weights)}
    of_rank = {name: opened.contents[name] for name in (DENSITY_FILE,) if name in opened.contents}
    found = {
        "": _Model(configs.ensemble(), labels=True),
        RANK: _Model(configs.rank(), of_rank, is_python=True),
        DECODE: _Model(configs.decode(), is_python=True),
        NETWORK: _Model(configs.onnx(ONNX_FILE), network, labels=True),
    }
    plan = _plan(opened)
    if plan is not None:
        found[TENSORRT] = _Model(configs.tensorrt(_PLAN_FILE), {_PLAN_FILE: plan}, labels=True)
    return found


def _plan(opened: Bundle) -> bytes | None:
    """Return the engine of a bundle, if it has one that Triton runs."""
    for file in opened.manifest.files:
        if file.endswith(".engine"):
            engine = opened.folder / file
            spec = read_spec(engine)
            if spec.library == "tensorrt":
                _logger.warning("%s runs with TensorRT %s on %s alone", file, spec.version, spec.target)
                return read_engine(engine)
            _logger.warning("%s is of TensorRT for RTX, which Triton does not have; it is left out", file)
    return None


def _write(folder: Path, content: _Model, configs: Configs) -> None:
    write_json(folder / RECORD_FILE, {"schema_version": _SCHEMA_VERSION, "name": configs.name})
    write_text(folder / CONFIG_FILE, content.config)
    if content.labels:
        write_text(folder / LABELS_FILE, "".join(f"{printable(label)}\n" for label in configs.manifest.class_names))
    target = folder / str(configs.version)
    target.mkdir()
    configs.manifest.write(target)
    for file, data in content.files.items():
        write_bytes(target / file, data)
    if content.is_python:
        shutil.copyfile(Path(__file__).with_name("model.py"), target / "model.py")
        shutil.copytree(_RUNTIME, target / _RUNTIME.name, ignore=shutil.ignore_patterns("__pycache__"))


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"the model cannot be called {shown(name)}; give a --name of letters, digits, '_', '-' and '.', at most 200"
        )
    return name


def _workshop(repository: Path) -> Path:
    """Return where to make models that are to be put into a repository, which need not exist.

    It is beside the repository: Triton takes every folder in there for a model, also one that is not finished.
    """
    check_folder(repository, "the repository")
    if os.path.ismount(repository):
        raise OutputExistsError(
            f"{repository} is a mount point, beside which nothing can be made; choose a folder in it"
        )
    for marker, kind in {CONFIG_FILE: "model", MANIFEST_FILE: "bundle"}.items():
        if os.path.lexists(repository / marker):
            raise OutputExistsError(
                f"{repository} has {marker} in it, so it is a {kind} and no repository of models; choose another "
                "folder, such as the one around it"
            )
    beside = Path(os.path.realpath(repository))
    refuse_unwritable(beside, "another repository")
    return beside.with_name(f".{beside.name}{PARTIAL}")


def _refuse_of_others(folder: Path, name: str) -> None:
    """Make sure that a folder, if it is there, is no model of a bundle of another name."""
    owner = _owner(folder)
    if owner not in (None, name):
        raise OutputExistsError(f"{folder} belongs to the bundle {shown(owner)}; choose another --name")


def _owner(folder: Path) -> Any:
    """Return the name of the bundle that a model was made of; ``None`` if there is no model of a bundle."""
    record = folder / RECORD_FILE
    return read_json(record, MODEL.name, _SCHEMA_VERSION).get("name") if record.is_file() else None
