"""Similarity matching heads for tests."""

from __future__ import annotations

import torch
from forms import CLASSES
from torch import Tensor, nn

from tnn_train.heads.matching.config import MatchingConfig
from tnn_train.heads.matching.head import MatchingHead

SIZE = 6


def random_matching(config: MatchingConfig, seed: int = 0) -> tuple[MatchingHead, Tensor]:
    """Return a head whose circuit settles, its iterations measured, and inputs ``[9, SIZE]``."""
    torch.manual_seed(seed)
    head, x = MatchingHead(SIZE, CLASSES, config), torch.randn(9, SIZE) * 3 + 1
    with torch.no_grad():
        root = torch.randn(config.units, config.units)
        head.lateral.copy_(root @ root.T / config.units + 0.3 * torch.eye(config.units))
        if head.label_encoder is not None:
            nn.init.normal_(head.label_encoder)
        labels = torch.zeros(len(x), dtype=torch.int64)
        head.start([(x, labels)])
        head.finish([(x, labels)])
    return head.eval(), x
