"""Bundles as model repositories of NVIDIA Triton Inference Server."""
