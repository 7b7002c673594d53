"""The bundle folder: its manifest, and how files are read, checked and written."""
