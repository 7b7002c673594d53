"""Toy families of heads: what a newcomer writes to add one, and nothing else."""
