"""The proof that an export equals eager PyTorch: samples, comparison and report."""
