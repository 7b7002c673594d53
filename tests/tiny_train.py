"""The command ``tnn-train`` with the tests' backbones, as a script for processes of their own."""

from __future__ import annotations

import sys

from conftest import TinyNet
from torch import nn

from tnn_train.__main__ import main
from tnn_train.models import BACKBONES


class PlainNet(TinyNet):
    """Without batch norm, whose statistics depend on how a batch is shared out."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.Identity()


BACKBONES["plain"] = PlainNet

if __name__ == "__main__":
    sys.exit(main())
