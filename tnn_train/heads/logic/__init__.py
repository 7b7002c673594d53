"""Differentiable logic gate networks as heads (Petersen et al., arXiv 2210.08277)."""
