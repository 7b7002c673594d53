"""The Tversky head (arXiv 2506.11035): its form, its measures, its layer and what it has learned."""
