"""The commands of ``tnn-runtime``."""
