"""The command ``tnn-train`` with the tests' backbones, as a script for processes of their own."""

from __future__ import annotations

import sys

import conftest  # noqa: F401, registers the backbones

from tnn_train.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
