"""Image files: opened with care, and turned into what a model takes."""
