"""A bundle whose predictions cannot be explained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from conftest import FIXTURES


def plain_bundle(folder: Path) -> Path:
    """Write a bundle with a linear head and no ``head.npz``, as older versions exported it."""
    shutil.copytree(FIXTURES / "bundle-v5", folder)
    manifest = folder / "manifest.json"
    content = json.loads(manifest.read_text())
    content["model"]["head"] = "linear"
    del content["files"]["head.npz"]
    (folder / "head.npz").unlink()
    manifest.write_text(json.dumps(content))
    return folder
