"""Heads that find parts of images: ProtoPNet and PIP-Net."""
