"""Similarity matching: a circuit whose units are alike where embeddings are, and a linear classifier on the units."""
