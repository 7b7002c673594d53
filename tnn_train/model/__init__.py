"""The model: a backbone and a head, their weights, and the folder that keeps them."""
