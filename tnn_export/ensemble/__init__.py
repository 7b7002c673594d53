"""Ensembles: several exported models in one graph, which answers with the mean of their probabilities."""
