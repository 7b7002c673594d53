"""The commands of ``tnn-export``."""
