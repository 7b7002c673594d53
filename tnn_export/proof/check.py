"""The proof of a bundle, repeated: on another machine, another device, or with other versions."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

from tnn_export.formats import FORMATS
from tnn_export.proof.file import read_proof
from tnn_export.proof.parity import check_parity, proof_batch_sizes
from tnn_export.proof.report import ParityReport
from tnn_export.proof.running import fresh_process
from tnn_runtime.backends.onnxruntime import require_cuda
from tnn_runtime.bundle.manifest import Manifest
from tnn_runtime.errors import UsageError

__all__ = ["check_bundle"]


def check_bundle(bundle: str | Path, device: str = "cpu", public_key: str | Path | None = None) -> ParityReport:
    """Compare every artifact of a bundle that runs on a device with what eager PyTorch gave when the bundle was made.

    Args:
        bundle: The bundle folder.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
        public_key: The PEM file of the Ed25519 key whose owner must have signed the bundle.

    Returns:
        The comparison of each format; whether it passed is for the caller to look at.

    Raises:
        SignatureError: If a key is given and the bundle is not signed with it.
        ArtifactError: If the bundle is damaged, or has no record of its proof.
        ExportError: If an artifact does not run on the device.
        ProviderUnavailable: If CUDA was asked for and does not work, with what is missing.
        UsageError: If there is no such device.
    """
    if not re.fullmatch("cpu|cuda(:[0-9]{1,3})?", device):
        raise UsageError(f"unknown device {device!r}; choose cpu, cuda or cuda:N")
    if device != "cpu":
        require_cuda(device)
    manifest, folder = Manifest.read(bundle, public_key)
    reference = read_proof(manifest, folder)
    runners = {
        name: fresh_process(name, folder / file, device, manifest.precision)
        for name, form in FORMATS.items()
        for file in fnmatch.filter(manifest.files, form.file)
        if device != "cpu" or not form.needs_gpu
    }
    sizes = proof_batch_sizes(manifest.batch)
    return check_parity(reference, runners, manifest.precision, sizes)
