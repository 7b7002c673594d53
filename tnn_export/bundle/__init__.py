"""The bundle: what is written into its folder, and how it is read by people."""
