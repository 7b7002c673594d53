"""The commands of ``tnn-train``: from a command line to what the rooms below do."""
