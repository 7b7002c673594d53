"""The version of this distribution."""

from __future__ import annotations

from importlib.metadata import version

from tnn_runtime.installation import DISTRIBUTION

__all__ = ["__version__"]

__version__ = version(DISTRIBUTION)
